package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestContexts is what runs in a sandbox and what it prints, from gVisor to the
// client.
func TestContexts(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 2})
	t.Run("output", func(t *testing.T) { testOutput(t, s) })
	t.Run("custom REPL", func(t *testing.T) { testCustomREPL(t, s) })
	t.Run("error codes", func(t *testing.T) { testContextErrors(t, s) })
	t.Run("B12: out of reach", func(t *testing.T) { testProcdIsOutOfReach(t, s) })
	t.Run("deadlines", func(t *testing.T) { testDeadlines(t, s) })
	t.Run("stalled input", func(t *testing.T) { testStalledInput(t, s) })
	t.Run("restarts", func(t *testing.T) { testContextsOutliveRestarts(t, s) })
}

// start starts a command and does not wait for it.
func (u *user) start(id string, argv ...string) (contextID string) {
	u.t.Helper()
	c, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: argv}})
	return must(u, "starting "+strings.Join(argv, " "), c, err).ID
}

// followed is what an attached reader saw.
type followed struct {
	out  [sha256.Size]byte // of stdout
	size int
	lost int64
	exit client.Exit
	err  error // io.EOF after the server's orderly goodbye
}

func follow(s *client.Stream) (f followed) {
	h := sha256.New()
	for {
		e, err := s.Next()
		if err != nil {
			f.out, f.err = [sha256.Size]byte(h.Sum(nil)), err
			return f
		}
		switch e := e.(type) {
		case client.Output:
			io.WriteString(h, e.Data)
			f.size += len(e.Data)
		case client.Gap:
			f.lost += e.LostBytes
		case client.Exit:
			f.exit = e
		}
	}
}

func (u *user) attach(id, contextID string, offset uint64) *client.Stream {
	u.t.Helper()
	s, err := u.c.AttachAt(u.ctx(), id, contextID, offset)
	must(u, "attaching to "+contextID, s, err)
	u.t.Cleanup(func() { s.Close() })
	return s
}

func testOutput(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	const line, lines = "0123456789abcdefghijklmnopqrstuvwxyz\n", 600_000
	want := sha256.Sum256([]byte(strings.Repeat(line, lines)))
	whole := func(t *testing.T, f followed) {
		t.Helper()
		if f.size != len(line)*lines || f.out != want || f.lost != 0 || !errors.Is(f.err, io.EOF) {
			t.Errorf("%d bytes, %d lost, ended with %v; want %d bytes, each as it was printed", f.size, f.lost, f.err, len(line)*lines)
		}
		if f.exit != (client.Exit{Code: 0, State: client.ContextStateStopped}) {
			t.Errorf("exit %+v", f.exit)
		}
	}
	fast := fmt.Sprintf("yes %s | head -n %d", strings.TrimSpace(line), lines)
	t.Run("B08: a fast command's is complete, for two readers", func(t *testing.T) {
		c := u.start(id, "sh", "-c", "echo ready; read go; "+fast)
		// Both are there before there is more than they read ahead: who comes then is late.
		streams := []*client.Stream{u.attach(id, c, 0), u.attach(id, c, 0)}
		for _, stream := range streams {
			if e, err := stream.Next(); err != nil || e != (client.Output{Source: "stdout", Data: "ready\n"}) {
				t.Fatalf("the first line is %+v, %v", e, err)
			}
		}
		must(u, "asking for the rest", c, u.c.WriteContextInput(u.ctx(), id, c, "\n"))
		var readers sync.WaitGroup
		for _, stream := range streams {
			readers.Go(func() { whole(t, follow(stream)) })
		}
		readers.Wait()
	})
	t.Run("a late reader gets the history, the end, and a goodbye", func(t *testing.T) {
		c := u.start(id, "sh", "-c", "printf 'a line\\n'; printf 'an error\\n' >&2; exit 3")
		u.await(id, c)
		for range 2 {
			var stdout, stderr bytes.Buffer
			stream := u.attach(id, c, 0)
			exit, err := stream.Copy(&stdout, &stderr)
			if err != nil || stdout.String() != "a line\n" || stderr.String() != "an error\n" || exit.Code != 3 || exit.State != client.ContextStateCrashed {
				t.Errorf("stdout %q, stderr %q, %+v, %v", &stdout, &stderr, exit, err)
			}
			if _, err := stream.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %v, want close 1000", err)
			}
		}
		if f := follow(u.attach(id, c, 7)); f.size != len("an error\n") {
			t.Errorf("from offset 7 there are %d bytes", f.size)
		}
	})
	t.Run("B08: a late reader of a long one is told what is gone", func(t *testing.T) {
		c := u.start(id, "sh", "-c", fast)
		u.await(id, c) // nobody comes for as long as a place is kept
		f := follow(u.attach(id, c, 0))
		if f.lost == 0 || int64(f.size)+f.lost != int64(len(line)*lines) || f.size < 4<<20 {
			t.Errorf("%d bytes and %d lost of %d", f.size, f.lost, len(line)*lines)
		}
	})
	t.Run("B09: a child that keeps stdout does not hide the end", func(t *testing.T) {
		f := follow(u.attach(id, u.start(id, "sh", "-c", "sleep 1000 & echo hi"), 0))
		if f.size != 3 || !errors.Is(f.err, io.EOF) || f.exit.State != client.ContextStateStopped {
			t.Errorf("%+v", f)
		}
	})
	t.Run("an unknown context is told on the socket", func(t *testing.T) {
		_, err := u.attach(id, "ctx-00000000", 0).Next()
		if err == nil || !strings.Contains(err.Error(), "context not found") {
			t.Errorf("%v", err)
		}
	})
}

// await waits until a context's process has ended.
func (u *user) await(id, contextID string) {
	u.t.Helper()
	u.stack.Eventually("the end of "+contextID, func() error {
		c, err := u.c.GetContext(u.ctx(), id, contextID)
		if err == nil && c.ExitCode == nil {
			return errors.New("it runs")
		}
		return err
	})
}

func ptr[T any](v T) *T { return &v }

func testCustomREPL(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	mode := client.REPLReadyMode("prompt_token")
	c, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{Type: client.ContextTypeREPL, REPL: &client.REPLRequest{REPLConfig: &client.REPLConfig{
		Name: "calc", DefaultTerm: ptr("dumb"), Prompt: &client.REPLPrompt{CustomPrompt: ptr("calc> ")},
		Candidates: []client.REPLCandidate{{Name: "no-such-program"}, {Name: "python3", Args: []string{"-q", "-i", "-u", "-c",
			"import os, sys; sys.ps1 = os.environ['PROMPT']; print('welcome to', os.environ['TERM'], os.environ['KIND'])"}}},
		Env:   []client.REPLEnvVar{{Name: "PROMPT", ValueFrom: ptr("prompt")}, {Name: "KIND", ValueFrom: ptr("term")}},
		Ready: &client.REPLReady{Mode: &mode, Token: ptr("welcome to dumb dumb")},
	}}})
	must(u, "starting a REPL of our own", c, err)
	if c.Alias == nil || *c.Alias != "calc" {
		t.Errorf("alias %v", c.Alias)
	}
	u.wantExec(id, c.ID, "6 * 7", "42")
	again, err := u.c.RestartContext(u.ctx(), id, c.ID)
	if must(u, "restarting", again, err).ID != c.ID || !again.Running {
		t.Errorf("restarted as %+v", again)
	}
	u.wantExec(id, c.ID, "'x' in globals()", "False")
	stats, err := u.c.ContextStats(u.ctx(), id, c.ID)
	must(u, "stats", stats, err)
	if use := stats.Usage; use == nil || *use.Processes < 1 || *use.MemoryRss == 0 || *stats.Alias != "calc" || !*stats.Running {
		t.Errorf("stats %+v", stats)
	}
	for alias, want := range map[string]string{"python3": "python", "javascript": "node", "nodejs": "node", "bash": "bash", "sqlite": "sqlite"} {
		c, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{Type: client.ContextTypeREPL, REPL: &client.REPLRequest{Alias: &alias}})
		if err != nil || c.Alias == nil || *c.Alias != want {
			t.Errorf("alias %s: %+v, %v; want %s", alias, c, err, want)
		}
	}
}

// testContextErrors meets every code of the contract that a client can cause.
func testContextErrors(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	running, over, silent := u.start(id, "sleep", "1000"), u.start(id, "true"), u.start(id, "sleep", "1000")
	u.await(id, over)
	repl := u.python(id)
	u.exec(id, repl, "1")
	must(u, "stopping the REPL", 0, u.c.SignalContext(u.ctx(), id, repl, "STOP"))
	u.stack.Eventually("the REPL to be paused", func() error {
		if c, err := u.c.GetContext(u.ctx(), id, repl); err != nil || !c.Paused || *c.State != client.ContextStatePaused {
			return fmt.Errorf("%+v, %w", c, err)
		}
		return nil
	})
	exec := func(contextID, data string) error {
		_, err := u.c.ExecContext(u.ctx(), id, contextID, data)
		return err
	}
	flood := func() (err error) {
		for range 20 {
			if err = u.c.WriteContextInput(u.ctx(), id, running, strings.Repeat("x", 1<<19)); err != nil {
				return err
			}
		}
		return nil
	}
	for what, c := range map[string]struct {
		err    error
		status int
		code   string
	}{
		"unknown":             {exec("ctx-00000000", "x"), 404, "context_not_found"},
		"B11: input after":    {u.c.WriteContextInput(u.ctx(), id, over, "x"), 410, "process_finished"},
		"exec after":          {exec(over, "x"), 410, "process_finished"},
		"paused":              {exec(repl, "1"), 409, "process_not_running"},
		"B11: no terminal":    {u.c.ResizeContext(u.ctx(), id, running, client.PTYSize{Rows: 1, Cols: 1}), 409, "pty_unavailable"},
		"full":                {flood(), 409, "input_buffer_full"},
		"late":                {u.execWithin(time.Second, id, silent, "x\n"), 408, "exec_timeout"},
		"B11: unknown signal": {u.c.SignalContext(u.ctx(), id, running, "NOPE"), 400, "invalid_request"},
		"signal after":        {u.c.SignalContext(u.ctx(), id, over, "TERM"), 410, "process_finished"},
		"delete unknown":      {u.c.DeleteContext(u.ctx(), id, "ctx-00000000"), 404, "context_not_found"},
	} {
		var e *client.APIError
		if !errors.As(c.err, &e) || e.StatusCode != c.status || e.Code != c.code {
			t.Errorf("%s: %v, want %d %s", what, c.err, c.status, c.code)
		}
	}
}

// attackProcd tries what one process can do to another of the same user, and then
// to fill the process table with daemons that nobody waits for.
const attackProcd = `
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
ATTACH, SEIZE = 16, 0x4206
for request in ATTACH, SEIZE:
    if libc.ptrace(request, 1, 0, 0) == 0:
        print('procd was traced')
try:
    os.close(os.open('/proc/1/mem', os.O_RDWR))
    print("procd's memory was opened")
except OSError:
    pass
for i in range(300):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
def zombies():
    n = 0
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            n += open('/proc/%s/stat' % pid).read().rsplit(')', 1)[1].split()[0] == 'Z'
        except OSError:
            pass
    return n
deadline = time.time() + 10
left = zombies()
while left and time.time() < deadline: # the last daemons may just be ending
    time.sleep(0.01)
    left = zombies()
print(left, 'zombies')
`

func testProcdIsOutOfReach(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	if c := u.run(id, "python3", "-c", attackProcd); c.Stdout == nil || *c.Stdout != "0 zombies\n" {
		t.Errorf("the attack printed %+v", c)
	}
	if c := u.run(id, "echo", "alive"); c.Stdout == nil || *c.Stdout != "alive\n" {
		t.Errorf("afterwards: %+v", c)
	}
}

// testDeadlines: a request waits as long as its client says, and its process
// goes on when it gives up.
func testDeadlines(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	long := make(chan *client.ContextResponse, 1)
	go func() {
		wait := true
		c, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{
			Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"sh", "-c", "sleep 32; echo patience"}}, WaitUntilDone: &wait,
		})
		if err != nil {
			t.Errorf("a command of 32 s, with %s to wait: %v", patience, err)
		}
		long <- c
	}()
	repl := u.python(id)
	u.exec(id, repl, "import time")
	if err := u.execWithin(2*time.Second, id, repl, "time.sleep(4); print('after all')"); !isStatus(err, 408) {
		t.Errorf("an exec of 4 s, with 2 to wait: %v, want 408", err)
	}
	if got := u.exec(id, repl, "1 + 1"); !strings.HasSuffix(got, "2") { // when it is done with the first
		t.Errorf("after an exec that took too long there is %q", got)
	}
	if c := <-long; c != nil && (c.Stdout == nil || *c.Stdout != "patience\n") {
		t.Errorf("the long command left %+v", c)
	}
}

// execWithin has the server wait so long for a process, and waits longer for its answer.
func (u *user) execWithin(wait time.Duration, id, contextID, data string) error {
	u.t.Helper()
	body, err := json.Marshal(client.ContextExecRequest{Data: data})
	must(u, "encoding", body, err)
	req, err := http.NewRequestWithContext(u.ctx(), http.MethodPost, u.stack.URL+"/api/v1/sandboxes/"+id+"/contexts/"+contextID+"/exec", bytes.NewReader(body))
	must(u, "a request", req, err)
	req.Header = http.Header{"Authorization": {"Bearer " + u.stack.Key()}, "Content-Type": {"application/json"}, "Request-Timeout": {fmt.Sprint(wait.Seconds())}}
	resp, err := http.DefaultClient.Do(req)
	must(u, "asking", resp, err)
	defer resp.Body.Close()
	var refused struct {
		Error struct{ Code, Message string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&refused); err != nil || resp.StatusCode == http.StatusOK {
		return err
	}
	return &client.APIError{StatusCode: resp.StatusCode, Code: refused.Error.Code, Message: refused.Error.Message}
}

// testStalledInput: a process that does not read its input stops nobody else.
func testStalledInput(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	deaf, other := u.claim(), u.claim()
	repl := u.python(other)
	u.exec(other, repl, "x = 1")
	var streams []*client.Stream
	var writers sync.WaitGroup
	stalled := make(chan struct{}, 4)
	for range cap(stalled) {
		stream := u.attach(deaf, u.start(deaf, "sleep", "1000"), 0)
		streams = append(streams, stream)
		writers.Go(func() {
			piece := []byte(strings.Repeat("x", 256<<10))
			for n := 0; n < 64; n++ {
				if n == 16 { // more than the process's queue and any window on the way
					stalled <- struct{}{}
				}
				if _, err := stream.Write(piece); err != nil {
					return
				}
			}
		})
	}
	for range cap(stalled) {
		<-stalled
	}
	for range 5 {
		res, err := u.c.ExecContext(u.ctx(), other, repl, "x + 1"+strings.Repeat(" ", 100_000))
		if err != nil || !strings.HasSuffix(strings.TrimSpace(res.OutputRaw), "2") {
			t.Errorf("beside input that stalls: %+v, %v", res, err)
		}
	}
	for _, s := range streams {
		s.Close()
	}
	writers.Wait()
}

// testContextsOutliveRestarts: a process lives through the end of its reader, a
// crash and an orderly restart of the API server and of noded, and a reader that
// comes back where it was misses nothing.
func testContextsOutliveRestarts(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	// A line in about 2 ms; it ends when it is told to.
	c := u.start(id, "python3", "-u", "-c", `
import os, time
i = 0
while not os.path.exists('/tmp/enough'):
    print(i)
    i += 1
    time.sleep(0.002)
print('end')`)
	var seen bytes.Buffer
	offset := uint64(0)
	read := func(what string, until func() bool) {
		t.Helper()
		stream := u.attach(id, c, offset)
		defer stream.Close()
		for !until() {
			e, err := stream.Next()
			if err != nil {
				t.Logf("%s: the stream ended at %d: %v", what, stream.Offset(), err)
				break
			}
			switch e := e.(type) {
			case client.Output:
				seen.WriteString(e.Data)
			case client.Gap:
				t.Fatalf("%s: %d bytes were lost", what, e.LostBytes)
			}
		}
		offset = stream.Offset()
	}
	more := func() func() bool {
		want := seen.Len() + 1000
		return func() bool { return seen.Len() >= want }
	}
	read("at first", more())
	read("after the client's end", more())
	for what, restart := range map[string]func(){
		"a crash":            func() { s.Kill(); s.Up() },
		"an orderly restart": func() { s.Down(true); s.Up() },
	} {
		var restarted sync.WaitGroup
		defer restarted.Wait() // a test that failed must not stop a server that just starts
		once := sync.OnceFunc(func() { restarted.Go(restart) })
		read("during "+what, func() bool { once(); return false }) // to the stream's end
		restarted.Wait()
		u.stack.Eventually("the sandbox to answer after "+what, func() error {
			_, err := u.c.GetContext(u.ctx(), id, c)
			return err
		})
		read("after "+what, more())
	}
	u.write(id, "/tmp/enough", "")
	read("to the end", func() bool { return false })
	lines := strings.Split(strings.TrimSpace(seen.String()), "\n")
	for i, line := range lines[:len(lines)-1] {
		if line != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	if last := lines[len(lines)-1]; last != "end" || len(lines) < 200 {
		t.Errorf("%d lines, the last %q", len(lines), last)
	}
}
