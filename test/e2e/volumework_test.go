package e2e_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/nodetest"
)

// volumeUser is a user with a volume, which a sandbox has at /data, and the probe program in
// that.
type volumeUser struct {
	*user
	volume, id string
}

func newVolumeUser(t *testing.T, s *s0test.Stack) *volumeUser {
	t.Helper()
	u := newUser(t, s)
	volume, err := u.c.CreateVolume(u.ctx(), "", client.CreateSandboxVolumeRequest{})
	must(u, "making a volume", volume, err)
	t.Cleanup(func() { u.removeVolume(volume.ID) })
	v := &volumeUser{user: u, volume: volume.ID}
	v.claim()
	return v
}

func (v *volumeUser) claim() {
	v.t.Helper()
	v.id = v.claimMounted("default", v.volume)
	program := filepath.Join(v.t.TempDir(), "probe")
	nodetest.Build(v.t, program, "s0.run/internal/s0test/probe")
	f, err := os.Open(program)
	must(v.user, "opening the probe", f, err)
	defer f.Close()
	if err := v.c.WriteFile(v.ctx(), v.id, "/tmp/probe", f); err != nil {
		v.t.Fatal(err)
	}
	v.run(v.id, "chmod", "755", "/tmp/probe")
}

// sh runs a script in the sandbox and returns what it printed, with its errors.
func (v *volumeUser) sh(script string) string {
	v.t.Helper()
	return text(v.run(v.id, "sh", "-c", "exec 2>&1; "+script).Stdout)
}

// wantSh wants a script to print something.
func (v *volumeUser) wantSh(want, script string) {
	v.t.Helper()
	if got := strings.TrimSpace(v.sh(script)); got != want {
		v.t.Errorf("%s: %q, want %q", script, got, want)
	}
}

// gvisorCant are cases of the table that gVisor does not keep in what the host shows it: links
// of what is open and removed, a rename that replaces nothing; nor anywhere: how much of a file
// is allocated.
const gvisorCant = "'an unlinked file that is open' 'rename over nothing' holes"

// A volume inside a sandbox is what programs expect of a directory, as the sandbox's own disk
// is; and what random work has left is in a fork of it, byte for byte.
func testVolumePrograms(t *testing.T, s *s0test.Stack) {
	v := newVolumeUser(t, s)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, dir := range []string{"/tmp/in", "/data/in"} {
		v.wantSh("ended with 0", "mkdir "+dir+" && /tmp/probe posix "+dir+" "+gvisorCant+"; echo ended with $?")
		v.wantSh("ended with 0", fmt.Sprintf("/tmp/probe fsx %s %d 500; echo ended with $?", dir, seed))
	}
	fork, err := v.c.ForkVolume(v.ctx(), v.volume, "", client.ForkVolumeRequest{})
	must(v.user, "a fork", fork, err)
	t.Cleanup(func() { v.removeVolume(fork.ID) })
	mount, err := v.c.MountVolume(v.ctx(), v.id, fork.ID, "/fork")
	must(v.user, "mounting it", mount, err)
	for _, dir := range []string{"/data/in", "/fork/in"} { // of one seed is one content
		v.wantSh("", "for i in 0 1 2; do cmp /tmp/in/fsx$i "+dir+"/fsx$i; done")
	}
	v.wantSh("", "rm -rf /data/in && ls /data")
}

// D04: what is beyond the team's quota does not fit, the sandbox is told so at once, and what
// it removes makes room again. Its own disk has room all the time.
func testVolumeFull(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	u.volumeQuota(1)
	v := newVolumeUser(t, s)
	const most = 1300 << 20 // the limit, an eighth more, and what describes it
	if got := v.sh("fallocate -l 700M /data/first && fallocate -l 700M /data/second; echo; df -B1 --output=size /data | tail -1"); !strings.Contains(got, "No space left") {
		t.Errorf("beyond the limit: %q", got)
	} else if fields := strings.Fields(got); len(fields) > 0 {
		if size, err := strconv.Atoi(fields[len(fields)-1]); err != nil || size > most {
			t.Errorf("the volume has room for %q", fields[len(fields)-1])
		}
	}
	v.wantSh("", "rm -f /data/second; head -c 64M /dev/zero > /tmp/own")
	s.Eventually("room for what is smaller", func() error { // the kernel takes its time to let a removed file go
		if got := v.sh("fallocate -l 350M /data/third"); got != "" {
			return errors.New(got)
		}
		return nil
	})
	if got := v.sh("head -c 256M /dev/zero > /data/fourth"); !strings.Contains(got, "No space left") {
		t.Errorf("a write beyond the limit: %q", got)
	}
	v.wantSh("", "rm /data/third /data/fourth /tmp/own")
	s.Eventually("room", func() error {
		if got := v.sh("head -c 1M /dev/zero > /data/small && rm /data/small"); got != "" {
			return errors.New(got)
		}
		return nil
	})
	v.wantSh("", "rm /data/first")
}

// volumeQuota limits what the volumes of the team hold, until the test ends.
func (u *user) volumeQuota(gb int64) {
	u.t.Helper()
	const dimension = "volume_storage_gb"
	key, err := u.c.CurrentAPIKey(u.ctx())
	must(u, "asking for the team", key, err)
	login, err := u.c.Login(u.ctx(), "admin@example.com", s0test.AdminPassword)
	must(u, "signing in", login, err)
	admin, err := client.New(client.Config{BaseURL: u.stack.URL, Token: login.AccessToken})
	must(u, "a client of the administrator's", admin, err)
	quota, err := admin.SetTeamQuota(u.ctx(), key.TeamID, dimension, client.SetQuotaRequest{LimitValue: &gb})
	must(u, "setting the quota", quota, err)
	u.t.Cleanup(func() {
		quota, err := admin.UnsetTeamQuota(u.ctx(), key.TeamID, dimension)
		must(u, "unsetting the quota", quota, err)
	})
}

// B05, C06: whatever a sandbox makes of its volume's tree while it is read, listed, packed,
// committed and forked, nothing but the volume is reached, and nothing is mounted through a link.
func testVolumeHostile(t *testing.T, s *s0test.Stack) {
	v := newVolumeUser(t, s)
	files := v.c.VolumeFiles(v.volume)
	v.wantSh("", "mkdir -p /data/d /data/deep && echo mine > /data/d/passwd && ln -s /etc /data/l && ln -s ../../../../../../etc /data/up && ln -s /proc/self/root/etc /data/magic"+
		" && ln -s loop /data/loop && mkfifo /data/d/fifo && cd /data/deep && for i in $(seq 200); do mkdir d && cd d; done")
	v.start(v.id, "/tmp/probe", "swap", "/data/d", "/data/l")
	v.start(v.id, "sh", "-c", "while :; do mv /data/deep /data/d2; mv /data/d2 /data/deep; done")
	for range 12 {
		if err := files.Write(v.ctx(), "d/new", strings.NewReader("new")); err == nil {
			_ = files.Delete(v.ctx(), "d/new")
		}
		for _, path := range []string{"d/passwd", "l/passwd", "up/passwd", "magic/passwd", "loop", "d/fifo"} {
			r, err := files.Read(v.ctx(), path)
			if err != nil {
				continue
			}
			b, err := io.ReadAll(r)
			r.Close()
			if err == nil && string(b) != "mine\n" {
				t.Fatalf("reading %s: %q", path, b)
			}
		}
	}
	fork, err := v.c.ForkVolume(v.ctx(), v.volume, "", client.ForkVolumeRequest{})
	must(v.user, "a fork of what changes all the time", fork, err)
	t.Cleanup(func() { v.removeVolume(fork.ID) })
	r, err := v.c.VolumeFiles(fork.ID).ReadArchive(v.ctx(), "/")
	must(v.user, "packing the fork", r, err)
	defer r.Close()
	wantOwnFiles(t, r)
	var evil bytes.Buffer
	w := tar.NewWriter(&evil)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "../../up/new", Size: 1, Mode: 0o644}), func() error { _, err := w.Write([]byte("x")); return err }(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if got, err := files.WriteArchive(v.ctx(), "/", &evil); !isStatus(err, 400) {
		t.Errorf("B04: a hostile archive: %+v, %v", got, err)
	}
	v.wantSh("", "mkdir /tmp/real && ln -s /tmp/real /tmp/link && ln -s /etc /point")
	for _, point := range []string{"/tmp/link/x", "/point", "/point/x"} {
		if m, err := v.c.MountVolume(v.ctx(), v.id, fork.ID, point); err == nil {
			t.Errorf("C06: mounted at %s: %+v", point, m)
		}
	}
	v.wantSh("", "ls /tmp/real; ls -d /etc/x 2>/dev/null; grep ' /etc' /proc/mounts")
}

// wantOwnFiles wants nothing but what the sandbox wrote in an archive.
func wantOwnFiles(t *testing.T, archive io.Reader) {
	t.Helper()
	files := 0
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil || string(b) != "mine\n" && string(b) != "new" {
			t.Errorf("the fork has %s: %q, %v", h.Name, b, err)
		}
		if string(b) == "mine\n" {
			files++
		}
	}
	if files != 1 {
		t.Errorf("the fork has its file %d times", files)
	}
}

// R7: what a sandbox was told is on the disk is there when volumed, JuiceFS or the whole node
// has died while it was writing.
func testVolumeDeaths(t *testing.T, s *s0test.Stack) {
	v := newVolumeUser(t, s)
	v.start(v.id, "/tmp/probe", "numbers", "/data/number", "/tmp/said")
	number := func(path string) int {
		n, err := strconv.Atoi(v.sh("cat " + path))
		if err != nil {
			return 0
		}
		return n
	}
	// goesOn waits until it has written more, and says how much it was told.
	goesOn := func() int {
		before := number("/tmp/said")
		s.Eventually("the writer to go on", func() error {
			if now := number("/tmp/said"); now <= before {
				return fmt.Errorf("it was told %d", now)
			}
			return nil
		})
		return number("/tmp/said")
	}
	goesOn()
	s.KillChild("volumed")
	goesOn()
	s.Kill()
	s.Up()
	v.awaitAnswer(v.id)
	last := goesOn()
	snap, err := v.c.CreateVolumeSnapshot(v.ctx(), v.volume, client.CreateVolumeSnapshotRequest{Name: "whole"})
	must(v.user, "a snapshot of what is written to", snap, err)
	told := number("/tmp/said")
	s.Reboot()
	s.Up()
	v.claim()
	if got := number("/data/number"); told < last || got < told {
		t.Errorf("R7: %d and then %d were on the disk, and there is %d", last, told, got)
	}
	kept, err := v.c.CreateVolume(v.ctx(), "", client.CreateSandboxVolumeRequest{SnapshotID: &snap.ID})
	must(v.user, "a volume of the snapshot", kept, err)
	t.Cleanup(func() { v.removeVolume(kept.ID) })
	mount, err := v.c.MountVolume(v.ctx(), v.id, kept.ID, "/kept")
	must(v.user, "mounting it", mount, err)
	if got := number("/kept/number"); got < last {
		t.Errorf("R7: %d was on the disk before the snapshot, which has %d", last, got)
	}
}
