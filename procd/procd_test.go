package procd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/proctest"
)

// All tests share one procd, for a process has one reaper; each has what it makes.
var (
	shared struct {
		dir  string
		node *proctest.Node
	}
	reconnect sync.RWMutex // held for writing by tests that cut the connection
	current   *proctest.Conn
)

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	dir, err := os.MkdirTemp("", "procd")
	if err != nil {
		panic(err)
	}
	shared.dir = dir
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		ended <- Run(ctx, Config{
			Version: "test", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Socket: socket(), Workspace: filepath.Join(dir, "workspace"),
		})
	}()
	code := m.Run()
	cancel()
	if err := <-ended; err != nil {
		panic(err)
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

func socket() string { return filepath.Join(shared.dir, "node.sock") }

// connect returns the connection that tests share.
func connect(t testing.TB) *proctest.Conn {
	t.Helper()
	reconnect.RLock()
	t.Cleanup(reconnect.RUnlock)
	return sharedConn(t)
}

var connecting sync.Mutex

func sharedConn(t testing.TB) *proctest.Conn {
	t.Helper()
	connecting.Lock()
	defer connecting.Unlock()
	if current == nil {
		redial(t)
	}
	return current
}

// redial listens anew and waits for procd. The listener and the connection outlive
// the test that needed them first.
func redial(t testing.TB) {
	t.Helper()
	_ = os.Remove(socket())
	forever := &unowned{TB: t}
	shared.node = proctest.Listen(forever, socket())
	current = shared.node.Accept(forever)
}

// unowned is a test whose cleanups are left to the end of the process.
type unowned struct{ testing.TB }

func (*unowned) Cleanup(func()) {}

func sh(script string) procapi.CreateContext {
	return procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: []string{"sh", "-c", script}}}
}

func create(t testing.TB, c *proctest.Conn, req procapi.CreateContext) procapi.Context {
	t.Helper()
	var out procapi.Context
	c.Call(t, "POST", procapi.PathContexts, req, &out)
	t.Cleanup(func() { c.Raw(t, "DELETE", at(out.ID, ""), "") })
	return out
}

func at(id, call string) string { return procapi.PathContexts + "/" + id + call }

func TestHello(t *testing.T) {
	t.Parallel()
	c := connect(t)
	var a, b procapi.Hello
	c.Call(t, "GET", procapi.PathHello, nil, &a)
	c.Call(t, "GET", procapi.PathHello, nil, &b)
	if a != b || !a.Ready || a.Version != "test" || len(a.BootID) != 32 {
		t.Errorf("hello: %+v, then %+v", a, b)
	}
}

func TestContextCalls(t *testing.T) {
	t.Parallel()
	c := connect(t)
	repl := create(t, c, procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "python"}})
	exec := func(code string) (res procapi.ExecResult) {
		t.Helper()
		c.Call(t, "POST", at(repl.ID, "/exec"), procapi.ExecRequest{Data: code}, &res)
		return res
	}
	if res := exec("x = 41"); res.OutputRaw != "x = 41\r\n" {
		t.Errorf("exec: %+v", res)
	}
	if res := exec("print(x + 1)"); res.OutputRaw != "print(x + 1)\r\n42\r\n" {
		t.Errorf("exec: %+v", res)
	}
	var list procapi.ContextList
	c.Call(t, "GET", procapi.PathContexts, nil, &list)
	found := false
	for _, e := range list.Contexts {
		found = found || e.ID == repl.ID && e.Running && e.Type == "repl" && e.EnvVars != nil
	}
	if !found {
		t.Errorf("%s is not in the list %+v", repl.ID, list)
	}
	for _, call := range []struct {
		path string
		in   any
		want string
	}{
		{"/input", procapi.ExecRequest{Data: "y = 2\n"}, "written"},
		{"/resize", procapi.PTYSize{Rows: 10, Cols: 200}, "resized"},
		{"/signal", procapi.SignalRequest{Signal: "SIGCONT"}, "signaled"},
	} {
		var answer map[string]bool
		c.Call(t, "POST", at(repl.ID, call.path), call.in, &answer)
		if len(answer) != 1 || !answer[call.want] {
			t.Errorf("%s answered %v", call.path, answer)
		}
	}
	if res := exec("y"); !strings.HasSuffix(res.OutputRaw, "2\r\n") {
		t.Errorf("after input: %+v", res)
	}
	var stats procapi.ContextStats
	c.Call(t, "GET", at(repl.ID, "/stats"), nil, &stats)
	if stats.PID == 0 || stats.Processes != 1 || stats.RSSBytes == 0 {
		t.Errorf("stats: %+v", stats)
	}
	var again procapi.Context
	c.Call(t, "POST", at(repl.ID, "/restart"), nil, &again)
	if again.ID != repl.ID || !again.Running {
		t.Errorf("restart: %+v", again)
	}
	if res := exec("'x' in globals()"); !strings.HasSuffix(res.OutputRaw, "\r\nFalse\r\n") {
		t.Errorf("after a restart: %+v", res)
	}
	c.Call(t, "DELETE", at(repl.ID, ""), nil, nil)
	if status, e := c.Refused(t, "GET", at(repl.ID, ""), nil); status != 404 || e.Code != "context_not_found" {
		t.Errorf("after the deletion: %d %+v", status, e)
	}
}

func TestWaitHonoursTheRequestsTime(t *testing.T) {
	t.Parallel()
	c := connect(t)
	req := sh("sleep 1000")
	req.WaitUntilDone = true
	if status, e := c.RefusedIn(t, "100", "POST", procapi.PathContexts, req); status != 408 || e.Code != "exec_timeout" {
		t.Errorf("status %d, %+v", status, e)
	}
	for _, ms := range []string{"0", "-1", "1s", "99999999999"} {
		if status, e := c.RefusedIn(t, ms, "POST", procapi.PathContexts, req); status != 400 || e.Code != "invalid_request" {
			t.Errorf("%s: status %d, %+v", ms, status, e)
		}
	}
}

func TestA08_StrictBodies(t *testing.T) {
	t.Parallel()
	c := connect(t)
	for body, text := range map[string]string{
		``:                                      "JSON is required",
		`{`:                                     "ends too early",
		`nonsense`:                              "not valid JSON",
		`[]`:                                    "want an object",
		`"cmd"`:                                 "want an object",
		`{"type":"cmd"} {}`:                     "something follows",
		`{"type":"cmd","x":1}`:                  `unknown field "x"`,
		`{"Type":"cmd"}`:                        `unknown field "Type"`,
		`{"type":1}`:                            "type: want a string, got number",
		`{"type":"cmd","cmd":[]}`:               "want an object",
		`{"type":"cmd","cmd":{"command":"ls"}}`: "cmd.command: want an array, got string",
		`{"type":"cmd","cmd":{"command":["a"],"command":[]}}`:        `"command" appears twice`,
		`{"type":"cmd","env_vars":{"A":"1","A":"2"}}`:                `"A" appears twice`,
		`{"type":"cmd","ttl_sec":1e99}`:                              "ttl_sec: want a number",
		`{"type":"cmd","ttl_sec":1.5}`:                               "ttl_sec: want a number",
		`{"type":"cmd","pty_size":{"rows":65536,"cols":1}}`:          "rows: want a number that fits uint16",
		"{\"type\":\"\xff\"}":                                        "UTF-8",
		strings.Repeat(`{"repl":`, 1000) + strings.Repeat("}", 1000): "unknown field",
		`{"env_vars":` + strings.Repeat("[", 1000):                   "nested",
	} {
		status, e := c.Refused(t, "POST", procapi.PathContexts, body)
		if status != 400 || e.Code != "invalid_request" || !strings.Contains(e.Message, text) {
			t.Errorf("%.60q: %d %+v, want a 400 with %q", body, status, e, text)
		}
	}
	huge := `{"type":"` + strings.Repeat("x", procapi.MaxJSONBytes) + `"}`
	if status, e := c.Refused(t, "POST", procapi.PathContexts, huge); status != 400 || !strings.Contains(e.Message, "more than") {
		t.Errorf("huge body: %d %+v", status, e)
	}
	for _, path := range []string{"/", "/nope", "/contexts/x/y/z", "/contexts/x/nope", "/files/nope"} {
		if status, e := c.Refused(t, "POST", path, "{}"); status != 404 || e.Code != "not_found" {
			t.Errorf("POST %s: %d %+v", path, status, e)
		}
	}
}

var generations atomic.Uint64 // one procd serves all runs of a test

func TestInit(t *testing.T) {
	t.Parallel()
	c := connect(t)
	show := sh("echo $TENANT")
	show.WaitUntilDone = true
	expect := func(want string) {
		t.Helper()
		if out := create(t, c, show); *out.Stdout != want+"\n" {
			t.Errorf("TENANT is %q, want %q", *out.Stdout, want)
		}
	}
	base := generations.Add(10)
	apply := func(gen uint64, value string) procapi.Init {
		return procapi.Init{SandboxID: "s0-test", Generation: base + gen, Hostname: "box", Env: map[string]string{"TENANT": value}}
	}
	expect("")
	c.Call(t, "POST", procapi.PathInit, apply(3, "three"), nil)
	expect("three")
	c.Call(t, "POST", procapi.PathInit, apply(3, "repeated"), nil) // changes nothing
	expect("three")
	if status, e := c.Refused(t, "POST", procapi.PathInit, apply(2, "stale")); status != 409 || e.Code != "conflict" {
		t.Errorf("an older generation: %d %+v", status, e)
	}
	c.Call(t, "POST", procapi.PathInit, apply(4, "four"), nil)
	expect("four")
	c.Call(t, "PUT", procapi.PathEnv, procapi.Env{Env: map[string]string{"TENANT": "changed"}}, nil)
	expect("changed")
	c.Call(t, "PUT", procapi.PathEnv, procapi.Env{}, nil)
	expect("")
	for name, in := range map[string]procapi.Init{
		"no id": {Generation: 1 << 60}, "no generation": {SandboxID: "x"}, "long name": {SandboxID: "x", Generation: 1 << 60, Hostname: strings.Repeat("x", 65)},
		"bad env": {SandboxID: "x", Generation: 1 << 60, Env: map[string]string{"A=": ""}},
	} {
		if status, e := c.Refused(t, "POST", procapi.PathInit, in); status != 400 {
			t.Errorf("%s: %d %+v", name, status, e)
		}
	}
}

func TestAttachReplaysAndFollows(t *testing.T) {
	t.Parallel()
	c := connect(t)
	ctx := create(t, c, sh("echo one; echo err >&2; read x; echo got $x; exit 5"))
	first := c.Attach(t, ctx.ID, "")
	first.Until(t, func(e *proctest.Ended, _ byte) bool {
		return e.Out[procapi.FrameStderr] != "" && e.Out[procapi.FrameStdout] != ""
	})
	late := c.Attach(t, ctx.ID, "?offset=0")
	first.Input(t, "", "it\n")
	for name, s := range map[string]*proctest.Stream{"first": first, "late": late} {
		e := s.ToEnd(t)
		if !strings.HasSuffix(e.Out[procapi.FrameStdout], "got it\n") || e.Exit != (procapi.Exit{ExitCode: 5, State: "crashed"}) {
			t.Errorf("%s: %+v", name, e)
		}
	}
	after := c.Attach(t, ctx.ID, "").ToEnd(t)
	if after.Out[procapi.FrameStdout] != "one\ngot it\n" || after.Out[procapi.FrameStderr] != "err\n" || after.Exit.ExitCode != 5 {
		t.Errorf("after the end: %+v", after)
	}
	part := c.Attach(t, ctx.ID, fmt.Sprintf("?offset=%d", after.Next-3)).ToEnd(t)
	if part.Out[procapi.FrameStdout] != "it\n" {
		t.Errorf("from an offset: %+v", part)
	}
	for _, query := range []string{"?offset=x", "?offset=-1", "?offset=1&offset=2"} {
		if status, _ := c.Refused(t, "POST", at(ctx.ID, "/attach"+query), ""); status != 400 {
			t.Errorf("%s: status %d", query, status)
		}
	}
	if status, e := c.Refused(t, "POST", at("ctx-00000000", "/attach"), ""); status != 404 || e.Code != "context_not_found" {
		t.Errorf("unknown context: %d %+v", status, e)
	}
}

func TestAttachToAREPL(t *testing.T) {
	t.Parallel()
	c := connect(t)
	ctx := create(t, c, procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "python"}})
	s := c.Attach(t, ctx.ID, "")
	s.Input(t, "first", "print(40 + 2)\n") // before it is ready
	e := s.Until(t, func(e *proctest.Ended, _ byte) bool { return len(e.Prompts) == 1 })
	if e.Prompts[0] != "first" || !strings.HasSuffix(e.Out[procapi.FramePTY], "print(40 + 2)\r\n42\r\n_S0_> ") {
		t.Errorf("first: %+v", e)
	}
	s.Input(t, "", "1\n")
	s.Input(t, "last", "import time; time.sleep(0.3)\n")
	e = s.Until(t, func(e *proctest.Ended, _ byte) bool { return len(e.Prompts) == 2 })
	if e.Prompts[0] != "" || e.Prompts[1] != "last" {
		t.Errorf("prompts %q", e.Prompts)
	}
	s.Send(t, procapi.FrameResize, []byte(`{"rows":33,"cols":99}`))
	s.Input(t, "size", "import os; os.get_terminal_size()\n")
	e = s.Until(t, func(e *proctest.Ended, _ byte) bool { return len(e.Prompts) == 1 })
	if !strings.Contains(e.Out[procapi.FramePTY], "columns=99, lines=33") {
		t.Errorf("after a resize: %+v", e)
	}
	// The terminal's echo comes before Python has read the line, and an interrupt then may
	// be lost: Python between its prompt and its read notes it and sleeps all the same.
	s.Input(t, "", "print('as' + 'leep'); time.sleep(1000)\n")
	s.Until(t, func(e *proctest.Ended, _ byte) bool { return strings.Contains(e.Out[procapi.FramePTY], "asleep\r\n") })
	s.Send(t, procapi.FrameSignal, []byte(`{"signal":"INT"}`))
	e = s.Until(t, func(e *proctest.Ended, _ byte) bool { return len(e.Prompts) == 1 })
	if !strings.Contains(e.Out[procapi.FramePTY], "KeyboardInterrupt") {
		t.Errorf("after a signal: %+v", e)
	}
	s.Input(t, "alive", "1\n") // else Python exits as interrupted
	s.Until(t, func(e *proctest.Ended, _ byte) bool { return len(e.Prompts) == 1 })
	s.Send(t, procapi.FrameEOF)
	if e = s.ToEnd(t); e.Exit != (procapi.Exit{State: "stopped"}) {
		t.Errorf("after the input's end: %+v", e)
	}
}

func TestAttachMalformedFrames(t *testing.T) {
	t.Parallel()
	c := connect(t)
	ctx := create(t, c, sh("exec sleep 1000"))
	for name, frame := range map[string]struct {
		typ     byte
		payload string
	}{
		"unknown type": {99, ""}, "output": {procapi.FrameStdout, "x"}, "input": {procapi.FrameInput, ""},
		"resize": {procapi.FrameResize, "{"}, "signal": {procapi.FrameSignal, `{"signal":1}`}, "unknown field": {procapi.FrameSignal, `{"sig":"INT"}`},
	} {
		s := c.Attach(t, ctx.ID, "")
		s.Send(t, frame.typ, []byte(frame.payload))
		if typ, _, err := s.Read(); err == nil || err == io.EOF {
			t.Errorf("%s: frame %d, %v; want the stream aborted", name, typ, err)
		}
	}
	// What the process can't do is no reason to end the stream.
	s := c.Attach(t, ctx.ID, "")
	s.Send(t, procapi.FrameResize, []byte(`{"rows":1,"cols":1}`))
	s.Send(t, procapi.FrameSignal, []byte(`{"signal":"NOPE"}`))
	s.Send(t, procapi.FrameSignal, []byte(`{"signal":"KILL"}`))
	if e := s.ToEnd(t); e.Exit != (procapi.Exit{ExitCode: 137, State: "killed"}) {
		t.Errorf("exit %+v", e.Exit)
	}
}

func TestB08_SlowReaderIsToldWhatItMissed(t *testing.T) {
	t.Parallel()
	c := connect(t)
	const total = 64 << 20
	ctx := create(t, c, sh(fmt.Sprintf("read go; head -c %d /dev/zero; echo done >&2", total)))
	slow, fast := c.Attach(t, ctx.ID, ""), c.Attach(t, ctx.ID, "")
	fast.Input(t, "", "go\n")
	quick := fast.ToEnd(t) // slow does not read meanwhile, and holds nobody up
	if got := uint64(len(quick.Out[procapi.FrameStdout])) + quick.Lost; got != total || quick.Out[procapi.FrameStderr] != "done\n" {
		t.Errorf("fast reader: %d bytes and %d lost of %d", len(quick.Out[procapi.FrameStdout]), quick.Lost, total)
	}
	e := slow.ToEnd(t)
	got := uint64(len(e.Out[procapi.FrameStdout]))
	if e.Lost == 0 || got+e.Lost != total || got < procapi.LogBytes || e.Out[procapi.FrameStderr] != "done\n" {
		t.Errorf("slow reader: %d bytes and %d lost of %d, stderr %q", got, e.Lost, total, e.Out[procapi.FrameStderr])
	}
}

func TestInputIsNeverLost(t *testing.T) {
	t.Parallel()
	c := connect(t)
	ctx := create(t, c, sh("sleep 0.2; wc -c"))
	s := c.Attach(t, ctx.ID, "")
	const pieces, size = 200, 60_000
	for range pieces {
		s.Input(t, "", strings.Repeat("x", size))
	}
	s.Send(t, procapi.FrameEOF)
	if e := s.ToEnd(t); strings.TrimSpace(e.Out[procapi.FrameStdout]) != fmt.Sprint(pieces*size) {
		t.Errorf("the process read %q bytes, want %d", e.Out[procapi.FrameStdout], pieces*size)
	}
}

func TestManyContextsAndReaders(t *testing.T) {
	t.Parallel()
	c := connect(t)
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			ctx := create(t, c, sh(fmt.Sprintf("read x; i=0; while [ $i -lt 200 ]; do echo %d-$i; i=$((i+1)); done", i)))
			streams := make([]*proctest.Stream, 10)
			for j := range streams {
				streams[j] = c.Attach(t, ctx.ID, "")
			}
			streams[0].Input(t, "", "go\n")
			var want string
			for j := range 200 {
				want += fmt.Sprintf("%d-%d\n", i, j)
			}
			for j, s := range streams {
				if e := s.ToEnd(t); e.Out[procapi.FrameStdout] != want {
					t.Errorf("context %d, reader %d: %d bytes, want %d", i, j, len(e.Out[procapi.FrameStdout]), len(want))
				}
				s.Close()
			}
		})
	}
	wg.Wait()
	eventually(t, "goroutines are back", func() bool { return runtime.NumGoroutine() <= before+100 }) // other tests run beside
}

func TestFiles(t *testing.T) {
	t.Parallel()
	c := connect(t)
	dir := t.TempDir()
	q := func(path, more string) string {
		return "?path=" + url.QueryEscape(filepath.Join(dir, path)) + more
	}
	content := string(bytes.Repeat([]byte("0123456789\x00\xff"), 300_000))
	if status, b := c.Raw(t, "POST", procapi.PathFiles+q("a/b/file", ""), content); status != 200 || string(b) != "{\"written\":true}\n" {
		t.Errorf("write: %d %s", status, b)
	}
	if status, b := c.Raw(t, "GET", procapi.PathFiles+q("a/b/file", ""), ""); status != 200 || string(b) != content {
		t.Errorf("read: %d, %d bytes", status, len(b))
	}
	var info procapi.FileInfo
	c.Call(t, "GET", procapi.PathFiles+"/stat"+q("a/b/file", ""), nil, &info)
	if info.Size != int64(len(content)) || info.Type != "file" || info.Mode != "0644" || info.ModTime.IsZero() {
		t.Errorf("stat: %+v", info)
	}
	if status, b := c.Raw(t, "POST", procapi.PathFiles+q("a/d/e", "&mkdir=true&recursive=true"), ""); status != 201 || string(b) != "{\"created\":true}\n" {
		t.Errorf("mkdir: %d %s", status, b)
	}
	var list procapi.FileList
	c.Call(t, "GET", procapi.PathFiles+"/list"+q("a", ""), nil, &list)
	if len(list.Entries) != 2 || list.Entries[0].Name != "b" || list.Entries[1].Type != "dir" {
		t.Errorf("list: %+v", list)
	}
	var moved map[string]bool
	c.Call(t, "POST", procapi.PathFiles+"/move", procapi.MoveRequest{Source: dir + "/a/b/file", Destination: dir + "/moved"}, &moved)
	if !moved["moved"] {
		t.Errorf("move: %v", moved)
	}
	for range 2 { // what is missing is deleted already
		if status, b := c.Raw(t, "DELETE", procapi.PathFiles+q("a", ""), ""); status != 200 || string(b) != "{\"deleted\":true}\n" {
			t.Errorf("delete: %d %s", status, b)
		}
	}
	for what, r := range map[string]struct {
		method, path, code string
		status             int
	}{
		"missing file":  {"GET", q("nope", ""), "file_not_found", 404},
		"a directory":   {"GET", q("", ""), "path_not_file", 409},
		"no path":       {"GET", "", "invalid_request", 400},
		"two paths":     {"GET", q("a", "&path=b"), "invalid_request", 400},
		"dots":          {"GET", "?path=../etc/passwd", "invalid_request", 400},
		"encoded dots":  {"GET", "?path=%2e%2e/etc", "invalid_request", 400},
		"NUL":           {"GET", "?path=a%00b", "invalid_request", 400},
		"bad escape":    {"GET", "?path=%zz", "invalid_request", 400},
		"mkdir maybe":   {"POST", q("x", "&mkdir=maybe"), "invalid_request", 400},
		"mkdir deep":    {"POST", q("x/y", "&mkdir=true"), "directory_not_found", 404},
		"mkdir again":   {"POST", q("moved", "&mkdir=true"), "path_exists", 409},
		"the root":      {"DELETE", "?path=/", "permission_denied", 403},
		"what we serve": {"DELETE", "?path=" + procapi.Dir, "permission_denied", 403},
	} {
		if status, e := c.Refused(t, r.method, procapi.PathFiles+r.path, ""); status != r.status || e.Code != r.code {
			t.Errorf("%s: %d %+v, want %d %s", what, status, e, r.status, r.code)
		}
	}
}

func TestB06_UploadsAreBounded(t *testing.T) {
	t.Parallel()
	c := connect(t)
	dir := t.TempDir()
	path := procapi.PathFiles + "?path=" + dir + "/big"
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	for name, body := range map[string]io.Reader{
		"declared": bytes.NewReader(make([]byte, procapi.MaxFileBytes+1)),
		"endless":  struct{ io.Reader }{zeros{}},
	} {
		resp, err := c.Do(ctx, "POST", path, body)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge || !bytes.Contains(b, []byte("file_too_large")) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, b)
		}
	}
	// A client that goes away leaves nothing behind.
	gone, leave := context.WithCancel(ctx)
	body, w := io.Pipe()
	answered := make(chan error, 1)
	go func() {
		_, err := c.Do(gone, "POST", path, body)
		answered <- err
	}()
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	entries := func() int {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	eventually(t, "the upload has begun", func() bool { return entries() == 1 })
	leave()
	if err := <-answered; err == nil {
		t.Error("the cancelled upload was answered")
	}
	eventually(t, "nothing is left behind", func() bool { return entries() == 0 })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(proctest.Patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestContextsSurviveReconnection(t *testing.T) {
	c := func() *proctest.Conn { // not parallel: others wait for its lock or have none
		reconnect.Lock()
		return sharedConn(t)
	}()
	defer reconnect.Unlock()
	var hello procapi.Hello
	c.Call(t, "GET", procapi.PathHello, nil, &hello)
	var repl procapi.Context
	c.Call(t, "POST", procapi.PathContexts, procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "python", Input: "x = 41"}, WaitUntilDone: true}, &repl)
	s := c.Attach(t, repl.ID, "")
	s.Until(t, func(e *proctest.Ended, _ byte) bool { return strings.Contains(e.Out[procapi.FramePTY], "41") })

	for round := range 3 {
		current.Close()
		if round == 1 { // noded is away for a while: the socket refuses
			shared.node.Stop()
			<-time.After(50 * time.Millisecond) // nothing to wait for: procd dials in vain
			redial(t)
		} else {
			current = shared.node.Accept(&unowned{TB: t})
		}
		c = current
		var again procapi.Hello
		c.Call(t, "GET", procapi.PathHello, nil, &again)
		if again != hello {
			t.Errorf("hello %+v, then %+v", hello, again)
		}
		var res procapi.ExecResult
		c.Call(t, "POST", at(repl.ID, "/exec"), procapi.ExecRequest{Data: "print(x + 1)"}, &res)
		if res.OutputRaw != "print(x + 1)\r\n42\r\n" {
			t.Errorf("exec: %+v", res)
		}
		if e := c.Attach(t, repl.ID, "").Until(t, func(e *proctest.Ended, _ byte) bool { return strings.Contains(e.Out[procapi.FramePTY], "42") }); !strings.Contains(e.Out[procapi.FramePTY], "x = 41") {
			t.Errorf("history: %+v", e)
		}
	}
	if _, _, err := s.Read(); err == nil {
		t.Error("a stream of the first connection is still alive")
	}
	c.Call(t, "DELETE", at(repl.ID, ""), nil, nil)
}

// What procd has let go of is not saved with the sandbox: it is the system's again before
// procd hangs up.
func TestAHangUpGivesMemoryBack(t *testing.T) {
	c := func() *proctest.Conn { // not parallel, as above
		reconnect.Lock()
		return sharedConn(t)
	}()
	defer reconnect.Unlock()
	used := make([]byte, 128<<20)
	for i := 0; i < len(used); i += os.Getpagesize() {
		used[i] = 1
	}
	size := uint64(len(used))
	runtime.KeepAlive(used)
	if _, err := c.Do(t.Context(), "POST", procapi.PathHangUp, http.NoBody); err == nil {
		t.Error("it is answered")
	}
	current = shared.node.Accept(&unowned{TB: t})
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if held := m.HeapSys - m.HeapReleased; held >= size {
		t.Errorf("%d bytes are held, %d of them by nobody", held, held-m.HeapInuse)
	}
}

func TestWriteNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	read := func(name string) string { b, _ := os.ReadFile(filepath.Join(dir, name)); return string(b) }
	n := &names{etc: dir}
	for _, name := range []string{"one", "two"} {
		if err := n.write(name); err != nil {
			t.Fatal(err)
		}
		if h := read("hosts"); !strings.Contains(h, "127.0.0.1 localhost\n") || !strings.HasSuffix(h, "127.0.1.1 "+name+"\n") || read("hostname") != name+"\n" {
			t.Errorf("hosts %q, hostname %q", h, read("hostname"))
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte("1.2.3.4 mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"three", "four"} {
		if err := n.write(name); err != nil {
			t.Fatal(err)
		}
		if h := read("hosts"); h != "1.2.3.4 mine\n127.0.1.1 "+name+" # written by s0\n" {
			t.Errorf("the owner's hosts became %q", h)
		}
	}
}

// Without a resolver to ask no name is looked up, whoever would answer.
func TestASandboxHasAResolver(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ has, link, want string }{
		"none":                      {want: namesMark + resolvers},
		"a blank one":               {has: "\n", want: namesMark + resolvers},
		"the image's own":           {has: "nameserver 9.9.9.9\n", want: "nameserver 9.9.9.9\n"},
		"ours":                      {has: namesMark + "nameserver 192.0.2.1\n", want: namesMark + resolvers},
		"a link that leads nowhere": {link: "../run/none/stub-resolv.conf", want: namesMark + resolvers},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "resolv.conf")
		var err error
		if c.link != "" {
			err = os.Symlink(c.link, file)
		} else if c.has != "" {
			err = os.WriteFile(file, []byte(c.has), 0o644)
		}
		if err == nil {
			err = (&names{etc: dir}).write("one")
		}
		if got, readErr := os.ReadFile(file); err != nil || readErr != nil || string(got) != c.want {
			t.Errorf("%s became %q, %v", name, got, err)
		}
	}
}

func TestG10_AMachineWithAnotherNameHasAnotherID(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := &names{etc: dir}
	id := func() string {
		b, _ := os.ReadFile(dir + "/machine-id")
		return string(b)
	}
	begin := func(hostname string) string {
		if err := errors.Join(n.identify(hostname), n.write(hostname)); err != nil {
			t.Fatal(err)
		}
		return id()
	}
	if got := begin("a"); got != "" {
		t.Errorf("a machine without an id got %q", got)
	}
	if err := os.WriteFile(dir+"/machine-id", []byte("the owner's\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	if got := begin("a"); got != "the owner's\n" {
		t.Errorf("a resume replaced the id by %q", got)
	}
	b := begin("b")
	if !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n$`).MatchString(b) {
		t.Errorf("a clone has the id %q", b)
	}
	if got := begin("b"); got != b {
		t.Errorf("a resumed clone has the id %q, not %q", got, b)
	}
	if c := begin("c"); c == b {
		t.Errorf("two clones have the id %q", c)
	}
}
