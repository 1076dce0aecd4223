package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestSnapshot is what a sandbox has written, kept, begun with and gone back to.
func TestSnapshot(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 2})
	t.Run("running and paused", func(t *testing.T) { testSnapshotsOfRunningAndPaused(t, s) })
	t.Run("restore in place", func(t *testing.T) { testRestoreInPlace(t, s) })
	t.Run("pause without memory", func(t *testing.T) { testPauseWithoutMemory(t, s) })
	t.Run("expiry", func(t *testing.T) { testSnapshotExpires(t, s) })
	t.Run("X41: a full disk", func(t *testing.T) { testSnapshotWithAFullDisk(t, s) })
	t.Run("X21: a crash", func(t *testing.T) { testCrashDuringASnapshot(t, s) })
}

func (u *user) keep(id string) *client.SandboxRootFSSnapshot {
	u.t.Helper()
	snap, err := u.c.CreateSandboxSnapshot(u.ctx(), id, client.CreateSandboxRootFSSnapshotRequest{})
	must(u, "a snapshot of "+id, snap, err)
	u.t.Cleanup(func() {
		if err := u.c.DeleteSandboxSnapshot(u.ctx(), snap.ID); err != nil && !isStatus(err, 404) {
			u.t.Errorf("deleting snapshot %s: %v", snap.ID, err)
		}
	})
	return snap
}

func (u *user) claimFrom(snapshot string) (id string) {
	u.t.Helper()
	return u.claimed(client.ClaimRequest{Template: "default", SnapshotID: &snapshot})
}

// onDisk lists what lies where the node keeps snapshots.
func (u *user) onDisk() (names []string) {
	u.t.Helper()
	entries, err := os.ReadDir(filepath.Join(u.stack.DataDir, "noded", "snapshots"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		u.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// tree is what a sandbox's files are, as one text.
func (u *user) tree(id string) string {
	u.t.Helper()
	c := u.run(id, "sh", "-c", `cd /workspace/tree && find . | sort && find . -type f | sort | xargs cat; readlink link; cat /tmp/kept; test -e /etc/debian_version && echo there || echo deleted`)
	return *c.Stdout
}

const wantTree = ".\n./a\n./dir\n./dir/b\n./link\nAB./a\nT\ndeleted\n"

func (u *user) plant(id string) {
	u.t.Helper()
	c := u.run(id, "sh", "-c", `mkdir -p /workspace/tree/dir && cd /workspace/tree && printf A >a && printf B >dir/b && ln -s ./a link && echo T >/tmp/kept && rm /etc/debian_version`)
	if *c.ExitCode != 0 {
		u.t.Fatalf("%+v", *c)
	}
	if got := u.tree(id); got != wantTree {
		u.t.Fatalf("planted %q", got)
	}
}

func (u *user) spoil(id string) {
	u.t.Helper()
	if c := u.run(id, "sh", "-c", "rm -r /workspace/tree/dir; echo X >/tmp/kept; echo X >>/workspace/tree/a; mkdir /workspace/tree/new"); *c.ExitCode != 0 {
		u.t.Fatalf("%+v", *c)
	}
}

// testSnapshotsOfRunningAndPaused: whatever happens to the source afterwards, and whoever
// is attached to it.
func testSnapshotsOfRunningAndPaused(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	u.plant(id)
	attached := u.attach(id, u.start(id, "sh", "-c", "while :; do echo tick; sleep 0.1; done"), 0)
	defer attached.Close()
	running := u.keep(id)
	if running.SandboxID != id || running.TemplateID != "default" || running.SizeBytes == 0 {
		t.Errorf("%+v", *running)
	}
	if sb := u.status(id); sb.Status != client.SandboxStateRunning || sb.RuntimeGeneration != 1 {
		t.Errorf("row 24: its source is %s, generation %d", sb.Status, sb.RuntimeGeneration)
	}
	for range 5 { // no connection of the source's was cut
		if _, err := attached.Next(); err != nil {
			t.Fatalf("what was attached: %v", err)
		}
	}
	u.wantExec(id, py, "x + 1", "42")
	u.spoil(id)

	child := u.claimFrom(running.ID)
	if got := u.tree(child); got != wantTree {
		t.Errorf("what began with it has %q", got)
	}
	if c := u.run(child, "sh", "-c", "echo $SANDBOX0_SANDBOX_ID; hostname"); *c.Stdout != child+"\n"+child+"\n" {
		t.Errorf("it takes itself for %q", *c.Stdout)
	}
	if list, err := u.c.ListContexts(u.ctx(), child); err != nil || len(list.Contexts) != 2 { // of tree and echo
		t.Errorf("it has contexts of another: %+v, %v", list, err)
	}
	if py := u.python(child); u.exec(child, py, "'x' in dir()") != "False" {
		t.Error("it has memory of another")
	}

	u.pause(id)
	paused := u.keep(id)
	if sb := u.status(id); !sb.Paused {
		t.Errorf("its source is %s", sb.Status)
	}
	u.wantExec(id, py, "x + 1", "42") // which wakes it
	u.remove(id)
	other := u.claimFrom(paused.ID)
	if c := u.run(other, "cat", "/tmp/kept", "/workspace/tree/a"); *c.Stdout != "X\nAX\n" {
		t.Errorf("what began with the later one has %q", *c.Stdout)
	}

	for _, snap := range []string{running.ID, paused.ID} { // what began with them needs them no more
		if err := u.c.DeleteSandboxSnapshot(u.ctx(), snap); err != nil {
			t.Error(err)
		}
		if _, err := u.c.GetSandboxSnapshot(u.ctx(), snap); !isStatus(err, 404) {
			t.Errorf("what was deleted: %v", err)
		}
	}
	u.stack.Eventually("their files to be gone", func() error {
		if left := u.onDisk(); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	u.pause(child)
	if got := u.tree(child); got != wantTree {
		t.Errorf("what began with a snapshot that is gone has %q", got)
	}
}

// testRestoreInPlace: files of then, contexts of now, nobody's memory.
func testRestoreInPlace(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	u.plant(id)
	snap := u.keep(id)
	u.spoil(id)
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	if _, err := u.c.RestoreSandboxRootFS(u.ctx(), id, snap.ID); !isStatus(err, 409) {
		t.Errorf("while it runs: %v", err)
	}
	u.pause(id)
	r, err := u.c.RestoreSandboxRootFS(u.ctx(), id, snap.ID)
	if must(u, "a restore", r, err); r.Status != client.SandboxStatePaused || r.RuntimeGeneration != 2 {
		t.Errorf("%+v", *r)
	}
	u.resume(id)
	if got := u.tree(id); got != wantTree {
		t.Errorf("it has %q", got)
	}
	u.wantExec(id, py, "'x' in dir()", "False")
	if sb := u.status(id); sb.RuntimeGeneration != 3 {
		t.Errorf("generation %d", sb.RuntimeGeneration)
	}
	if child := u.keep(id); child.ParentID == nil || *child.ParentID != snap.ID {
		t.Errorf("what it has become is no child of what it was: %+v", *child)
	}
}

// testPauseWithoutMemory: files, /tmp and contexts are there, what they did is not.
func testPauseWithoutMemory(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	u.plant(id)
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	ran, ended := u.start(id, "sleep", "1000"), u.run(id, "sh", "-c", "exit 3").ID
	p, err := u.c.PauseSandboxFiles(u.ctx(), id)
	if must(u, "pausing", p, err); !p.Paused {
		t.Errorf("%+v", *p)
	}
	if _, err := os.Stat(filepath.Join(s.DataDir, "noded", "paused", id, "1", "memory")); err == nil {
		t.Error("memory was saved")
	}
	u.wantExec(id, py, "'x' in dir()", "False") // the id that its owner remembers wakes it
	u.wantExec(id, py, "6 * 7", "42")
	if got := u.tree(id); got != wantTree {
		t.Errorf("it has %q", got)
	}
	for ctx, want := range map[string]int{ran: 137, ended: 3} {
		c, err := u.c.GetContext(u.ctx(), id, ctx)
		if must(u, "reading a context", c, err); c.Running || c.ExitCode == nil || *c.ExitCode != want {
			t.Errorf("%+v, want one that ended with %d", *c, want)
		}
	}
	if sb := u.status(id); sb.RuntimeGeneration != 2 {
		t.Errorf("generation %d", sb.RuntimeGeneration)
	}
	u.pause(id) // with memory, again
	u.wantExec(id, py, "_ + 1", "43")
}

func testSnapshotExpires(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	var snap *client.SandboxRootFSSnapshot
	s.Eventually("a snapshot that is made before it expires", func() (err error) {
		at := time.Now().Add(2 * time.Second)
		snap, err = u.c.CreateSandboxSnapshot(u.ctx(), id, client.CreateSandboxRootFSSnapshotRequest{ExpiresAt: &at})
		return err
	})
	u.stack.Eventually("it to expire", func() error {
		_, err := u.c.GetSandboxSnapshot(u.ctx(), snap.ID)
		if isStatus(err, 404) {
			return nil
		}
		return fmt.Errorf("it is still there: %v", err)
	})
	u.stack.Eventually("its files to be gone", func() error {
		if left := u.onDisk(); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	_, err := u.c.CreateSandbox(u.ctx(), client.ClaimRequest{Template: "default", SnapshotID: &snap.ID})
	if !isStatus(err, 404) {
		t.Errorf("a claim from it: %v", err)
	}
}

// testSnapshotWithAFullDisk: what can't be kept whole is not kept, and its source goes on.
func testSnapshotWithAFullDisk(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	u.run(id, "sh", "-c", "head -c 16000000 /dev/urandom >/workspace/blob")
	dir := filepath.Join(s.DataDir, "noded", "snapshots")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceFunc(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	defer unmount()
	if _, err := u.c.CreateSandboxSnapshot(u.ctx(), id, client.CreateSandboxRootFSSnapshotRequest{}); !isStatus(err, 503) {
		t.Errorf("a snapshot without room: %v", err)
	}
	if left := u.onDisk(); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	u.wantExec(id, py, "x + 1", "42")
	unmount()
	u.keep(id)
	u.wantExec(id, py, "x + 2", "43")
}

// testCrashDuringASnapshot: whenever everything dies, there is a whole snapshot or none,
// its source runs on, and what nobody was told of goes.
func testCrashDuringASnapshot(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	u.run(id, "sh", "-c", "head -c 50000000 /dev/urandom >/workspace/blob")
	before := u.keep(id)
	crashed := make(chan error, 1)
	go func() {
		_, err := u.c.CreateSandboxSnapshot(u.ctx(), id, client.CreateSandboxRootFSSnapshotRequest{})
		crashed <- err
	}()
	u.stack.Eventually("it to begin", func() error {
		if len(u.onDisk()) < 2 {
			return io.EOF
		}
		return nil
	})
	s.Kill()
	told := <-crashed == nil
	s.Up()
	u.stack.Eventually("what it is to be known", func() error { _, err := u.c.GetContext(u.ctx(), id, py); return err })
	u.wantExec(id, py, "x + 1", "42")
	if sb := u.status(id); sb.RuntimeGeneration != 1 {
		t.Errorf("its source is generation %d", sb.RuntimeGeneration)
	}
	u.stack.Eventually("only what somebody was told of to be there", func() error {
		list, err := u.c.ListSandboxSnapshots(u.ctx(), id)
		if err != nil {
			return err
		}
		if disk := u.onDisk(); len(disk) != len(list.Snapshots) || strings.Contains(strings.Join(disk, " "), ".") || told && len(disk) != 2 {
			return fmt.Errorf("%v on the disk, %d listed", disk, len(list.Snapshots))
		}
		return nil
	})
	s.Down(false)
	s.Reboot()
	s.Up()
	if c := u.run(u.claimFrom(before.ID), "wc", "-c", "/workspace/blob"); !strings.HasPrefix(*c.Stdout, "50000000 ") {
		t.Errorf("R7: after a reboot what began with the first has %q", *c.Stdout)
	}
}
