package e2e_test

import (
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestFork is what a sandbox's children have of it, and what they must not have.
func TestFork(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 1})
	t.Run("with memory", func(t *testing.T) { testForkWithMemory(t, s) })
	t.Run("files", func(t *testing.T) { testForkFiles(t, s) })
	t.Run("of a paused sandbox", func(t *testing.T) { testForkPaused(t, s) })
}

// fork forks a sandbox; the children are deleted with the test.
func (u *user) fork(id string, req client.ForkRequest) (children []string) {
	u.t.Helper()
	f, err := u.c.ForkSandbox(u.ctx(), id, req)
	must(u, "forking "+id, f, err)
	all := f.Sandboxes
	if len(all) == 0 {
		all = []client.Sandbox{f.Sandbox}
	}
	for _, sb := range all {
		if sb.Status != client.SandboxStatePaused || !sb.Paused {
			u.t.Errorf("a child: %+v", sb)
		}
		children = append(children, sb.ID)
		u.t.Cleanup(func() { _ = u.c.DeleteSandbox(u.ctx(), sb.ID) })
	}
	return children
}

func (u *user) resumeAll(ids []string) {
	u.t.Helper()
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			u.stack.Eventually(id+" to be resumed", func() error { // so many at a time, and no more
				_, err := u.c.ResumeSandbox(u.ctx(), id)
				return err
			})
		})
	}
	wg.Wait()
}

// own asks a Python for what no two sandboxes may share, each on a line.
const own = `import os, socket, fcntl, struct, secrets; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); ` +
	`ask = lambda call: fcntl.ioctl(s.fileno(), call, struct.pack('256s', b'eth0'))[18:24].hex(); ` +
	`print('address', ask(0x8915)); print('mac', ask(0x8927)); print('hostname', socket.gethostname()); ` +
	`print('getrandom', os.getrandom(16).hex()); print('urandom', open('/dev/urandom', 'rb', buffering=0).read(16).hex()); ` +
	`print('secrets', secrets.token_hex(16)); print('uuid', open('/proc/sys/kernel/random/uuid').read().strip() if os.path.exists('/proc/sys/kernel/random/uuid') else secrets.token_hex(16)); ` +
	`print('machine', open('/etc/machine-id').read().strip()); print('instance', open('/run/s0/instance').read().strip())`

func (u *user) own(id, py string) map[string]string {
	u.t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(u.exec(id, py, own)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			found[name] = value
		}
	}
	if len(found) != 9 {
		u.t.Fatalf("%s says of itself: %v", id, found)
	}
	return found
}

// G10: children of one image have its processes, and nothing of what makes one machine
// tell from another; their source goes on.
func testForkWithMemory(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	u.write(id, "/etc/machine-id", strings.Repeat("a", 32)+"\n")
	u.write(id, "/workspace/f", "kept")
	u.start(id, "sh", "-c", `i=0; while :; do i=$((i+1)); echo $i >/tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.05; done`)
	u.stack.Eventually("the counter to run", func() error { return u.counts(id, 1) })
	before, pod := u.own(id, py), u.status(id).PodName

	children := u.fork(id, client.ForkRequest{Config: &client.ForkConfig{Memory: new(true)}, Count: new(3)})
	if sb := u.status(id); sb.PodName != pod || sb.RuntimeGeneration != 1 || sb.Status != client.SandboxStateRunning {
		t.Errorf("the source: %+v", sb)
	}
	u.wantExec(id, py, "x + 1", "42")
	n, _ := strconv.Atoi(strings.TrimSpace(u.read(id, "/tmp/n")))
	u.stack.Eventually("the source to count on", func() error { return u.counts(id, n) })

	u.resumeAll(children)
	seen := map[string]string{}
	note := func(who string, has map[string]string) {
		for what, value := range has {
			if other, taken := seen[what+" "+value]; taken {
				t.Errorf("%s and %s have the %s %s", other, who, what, value)
			}
			seen[what+" "+value] = who
		}
	}
	note("the source before", before)
	after := u.own(id, py)
	for what := range after {
		if same := what != "getrandom" && what != "urandom" && what != "secrets" && what != "uuid"; same && after[what] != before[what] {
			t.Errorf("the source had the %s %q and has %q", what, before[what], after[what])
		} else if same {
			delete(after, what)
		}
	}
	note("the source after", after)
	for _, child := range children {
		u.wantExec(child, py, "x + 1", "42")
		note(child, u.own(child, py))
		if c := u.run(child, "sh", "-c", "echo $SANDBOX0_SANDBOX_ID; hostname; cat /workspace/f"); *c.Stdout != child+"\n"+child+"\nkept" {
			t.Errorf("%s takes itself for %q", child, *c.Stdout)
		}
		u.wantClock(child)
		n, _ := strconv.Atoi(strings.TrimSpace(u.read(child, "/tmp/n")))
		u.stack.Eventually("a child to count on", func() error { return u.counts(child, n) })
	}
	s.CheckOwned()
}

// wantClock holds a sandbox's clock against ours.
func (u *user) wantClock(id string) {
	u.t.Helper()
	before := time.Now().Add(-time.Second)
	c := u.run(id, "date", "+%s")
	secs, err := strconv.ParseInt(strings.TrimSpace(*c.Stdout), 10, 64)
	if got := time.Unix(secs, 0); err != nil || got.Before(before.Truncate(time.Second)) || got.After(time.Now().Add(time.Second)) {
		u.t.Errorf("%s: it is %v there, and %v here", id, got, time.Now())
	}
}

// Files alone: nobody sees that the source was forked, and the children begin anew.
func testForkFiles(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	u.write(id, "/etc/machine-id", strings.Repeat("b", 32)+"\n")
	for _, path := range []string{"/workspace/f", "/tmp/f", "/usr/local/f"} {
		u.write(id, path, "kept")
	}
	stream := u.attach(id, u.start(id, "sh", "-c", "while :; do echo tick; sleep 0.1; done"), 0)
	defer stream.Close()
	children := u.fork(id, client.ForkRequest{Count: new(2)})
	if _, err := stream.Next(); err != nil {
		t.Errorf("the stream of a source that is forked: %v", err)
	}
	u.wantExec(id, py, "x + 1", "42")
	u.write(id, "/workspace/f", "the source's")
	u.resumeAll(children)
	u.write(children[0], "/workspace/f", "the first's")
	for i, child := range children {
		for path, want := range map[string]string{"/workspace/f": []string{"the first's", "kept"}[i], "/tmp/f": "kept", "/usr/local/f": "kept"} {
			if got := u.read(child, path); got != want {
				t.Errorf("child %d: %s holds %q, want %q", i, path, got, want)
			}
		}
		if machine := u.read(child, "/etc/machine-id"); machine == strings.Repeat("b", 32)+"\n" {
			t.Errorf("child %d has its source's machine id", i)
		}
		if c := u.run(child, "pgrep", "-fc", "echo tick"); strings.TrimSpace(*c.Stdout) == "1" {
			t.Errorf("child %d has its source's processes", i)
		}
	}
	s.CheckOwned()
}

// Children of a paused sandbox share its image, and outlive it.
func testForkPaused(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	u.wantExec(id, py, "x = 41", "")
	u.write(id, "/workspace/f", "kept")
	u.pause(id)
	whole := u.fork(id, client.ForkRequest{})[0]
	files := u.fork(id, client.ForkRequest{Config: &client.ForkConfig{Memory: new(false), TTL: new(int32(600))}})[0]
	grand := u.fork(whole, client.ForkRequest{})[0]
	if _, err := u.c.ForkSandbox(u.ctx(), files, client.ForkRequest{Config: &client.ForkConfig{Memory: new(true)}}); !isStatus(err, 409) {
		t.Errorf("memory of what has none: %v", err)
	}
	if sb := u.status(id); !sb.Paused || sb.RuntimeGeneration != 1 {
		t.Errorf("the source: %+v", sb)
	}
	u.remove(id)
	for _, child := range []string{whole, grand} { // any request wakes them
		u.wantExec(child, py, "x + 1", "42")
	}
	if got := u.read(files, "/workspace/f"); got != "kept" {
		t.Errorf("/workspace/f holds %q", got)
	}
	for id, want := range map[string]bool{whole: false, files: true} {
		if sb := u.status(id); sb.ExpiresAt.IsZero() == want {
			t.Errorf("%s expires %v", id, sb.ExpiresAt)
		}
	}
	s.CheckOwned()
}
