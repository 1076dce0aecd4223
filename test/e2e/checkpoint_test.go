package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// testCheckpoints: what a sandbox may be doing when it is saved. Files without a name,
// background children and listening servers are in testPauseKeepsEverything, a full
// disk in testPauseWithAFullDisk.
func testCheckpoints(t *testing.T, s *s0test.Stack) {
	t.Run("a live exec", func(t *testing.T) { testPauseDuringExec(t, s) })
	t.Run("an open WebSocket", func(t *testing.T) { testPauseUnderAWebSocket(t, s) })
	t.Run("hundreds of threads", func(t *testing.T) { testPauseOfManyThreads(t, s) })
	t.Run("little memory left", func(t *testing.T) { testPauseUnderMemoryPressure(t, s) })
}

// testPauseDuringExec: who waits for a command or a REPL is told at once that the
// sandbox went to sleep; both go on when it wakes up.
func testPauseDuringExec(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	py := u.python(id)
	const wait = "until [ -e /tmp/go ]; do sleep 0.02; done; "
	calls := make(chan error, 2)
	go func() {
		_, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{
			Type: client.ContextTypeCMD, WaitUntilDone: ptr(true),
			CMD: &client.CMDRequest{Command: []string{"sh", "-c", "touch /tmp/cmd; " + wait + "echo woke >/tmp/out"}},
		})
		calls <- err
	}()
	go func() {
		_, err := u.c.ExecContext(u.ctx(), id, py, `import os; x = os.system("touch /tmp/repl; `+wait+`") + 41`)
		calls <- err
	}()
	for _, started := range []string{"/tmp/cmd", "/tmp/repl"} {
		s.Eventually("both to run", func() error { _, err := u.c.StatFile(u.ctx(), id, started); return err })
	}
	u.pause(id)
	for range cap(calls) {
		if err := <-calls; !isStatus(err, 502) && !isStatus(err, 503) {
			t.Errorf("a call that a pause cuts off: %v", err)
		}
	}
	if sb := u.status(id); !sb.Paused {
		t.Errorf("the calls have woken it up: it is %s", sb.Status)
	}
	u.write(id, "/tmp/go", "") // wakes it
	s.Eventually("the command to end", func() error {
		r, err := u.c.ReadFile(u.ctx(), id, "/tmp/out")
		if err == nil {
			r.Close()
		}
		return err
	})
	s.Eventually("the REPL to be free", func() error {
		res, err := u.c.ExecContext(u.ctx(), id, py, "x + 1")
		if err == nil && !strings.Contains(res.OutputRaw, "42") {
			err = fmt.Errorf("it printed %q", res.OutputRaw)
		}
		return err
	})
}

// testPauseUnderAWebSocket: it is closed with 1012, and whoever attaches again at his
// offset has every byte once.
func testPauseUnderAWebSocket(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	counter := u.start(id, "sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done")
	var out strings.Builder
	lines := func(stream *client.Stream, n int) error {
		for strings.Count(out.String(), "\n") < n {
			e, err := stream.Next()
			if err != nil {
				return err
			}
			switch e := e.(type) {
			case client.Output:
				out.WriteString(e.Data)
			default:
				t.Fatalf("the stream says %+v", e)
			}
		}
		return nil
	}
	stream := u.attach(id, counter, 0)
	if err := lines(stream, 5); err != nil {
		t.Fatal(err)
	}
	u.pause(id)
	err := lines(stream, 1<<30)
	if closed := (*client.ClosedError)(nil); !errors.As(err, &closed) || closed.Code != 1012 || errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v, want it closed with 1012", err)
	}
	seen := strings.Count(out.String(), "\n")
	stream = u.attach(id, counter, stream.Offset()) // wakes it
	if err := lines(stream, seen+5); err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		if line != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

// manyThreads is as large as a browser: 8 processes of 50 threads, all of them asleep in
// the kernel, pages that all share, and 500 mappings in each.
const manyThreads = `
import mmap, os, threading, time
processes, threads = 8, 50
shared = mmap.mmap(-1, processes * threads)
private = [mmap.mmap(-1, 65536) for _ in range(500)]
for i, m in enumerate(private):
    m[:4] = i.to_bytes(4, "big")

def child(p):
    go, ready = threading.Event(), threading.Barrier(threads + 1)
    def work(t):
        ready.wait()
        go.wait()
        shared[p * threads + t] = p + 1
    for t in range(threads):
        threading.Thread(target=work, args=(t,)).start()
    ready.wait()
    open(f"/tmp/ready{p}", "w").close()
    while not os.path.exists("/tmp/go"):
        time.sleep(0.05)
    go.set()

children = []
for p in range(processes):
    pid = os.fork()
    if pid == 0:
        child(p)
        for t in threading.enumerate():
            if t is not threading.current_thread():
                t.join()
        os._exit(0)
    children.append(pid)
ended = [os.waitpid(pid, 0)[1] for pid in children]
intact = all(m[:4] == i.to_bytes(4, "big") for i, m in enumerate(private))
with open("/tmp/result", "w") as f:
    print(sum(ended), sum(shared[:]), intact, file=f)
`

func testPauseOfManyThreads(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	u.write(id, "/tmp/many.py", manyThreads)
	many := u.start(id, "python3", "/tmp/many.py")
	for p := range 8 {
		s.Eventually("all threads to run", func() error { _, err := u.c.StatFile(u.ctx(), id, fmt.Sprint("/tmp/ready", p)); return err })
	}
	u.pause(id)
	u.write(id, "/tmp/go", "")
	u.await(id, many)
	if got := u.read(id, "/tmp/result"); got != "0 1800 True\n" {
		t.Errorf("the threads left %q", got)
	}
}

// testPauseUnderMemoryPressure: a sandbox that has used nearly all of its memory is
// saved within that and restored within that.
func testPauseUnderMemoryPressure(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	_, err := u.c.UpdateSandbox(u.ctx(), id, client.SandboxUpdateConfig{Resources: &client.SandboxResources{Memory: ptr("256Mi")}})
	must(u, "limiting the memory", 0, err)
	py := u.python(id)
	u.wantExec(id, py, "import hashlib, os; held = os.urandom(170 << 20); sum = hashlib.sha256(held).digest()", "")
	u.pause(id)
	u.wantExec(id, py, "hashlib.sha256(held).digest() == sum", "True")
	u.pause(id)
	u.wantExec(id, py, "held = held[:1 << 20] + held[1 << 20:2 << 20]; len(held)", fmt.Sprint(2<<20))
	if sb := u.status(id); sb.RuntimeGeneration != 3 {
		t.Errorf("generation %d", sb.RuntimeGeneration)
	}
}
