package contexts

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
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

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/reap"
	"s0.run/procd/internal/repl"
)

var reaper = reap.New()

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); reaper.Run(ctx) }()
	code := m.Run()
	cancel()
	<-ended
	os.Exit(code)
}

const patience = 30 * time.Second

type bundle struct {
	*Table
	dir   string
	clock *atomic.Int64 // seconds that have passed
}

func newTable(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{dir: t.TempDir(), clock: new(atomic.Int64)}
	start := time.Now()
	b.Table = New(Config{
		Reaper: reaper, Workspace: b.dir, Env: []string{"PATH=/usr/bin:/bin", "HOME=" + b.dir, "LAYER=image", "broken"},
		Now: func() time.Time { return start.Add(time.Duration(b.clock.Load()) * time.Second) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { b.Run(ctx) })
	t.Cleanup(func() { cancel(); run.Wait() })
	return b
}

func sh(script string) procapi.CreateContext {
	return procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: []string{"sh", "-c", script}}}
}

func waiting(req procapi.CreateContext) procapi.CreateContext {
	req.WaitUntilDone = true
	return req
}

func (b *bundle) create(t *testing.T, req procapi.CreateContext) procapi.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := b.Create(ctx, req)
	if err != nil {
		t.Fatalf("creating %+v: %v", req, err)
	}
	return c
}

func code(err error) string {
	if err == nil {
		return ""
	}
	e := errdefs.From(err)
	return fmt.Sprint(e.Kind.HTTPStatus(), " ", e.Code)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	c := b.create(t, waiting(sh("echo out; echo err >&2; pwd; exit 3")))
	if *c.Stdout != "out\n"+b.dir+"\n" || *c.Stderr != "err\n" || *c.ExitCode != 3 || c.State != "crashed" || c.Running || c.Cwd != b.dir {
		t.Errorf("%+v: stdout %q, stderr %q", c, *c.Stdout, *c.Stderr)
	}
	if raw := *c.OutputRaw; len(raw) != len(*c.Stdout)+len(*c.Stderr) || !strings.Contains(raw, "err\n") {
		t.Errorf("output_raw %q", raw)
	}
	if !regexp.MustCompile(`^ctx-[0-9a-f]{8}$`).MatchString(c.ID) {
		t.Errorf("id %q", c.ID)
	}
	got, err := b.Get(c.ID)
	if err != nil || got.OutputRaw != nil || *got.ExitCode != 3 {
		t.Errorf("get: %+v, %v", got, err)
	}
}

func TestCommandOnATerminal(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	req := waiting(sh("stty size; echo $TERM; test -t 0 && test -t 2 && echo tty"))
	req.PTYSize = &procapi.PTYSize{Rows: 30, Cols: 100}
	c := b.create(t, req)
	if *c.OutputRaw != "30 100\r\nxterm-256color\r\ntty\r\n" || c.Stdout != nil {
		t.Errorf("%+v: %q", c, *c.OutputRaw)
	}
}

func TestEnvironmentLayers(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	show := waiting(sh("echo $LAYER $TERM $CLAIM $HOME"))
	if got := *b.create(t, show).Stdout; got != "image "+b.dir+"\n" {
		t.Errorf("before the claim: %q", got)
	}
	if err := b.SetEnv(map[string]string{"LAYER": "sandbox", "CLAIM": "yes"}); err != nil {
		t.Fatal(err)
	}
	if got := *b.create(t, show).Stdout; got != "sandbox yes "+b.dir+"\n" {
		t.Errorf("after the claim: %q", got)
	}
	show.EnvVars = map[string]string{"LAYER": "request", "HOME": "/"}
	if got := *b.create(t, show).Stdout; got != "request yes /\n" {
		t.Errorf("with the request's own: %q", got)
	}
	if err := b.SetEnv(nil); err != nil {
		t.Fatal(err)
	}
	show.EnvVars = nil
	if got := *b.create(t, show).Stdout; got != "image "+b.dir+"\n" {
		t.Errorf("after the sandbox's were taken away: %q", got)
	}
}

func TestREPL(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	ctx := context.Background()
	c := b.create(t, procapi.CreateContext{Type: "repl", WaitUntilDone: true, REPL: &procapi.REPLRequest{Alias: "python3", Input: "x = 41"}})
	if *c.OutputRaw != "x = 41\r\n" || c.Alias != "python" || !c.Running || c.State != "running" || c.Stdout != nil {
		t.Errorf("created %+v: %q", c, *c.OutputRaw)
	}
	res, err := b.Exec(ctx, c.ID, "print(x + 1)")
	if err != nil || res.OutputRaw != "print(x + 1)\r\n42\r\n" || res.ExitCode != nil || res.State != "" {
		t.Errorf("exec: %+v, %v", res, err)
	}
	again, err := b.Restart(c.ID)
	if err != nil || again.ID != c.ID || !again.Running {
		t.Errorf("restart: %+v, %v", again, err)
	}
	if res, err = b.Exec(ctx, c.ID, "x"); err != nil || !strings.Contains(res.OutputRaw, "NameError") {
		t.Errorf("exec after a restart: %+v, %v", res, err)
	}
	res, err = b.Exec(ctx, c.ID, "import sys; sys.exit(3)")
	if err != nil || res.ExitCode == nil || *res.ExitCode != 3 || res.State != "crashed" {
		t.Errorf("exec that ends the REPL: %+v, %v", res, err)
	}
	for what, err := range map[string]error{
		"exec":   func() error { _, err := b.Exec(ctx, c.ID, "1"); return err }(),
		"input":  b.Input(ctx, c.ID, "1"),
		"resize": b.Resize(c.ID, procapi.PTYSize{Rows: 1, Cols: 1}),
		"signal": b.Signal(c.ID, "TERM"),
	} {
		if code(err) != "410 process_finished" {
			t.Errorf("%s after the end: %v", what, err)
		}
	}
}

func TestREPLInputRunsInTheBackground(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	c := b.create(t, procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "bash", Input: "x=41\ny=1"}})
	if c.OutputRaw != nil {
		t.Errorf("answered output: %q", *c.OutputRaw)
	}
	eventually(t, "the input has run", func() bool {
		res, err := b.Exec(context.Background(), c.ID, "echo $((x + y))")
		return err == nil && strings.HasSuffix(res.OutputRaw, "\r\n42\r\n")
	})
}

func TestWaitEndsWithTheDeadline(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	for name, req := range map[string]procapi.CreateContext{
		"cmd":  sh("sleep 1000"),
		"repl": {Type: "repl", REPL: &procapi.REPLRequest{Alias: "bash", Input: "sleep 1000"}},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if _, err := b.Create(ctx, waiting(req)); code(err) != "408 exec_timeout" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, c := range b.List().Contexts {
		if !c.Running {
			t.Errorf("%s was ended by a caller's deadline", c.ID)
		}
	}
}

func TestExecOfACommand(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	c := b.create(t, sh("read x; echo got $x; exit 4"))
	res, err := b.Exec(context.Background(), c.ID, "one\n")
	if err != nil || *res.Stdout != "got one\n" || *res.ExitCode != 4 || res.State != "crashed" {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestB10_BadRequests(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	script := filepath.Join(b.dir, "script")
	for name, content := range map[string]string{"script": "#!/no/such/interpreter\n", "data": "x", "junk": "\x00\x01"} {
		mode := os.FileMode(0o755)
		if name == "data" {
			mode = 0o644
		}
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := func(argv ...string) procapi.CreateContext {
		return procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: argv}}
	}
	with := func(change func(*procapi.CreateContext)) procapi.CreateContext {
		req := sh("true")
		change(&req)
		return req
	}
	for name, c := range map[string]struct {
		req  procapi.CreateContext
		text string
	}{
		"no type":            {procapi.CreateContext{}, "unsupported process type"},
		"unknown type":       {procapi.CreateContext{Type: "vm"}, "unsupported process type"},
		"no command":         {procapi.CreateContext{Type: "cmd"}, "cmd.command is required"},
		"empty command":      {cmd(), "cmd.command is required"},
		"empty argv0":        {cmd("", "x"), "cmd.command is required"},
		"both":               {with(func(r *procapi.CreateContext) { r.REPL = &procapi.REPLRequest{} }), "repl is for type repl"},
		"NUL":                {cmd("echo", "a\x00b"), "NUL"},
		"too many args":      {cmd(make([]string, procapi.MaxArgs+1)...), "required"},
		"too many args 2":    {cmd(append([]string{"echo"}, make([]string, procapi.MaxArgs)...)...), "more than 4096"},
		"too big":            {cmd("echo", strings.Repeat("x", procapi.MaxArgBytes)), "more than 1048576 bytes"},
		"one big arg":        {cmd("echo", strings.Repeat("x", 200<<10)), "argument list too long"},
		"missing":            {cmd("no-such-program"), "no such file"},
		"missing path":       {cmd("/no/such/program"), "no such file"},
		"interpreter":        {cmd(script), "interpreter does not exist"},
		"not executable":     {cmd("./data"), "permission denied"},
		"no program":         {cmd("./junk"), "exec format error"},
		"directory":          {cmd("/etc"), "permission denied"},
		"missing cwd":        {with(func(r *procapi.CreateContext) { r.Cwd = "no/such" }), "working directory"},
		"file as cwd":        {with(func(r *procapi.CreateContext) { r.Cwd = script }), "working directory"},
		"NUL in cwd":         {with(func(r *procapi.CreateContext) { r.Cwd = "a\x00" }), "NUL"},
		"env name":           {with(func(r *procapi.CreateContext) { r.EnvVars = map[string]string{"A=B": ""} }), "environment variable"},
		"empty env name":     {with(func(r *procapi.CreateContext) { r.EnvVars = map[string]string{"": "x"} }), "environment variable"},
		"NUL in env":         {with(func(r *procapi.CreateContext) { r.EnvVars = map[string]string{"A": "\x00"} }), "environment variable"},
		"10 MiB env":         {with(func(r *procapi.CreateContext) { r.EnvVars = map[string]string{"A": strings.Repeat("x", 10<<20)} }), "more than 1048576 bytes"},
		"no rows":            {with(func(r *procapi.CreateContext) { r.PTYSize = &procapi.PTYSize{Cols: 1} }), "pty_size"},
		"negative idle":      {with(func(r *procapi.CreateContext) { r.IdleTimeoutSec = -1 }), "idle_timeout_sec"},
		"negative ttl":       {with(func(r *procapi.CreateContext) { r.TTLSec = -1 }), "ttl_sec"},
		"unknown repl":       {procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "cobol"}}, "unknown REPL"},
		"repl not here":      {procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "swift"}}, "not installed"},
		"too much input":     {procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Input: strings.Repeat("x", procapi.MaxInputBytes+1)}}, "repl.input"},
		"cmd part of a repl": {procapi.CreateContext{Type: "repl", CMD: &procapi.CMDRequest{}}, "cmd is for type cmd"},
	} {
		_, err := b.Create(context.Background(), waiting(c.req))
		if code(err) != "400 invalid_request" || !strings.Contains(errdefs.From(err).Message, c.text) {
			t.Errorf("%s: %v, want a 400 with %q", name, err, c.text)
		}
	}
	if n := len(b.List().Contexts); n != 0 {
		t.Errorf("%d contexts are left", n)
	}
}

func TestErrorsOfCalls(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	ctx := context.Background()
	pipe := b.create(t, sh("exec sleep 1000"))
	deaf := b.create(t, procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "bash"}})
	exec := func(id, data string) error { _, err := b.Exec(ctx, id, data); return err }
	if err := exec(deaf.ID, "true"); err != nil {
		t.Fatal(err)
	}
	if err := b.Signal(deaf.ID, "STOP"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the REPL is paused", func() bool { c, _ := b.Get(deaf.ID); return c.Paused && c.State == "paused" && !c.Running })
	flood := func() (err error) {
		for i := 0; err == nil && i < 64; i++ {
			err = b.Input(ctx, pipe.ID, strings.Repeat("x", procapi.MaxInputBytes/4))
		}
		return err
	}
	for what, c := range map[string]struct {
		err  error
		want string
	}{
		"unknown context":   {b.Input(ctx, "ctx-00000000", "x"), "404 context_not_found"},
		"no data":           {exec(deaf.ID, ""), "400 invalid_request"},
		"too much data":     {exec(deaf.ID, strings.Repeat("x", procapi.MaxInputBytes+1)), "400 invalid_request"},
		"too much input":    {b.Input(ctx, pipe.ID, strings.Repeat("x", procapi.MaxInputBytes+1)), "400 invalid_request"},
		"exec while paused": {exec(deaf.ID, "1"), "409 process_not_running"},
		"full buffer":       {flood(), "409 input_buffer_full"},
		"no terminal":       {b.Resize(pipe.ID, procapi.PTYSize{Rows: 1, Cols: 1}), "409 pty_unavailable"},
		"resize to nothing": {b.Resize(deaf.ID, procapi.PTYSize{}), "400 invalid_request"},
		"signal":            {b.Signal(deaf.ID, "NOPE"), "400 invalid_request"},
		"delete unknown":    {b.Delete("ctx-00000000"), "404 context_not_found"},
		"restart unknown":   {func() error { _, err := b.Restart("../x"); return err }(), "404 context_not_found"},
		"stats unknown":     {func() error { _, err := b.Stats(""); return err }(), "404 context_not_found"},
	} {
		if code(c.err) != c.want {
			t.Errorf("%s: %v, want %s", what, c.err, c.want)
		}
	}
}

func TestDeleteEndsEverything(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	c := b.create(t, sh("sleep 1000 & sleep 1000"))
	eventually(t, "both run", func() bool { s, _ := b.Stats(c.ID); return s.Processes >= 3 && s.RSSBytes > 0 })
	live, detach, err := b.Attach(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer detach()
	if err := b.Delete(c.ID); err != nil {
		t.Fatal(err)
	}
	if exit := live.Process.Exit(); !live.ended() || exit != (procapi.Exit{ExitCode: 137, State: "killed"}) {
		t.Errorf("exit %+v, ended %v", exit, live.ended())
	}
	if _, err := b.Get(c.ID); code(err) != "404 context_not_found" {
		t.Errorf("get after the deletion: %v", err)
	}
}

func TestLimitsOfTime(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	limited := func(idle, ttl int32) procapi.Context {
		req := sh("exec sleep 1000")
		req.IdleTimeoutSec, req.TTLSec = idle, ttl
		return b.create(t, req)
	}
	idle, ttl, both, busy, free := limited(100, 0), limited(0, 200), limited(100, 1000), limited(100, 0), limited(0, 0)
	_, detach, err := b.Attach(busy.ID)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(at int64, want ...procapi.Context) {
		t.Helper()
		b.clock.Store(at)
		b.sweep()
		var got, ids []string
		for _, c := range b.List().Contexts {
			got = append(got, c.ID)
		}
		for _, c := range want {
			ids = append(ids, c.ID)
		}
		if len(got) != len(ids) {
			t.Errorf("after %d s: %v, want %v", at, got, ids)
		}
		for _, id := range ids {
			if _, err := b.Get(id); err != nil {
				t.Errorf("after %d s: %v", at, err)
			}
		}
	}
	expect(99, idle, ttl, both, busy, free)
	if err := b.Signal(both.ID, "CONT"); err != nil { // a request is activity
		t.Fatal(err)
	}
	expect(150, ttl, both, busy, free)
	expect(199, ttl, busy, free)
	expect(200, busy, free)
	detach()
	expect(299, busy, free)
	expect(300, free)
	expect(1_000_000, free)
}

func TestEndedContextsAreBounded(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	loud := waiting(procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: []string{"head", "-c", "4000000", "/dev/zero"}}})
	var newest procapi.Context
	for range 8 {
		newest = b.create(t, loud)
	}
	eventually(t, "output of ended contexts is bounded", func() bool {
		total := 0
		for _, e := range b.list() {
			total += e.current().Process.Log().Kept()
		}
		return total <= maxFinishedBytes
	})
	if _, err := b.Get(newest.ID); err != nil {
		t.Errorf("the newest: %v", err)
	}
	for range maxFinished + 10 {
		b.create(t, waiting(procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: []string{"true"}}}))
	}
	eventually(t, "the number of ended contexts is bounded", func() bool { return len(b.List().Contexts) <= maxFinished })
}

// What was made first and ends last is the newest of the ended, and a restart does
// not make a context one of them.
func TestWhatEndsLastIsKept(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	cmd := func(argv ...string) procapi.CreateContext {
		return procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: argv}}
	}
	early, again := b.create(t, cmd("cat")), b.create(t, cmd("cat"))
	for range maxFinished {
		b.create(t, waiting(cmd("true")))
	}
	for range 5 {
		if c, err := b.Restart(again.ID); err != nil || !c.Running {
			t.Fatalf("restart: %+v, %v", c, err)
		}
		b.evict()
		if _, err := b.Get(again.ID); err != nil {
			t.Fatalf("after a restart: %v", err)
		}
	}
	if err := b.Signal(early.ID, "KILL"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended", func() bool { c, err := b.Get(early.ID); return err != nil || !c.Running })
	b.create(t, waiting(cmd("true")))
	if c, err := b.Get(early.ID); err != nil || c.ExitCode == nil || *c.ExitCode != 137 {
		t.Errorf("the one that ended last: %+v, %v", c, err)
	}
}

func TestLiveContextsAreBounded(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	before := runtime.NumGoroutine()
	sleeper := procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: []string{"sleep", "1000"}}}
	for range procapi.MaxContexts {
		b.create(t, sleeper)
	}
	if _, err := b.Create(context.Background(), sleeper); code(err) != "429 too_many_contexts" {
		t.Errorf("one too many: %v", err)
	}
	if n := (runtime.NumGoroutine() - before) / procapi.MaxContexts; n > 5 {
		t.Errorf("%d goroutines a context", n)
	}
	victim := b.List().Contexts[0].ID
	if err := b.Delete(victim); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is room again", func() bool { _, err := b.Create(context.Background(), sleeper); return err == nil })
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				want := fmt.Sprint(i, " ", j, "\n")
				if c := b.create(t, waiting(sh("echo "+want))); *c.Stdout != want {
					t.Errorf("stdout %q, want %q", *c.Stdout, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestAnswersFit(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	// 0x01 takes six bytes in JSON, and the output comes twice.
	c := b.create(t, waiting(sh(`head -c 4000000 /dev/zero | tr '\0' '\001'; echo end`)))
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if len(encoded) > procapi.MaxJSONBytes {
		t.Errorf("answer of %d bytes", len(encoded))
	}
	if !strings.HasSuffix(*c.OutputRaw, "end\n") || c.Truncated+uint64(len(*c.OutputRaw)) != 4000004 || c.Truncated == 0 {
		t.Errorf("%d bytes, %d cut", len(*c.OutputRaw), c.Truncated)
	}
}

func TestJSONLen(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := make([]byte, rnd.IntN(40))
		for i := range b {
			b[i] = byte(rnd.IntN(256))
		}
		b = append(b, "\u2028<ü\\\b"...)
		encoded, err := json.Marshal(string(b))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(encoded); strings.ContainsAny(string(b), "<>&") {
			n -= 5 * (strings.Count(string(b), "<") + strings.Count(string(b), ">") + strings.Count(string(b), "&")) // escaped for HTML only
			encoded = encoded[:n]
		}
		if got := jsonLen(b); got < len(encoded) {
			t.Errorf("jsonLen(%q) = %d, the JSON has %d", b, got, len(encoded))
		}
	}
}

var _ repl.Process = (*proc.Process)(nil)
