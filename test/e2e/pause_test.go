package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestPause is what is in a sandbox when it wakes up, and who may wake it.
func TestPause(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 2})
	t.Run("everything is there", func(t *testing.T) { testPauseKeepsEverything(t, s) })
	t.Run("who may wake it", func(t *testing.T) { testAutoResume(t, s) })
	t.Run("R3: restarts", func(t *testing.T) { testPausedSandboxesOutliveRestarts(t, s) })
	t.Run("X41: a full disk", func(t *testing.T) { testPauseWithAFullDisk(t, s) })
	t.Run("ttl", func(t *testing.T) { testTTLPauses(t, s) })
	t.Run("cycles", func(t *testing.T) { testPauseCycles(t, s) })
	t.Run("checkpoints", func(t *testing.T) { testCheckpoints(t, s) })
}

func (u *user) pause(id string) {
	u.t.Helper()
	p, err := u.c.PauseSandbox(u.ctx(), id)
	if must(u, "pausing "+id, p, err); !p.Paused || p.Status != client.SandboxStatePaused {
		u.t.Fatalf("pause of %s: %+v", id, p)
	}
}

func (u *user) resume(id string) {
	u.t.Helper()
	r, err := u.c.ResumeSandbox(u.ctx(), id)
	if must(u, "resuming "+id, r, err); !r.Resumed || r.Status != client.SandboxStateRunning {
		u.t.Fatalf("resume of %s: %+v", id, r)
	}
}

func (u *user) status(id string) *client.Sandbox {
	u.t.Helper()
	sb, err := u.c.GetSandbox(u.ctx(), id)
	return must(u, "reading "+id, sb, err)
}

// testPauseKeepsEverything: processes and what they hold in memory, files whose
// names are gone, background children, listening servers, /tmp.
func testPauseKeepsEverything(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	u.wantExec(id, py, "import os; f = open('/tmp/gone', 'w+'); print(f.write('ghost'), f.flush(), os.unlink('/tmp/gone'))", "5 None None")
	u.write(id, "/tmp/f", "kept")
	u.write(id, "/workspace/g", "kept, too")
	counter := u.start(id, "sh", "-c", `i=0; while :; do i=$((i+1)); echo $i >/tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.05; done`)
	u.start(id, "sh", "-c", `python3 -m http.server 8099 --bind 127.0.0.1 --directory /workspace >/dev/null 2>&1 & exec sleep 1000`) // a child in the background
	u.stack.Eventually("the server to listen", func() error {
		if c := u.run(id, "curl", "-sSf", "http://127.0.0.1:8099/g"); *c.Stdout != "kept, too" {
			return fmt.Errorf("%+v", *c)
		}
		return nil
	})
	u.stack.Eventually("the counter to run", func() error { return u.counts(id, 1) })
	stream := u.attach(id, counter, 0)
	defer stream.Close()

	u.pause(id)
	if sb := u.status(id); !sb.Paused || sb.Status != client.SandboxStatePaused || sb.RuntimeGeneration != 1 {
		t.Errorf("paused: %+v", sb)
	}
	u.pause(id) // again
	for {       // R6: an open stream is told, and never blocks a pause
		if _, err := stream.Next(); err != nil {
			if err == io.EOF {
				t.Error("the stream of a process that is only paused ended as if the process had")
			}
			break
		}
	}
	paused := true
	list, err := u.c.ListSandboxes(u.ctx(), client.ListSandboxesOptions{Paused: &paused})
	if must(u, "listing", list, err); list.Count != 1 || list.Sandboxes[0].ID != id {
		t.Errorf("the paused ones are %+v", list)
	}

	u.resume(id)
	if sb := u.status(id); sb.Paused || sb.RuntimeGeneration != 2 {
		t.Errorf("resumed: %+v", sb)
	}
	u.wantExec(id, py, "x + 1", "42")
	u.wantExec(id, py, "f.seek(0); f.read()", "0\r\n'ghost'")
	for path, want := range map[string]string{"/tmp/f": "kept", "/workspace/g": "kept, too"} {
		if got := u.read(id, path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	if c := u.run(id, "curl", "-sSf", "http://127.0.0.1:8099/g"); *c.Stdout != "kept, too" {
		t.Errorf("the server of before answers %+v", *c)
	}
	n, _ := strconv.Atoi(strings.TrimSpace(u.read(id, "/tmp/n")))
	u.stack.Eventually("the counter to count on", func() error { return u.counts(id, n) })
	if c := u.run(id, "sh", "-c", "echo $SANDBOX0_SANDBOX_ID; hostname"); *c.Stdout != id+"\n"+id+"\n" {
		t.Errorf("it takes itself for %q", *c.Stdout)
	}
}

// counts is nil once the counter in a sandbox is beyond n.
func (u *user) counts(id string, n int) error {
	r, err := u.c.ReadFile(u.ctx(), id, "/tmp/n")
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if got, _ := strconv.Atoi(strings.TrimSpace(string(b))); got <= n {
		return fmt.Errorf("it is at %q, want more than %d", b, n)
	}
	return nil
}

// testAutoResume: any request wakes a sandbox, all that come together once, unless
// its owner does not want that.
func testAutoResume(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	u.write(id, "/workspace/f", "kept")
	u.pause(id)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			r, err := u.c.ReadFile(u.ctx(), id, "/workspace/f")
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("a request for a paused sandbox: %v", err)
		}
	}
	if sb := u.status(id); sb.RuntimeGeneration != 2 {
		t.Errorf("it was resumed to generation %d, want 2", sb.RuntimeGeneration)
	}

	off := false
	_, err := u.c.UpdateSandbox(u.ctx(), id, client.SandboxUpdateConfig{AutoResume: &off})
	must(u, "turning auto_resume off", 0, err)
	u.pause(id)
	_, err = u.c.ReadFile(u.ctx(), id, "/workspace/f")
	if !isStatus(err, 503) || !strings.Contains(err.Error(), "auto_resume is disabled") {
		t.Errorf("a request for a sandbox that shall sleep: %v", err)
	}
	env := map[string]string{"WHILE": "asleep"}
	_, err = u.c.UpdateSandbox(u.ctx(), id, client.SandboxUpdateConfig{EnvVars: env}) // 2.5, row 23
	must(u, "an update of a paused sandbox", 0, err)
	u.resume(id)
	if c := u.run(id, "sh", "-c", "echo $WHILE"); *c.Stdout != "asleep\n" {
		t.Errorf("what was set while it slept is %q", *c.Stdout)
	}
}

// testPausedSandboxesOutliveRestarts: of the server, by kill and in order, and of the
// machine; what is paused stays, what is deleted leaves nothing.
func testPausedSandboxesOutliveRestarts(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	u.pause(id)
	s.Kill()
	s.Up()
	if sb := u.status(id); !sb.Paused {
		t.Errorf("after a crash it is %s", sb.Status)
	}
	s.Down(false) // ends what runs
	s.Up()
	if sb := u.status(id); !sb.Paused {
		t.Errorf("R7: after an orderly stop of everything it is %s", sb.Status)
	}
	s.Reboot()
	s.Up()
	if sb := u.status(id); !sb.Paused {
		t.Errorf("X46: after a reboot it is %s", sb.Status)
	}
	u.stack.Eventually("it to wake up", func() error { _, err := u.c.ResumeSandbox(u.ctx(), id); return err })
	u.wantExec(id, py, "x + 1", "42")
	u.pause(id)
	u.remove(id)
}

func testTTLPauses(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	ttl := int32(1)
	id := u.claimed(client.ClaimRequest{Template: "default", Config: &client.SandboxConfig{TTL: &ttl}})
	u.stack.Eventually("the ttl to pause it", func() error {
		if got := u.status(id); !got.Paused || !got.ExpiresAt.Equal(time.Time{}.UTC()) {
			return fmt.Errorf("it is %s and expires at %s", got.Status, got.ExpiresAt)
		}
		return nil
	})
	u.remove(id)
}

// testPauseCycles: many lives leave the same state, byte by byte, in an image that
// does not grow.
func testPauseCycles(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.exec(id, py, "n = 0; data = bytes(range(256)) * 4096")
	u.run(id, "sh", "-c", "head -c 1000000 /dev/urandom >/workspace/blob; sha256sum /workspace/blob >/tmp/sum")
	const cycles = 5
	for range cycles {
		u.pause(id)
		u.exec(id, py, "n += 1")
	}
	u.wantExec(id, py, "import hashlib; print(n, hashlib.sha256(data).hexdigest()[:8])", fmt.Sprint(cycles)+" fbbab289")
	if c := u.run(id, "sha256sum", "-c", "/tmp/sum"); *c.ExitCode != 0 {
		t.Errorf("the files have changed: %+v", *c)
	}
	if sb := u.status(id); sb.RuntimeGeneration != cycles+1 {
		t.Errorf("generation %d", sb.RuntimeGeneration)
	}
	var events []string
	page, err := u.c.ListSandboxEvents(u.ctx(), id, client.SandboxEventsOptions{Limit: 100})
	for _, e := range must(u, "reading events", page, err).Events {
		b, _ := json.Marshal(e)
		events = append(events, string(b))
	}
	if got := strings.Count(strings.Join(events, "\n"), `"sandbox.resumed"`); got < cycles {
		t.Errorf("%d events tell of a resume, want %d", got, cycles)
	}
}

// testPauseWithAFullDisk: a sandbox that can't be saved is not lost.
func testPauseWithAFullDisk(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41; data = bytes(range(256)) * 65536", "") // 16 MiB
	images := filepath.Join(s.DataDir, "noded", "paused")
	if err := os.MkdirAll(images, 0o700); err != nil {
		t.Fatal(err)
	}
	u.stack.Eventually("what was deleted to be gone", func() error { // a mount would hide the rest of it
		left, err := os.ReadDir(images)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v", left)
		}
		return err
	})
	if err := unix.Mount("tmpfs", images, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceFunc(func() {
		// The sentry keeps the files of its attempt open.
		if err := unix.Unmount(images, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	defer unmount()
	if _, err := u.c.PauseSandbox(u.ctx(), id); !isStatus(err, 503) {
		t.Errorf("a pause without room: %v", err)
	}
	u.stack.Eventually("the sandbox to answer again", func() error {
		_, err := u.c.GetContext(u.ctx(), id, py)
		return err
	})
	u.wantExec(id, py, "x + 1", "42")
	unmount()
	u.pause(id)
	u.wantExec(id, py, "x + 2", "43")
}
