package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/reap"
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

const patience = time.Minute

func launch(t *testing.T, script string, change ...func(*Config)) *Process {
	t.Helper()
	cfg := Config{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Dir: "/", Env: []string{"PATH=/usr/bin:/bin"}}
	for _, f := range change {
		f(&cfg)
	}
	p, err := Start(reaper, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func onTerminal(cfg *Config) { cfg.Size = &procapi.PTYSize{Rows: 24, Cols: 80} }

func await(t *testing.T, p *Process) procapi.Exit {
	t.Helper()
	select {
	case <-p.Done():
		return p.Exit()
	case <-time.After(patience):
		t.Fatalf("process %d did not end", p.PID())
		panic("unreachable")
	}
}

func output(p *Process, sources ...Source) string {
	b, _ := p.Log().Collect(0, p.Log().End(), sources...)
	return string(b)
}

// awaitOutput waits until the log holds want.
func awaitOutput(t *testing.T, p *Process, want string) {
	t.Helper()
	r := p.Log().NewReader(0)
	defer r.Close()
	var seen []byte
	deadline := time.After(patience)
	for !strings.Contains(string(seen), want) {
		c, err := r.Next()
		if err == nil {
			seen = append(seen, c.Data...)
			continue
		}
		if !errors.Is(err, ErrNothing) {
			t.Fatalf("the log ended without %q: %q", want, seen)
		}
		select {
		case <-r.Ready():
		case <-deadline:
			t.Fatalf("no %q in %q", want, seen)
		}
	}
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

func TestExitStates(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]procapi.Exit{
		"exit 0":         {ExitCode: 0, State: StateStopped},
		"exit 3":         {ExitCode: 3, State: StateCrashed},
		"kill -9 $$":     {ExitCode: 137, State: StateKilled},
		"kill -TERM $$":  {ExitCode: 143, State: StateKilled},
		"kill -SEGV $$":  {ExitCode: 139, State: StateCrashed},
		"sh -c 'exit 7'": {ExitCode: 7, State: StateCrashed},
	} {
		if got := await(t, launch(t, script)); got != want {
			t.Errorf("%s: %+v, want %+v", script, got, want)
		}
	}
}

func TestSeparateStreams(t *testing.T) {
	t.Parallel()
	p := launch(t, "echo out; echo err >&2; printf tail")
	await(t, p)
	if out, err := output(p, Stdout), output(p, Stderr); out != "out\ntail" || err != "err\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
}

func TestFastOutputIsComplete(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*Config){func(*Config) {}, onTerminal} {
		for i := range 100 {
			p := launch(t, "head -c 20000 /dev/zero | tr '\\0' x; echo end", change)
			await(t, p)
			if got := strings.ReplaceAll(output(p), "\r", ""); len(got) != 20004 {
				t.Fatalf("run %d: %d bytes, want 20004", i, len(got))
			}
		}
	}
}

func TestB09_StreamEndsThoughChildHoldsIt(t *testing.T) {
	t.Parallel()
	before := runtime.NumGoroutine()
	for name, change := range map[string]func(*Config){"pipe": func(*Config) {}, "terminal": onTerminal} {
		p := launch(t, "trap '' HUP; (sleep 1000; echo late) & echo early", change)
		if exit := await(t, p); exit.State != StateStopped {
			t.Errorf("%s: exit %+v", name, exit)
		}
		if got := strings.TrimSpace(output(p)); got != "early" {
			t.Errorf("%s: output %q", name, got)
		}
		if len(family(p.PID())) == 0 {
			t.Errorf("%s: the background child is gone before anybody killed it", name)
		}
		p.Close()
		eventually(t, name+": the background child is killed", func() bool { return len(family(p.PID())) == 0 })
	}
	eventually(t, "goroutines are back", func() bool { return runtime.NumGoroutine() <= before+20 }) // other tests run beside
}

func TestBackgroundChildMayGoOnPrinting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/go", 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, fmt.Sprintf("cd %s; (read x <go; head -c 300000 /dev/zero; touch survived) & true", dir))
	await(t, p)
	// What it printed earlier, within the grace, would be in the log.
	if err := os.WriteFile(dir+"/go", []byte("now\n"), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child outlives its output", func() bool { _, err := os.Stat(dir + "/survived"); return err == nil })
	if n := p.Log().End(); n != 0 {
		t.Errorf("%d bytes of a finished process's child are in the log", n)
	}
}

func TestInput(t *testing.T) {
	t.Parallel()
	p := launch(t, "read a; echo got $a; read b; echo then $b")
	for _, line := range []string{"one\n", "two\n"} {
		if err := p.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	await(t, p)
	if got := output(p); got != "got one\nthen two\n" {
		t.Errorf("output %q", got)
	}
	if err := p.Write([]byte("x")); !errors.Is(err, ErrDone) {
		t.Errorf("write after the end: %v", err)
	}
	none := launch(t, "cat", func(c *Config) { c.NoInput = true })
	if exit := await(t, none); exit.ExitCode != 0 {
		t.Errorf("cat without input: %+v", exit)
	}
	if err := none.Write([]byte("x")); !errors.Is(err, ErrNoInput) {
		t.Errorf("write without input: %v", err)
	}
}

func TestCloseInput(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){"pipe": func(*Config) {}, "terminal": onTerminal} {
		p := launch(t, "stty -echo 2>/dev/null; echo ready; wc -c", change)
		awaitOutput(t, p, "ready")
		if err := p.Write(append(bytes.Repeat([]byte("x"), 1000), '\n')); err != nil {
			t.Fatal(err)
		}
		if err := p.CloseInput(); err != nil {
			t.Fatal(err)
		}
		await(t, p)
		if got := output(p); !strings.HasSuffix(strings.TrimSpace(got), "1001") {
			t.Errorf("%s: output %q", name, got)
		}
	}
	p := launch(t, "exec sleep 1000")
	if err := p.CloseInput(); err != nil {
		t.Fatal(err)
	}
	if err := p.Write([]byte("x")); !errors.Is(err, ErrNoInput) {
		t.Errorf("write after the input's end: %v", err)
	}
}

func TestInputIsBounded(t *testing.T) {
	t.Parallel()
	p := launch(t, "exec sleep 1000")
	var err error
	for range 4 * procapi.MaxInputBytes / (64 << 10) {
		if err = p.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrInputFull) {
		t.Errorf("writing to a process that doesn't read: %v, want ErrInputFull", err)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	p := launch(t, "stty size; read x; stty size; echo $x", onTerminal)
	awaitOutput(t, p, "24 80\r\n")
	if err := p.Resize(procapi.PTYSize{Rows: 65535, Cols: 1}); err != nil {
		t.Fatal(err)
	}
	if err := p.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	if got := output(p, PTY); got != "24 80\r\nhello\r\n65535 1\r\nhello\r\n" {
		t.Errorf("output %q", got)
	}
	if err := launch(t, "true").Resize(procapi.PTYSize{Rows: 1, Cols: 1}); !errors.Is(err, ErrNoTerminal) {
		t.Errorf("resize without a terminal: %v", err)
	}
}

func TestTerminalTakesLongLines(t *testing.T) {
	t.Parallel()
	const n = 100_000
	p := launch(t, "stty -echo; echo ready; read x; echo ${#x}; read y; echo $y", onTerminal)
	awaitOutput(t, p, "ready")
	if err := p.Write(append(bytes.Repeat([]byte("x"), n), '\n')); err != nil {
		t.Fatal(err)
	}
	awaitOutput(t, p, fmt.Sprint(n))
	// Line mode is back: the terminal's own erase key works again.
	if err := p.Write([]byte("abX\x7fc\n")); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	if got := output(p); !strings.HasSuffix(got, "\r\nabc\r\n") {
		t.Errorf("output ends with %q", got[max(0, len(got)-40):])
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	p := launch(t, "trap 'echo usr1' USR1; echo ready; while :; do read x; done")
	awaitOutput(t, p, "ready")
	if err := p.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	awaitOutput(t, p, "usr1")
	for _, step := range []struct {
		sig  syscall.Signal
		want string
	}{{syscall.SIGSTOP, StatePaused}, {syscall.SIGCONT, StateRunning}} {
		if err := p.Signal(step.sig); err != nil {
			t.Fatal(err)
		}
		eventually(t, "state "+step.want, func() bool { return p.State() == step.want })
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := await(t, p); got != (procapi.Exit{ExitCode: 137, State: StateKilled}) {
		t.Errorf("exit %+v", got)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, ErrDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestInterruptReachesTheForeground(t *testing.T) {
	t.Parallel()
	// Job control gives the pipeline a process group of its own.
	p := launch(t, "set -m; trap : INT; sh -c 'echo ready; exec sleep 1000'; echo code $?", onTerminal)
	awaitOutput(t, p, "ready")
	if err := p.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	awaitOutput(t, p, "code 130")
}

func TestKillTakesTheWholeSession(t *testing.T) {
	t.Parallel()
	p := launch(t, "set -m; sleep 1000 & (setsid sleep 1000) & sh -c 'sleep 1000' & echo started; wait")
	awaitOutput(t, p, "started")
	eventually(t, "children run", func() bool { return len(family(p.PID())) >= 4 })
	if s := p.Stats(); s.PID != p.PID() || s.Processes < 4 || s.Threads < 4 || s.RSSBytes == 0 || s.VMSBytes < s.RSSBytes {
		t.Errorf("stats %+v", s)
	}
	p.Close()
	eventually(t, "nothing is left", func() bool { return len(family(p.PID())) == 0 })
}

func TestB10_StartErrors(t *testing.T) {
	t.Parallel()
	script := t.TempDir() + "/script"
	if err := os.WriteFile(script, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   error
	}{
		"missing":     {func(c *Config) { c.Path = "/nonexistent" }, syscall.ENOENT},
		"no program":  {func(c *Config) { c.Path = script }, syscall.ENOEXEC},
		"directory":   {func(c *Config) { c.Path = "/etc" }, syscall.EACCES},
		"no dir":      {func(c *Config) { c.Dir = "/nonexistent" }, syscall.ENOENT},
		"NUL":         {func(c *Config) { c.Argv = []string{"a\x00b"} }, syscall.EINVAL},
		"too big":     {func(c *Config) { c.Argv = []string{strings.Repeat("x", 10<<20)} }, syscall.E2BIG},
		"on terminal": {func(c *Config) { onTerminal(c); c.Path = "/nonexistent" }, syscall.ENOENT},
	} {
		cfg := Config{Path: "/bin/true", Argv: []string{"true"}, Dir: "/"}
		c.change(&cfg)
		if _, err := Start(reaper, cfg); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestLookPath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "data": 0o644} {
		if err := os.WriteFile(dir+"/"+name, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, dir, path, want string
		err                   error
	}{
		{"tool", "/", "/nonexistent:" + dir, dir + "/tool", nil},
		{"./tool", dir, "", dir + "/tool", nil},
		{dir + "/tool", "/", "", dir + "/tool", nil},
		{"tool", dir, ".", dir + "/tool", nil},
		{"data", "/", dir, "", syscall.EACCES},
		{"other", "/", dir, "", syscall.ENOENT},
		{"", "/", dir, "", syscall.EACCES},
		{"tool", "/", "", "", syscall.ENOENT},
	} {
		got, err := LookPath(c.name, c.dir, c.path)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("LookPath(%q, %q, %q) = %q, %v; want %q, %v", c.name, c.dir, c.path, got, err, c.want, c.err)
		}
	}
}

func TestParseSignal(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]syscall.Signal{
		"TERM": 15, "SIGTERM": 15, "15": 15, "sigint": 2, "64": 64, "WINCH": 28,
		"0": 0, "65": 0, "-9": 0, "": 0, "SIG": 0, "NOPE": 0, "SIGSIGTERM": 0,
	} {
		got, err := ParseSignal(s)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("ParseSignal(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	line := "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 11 22 0 0 20 0 1 0 100 4096 33 0"
	s, ok := parseStat(7, []byte(line))
	if want := (stat{pid: 7, ppid: 1, session: 7, state: 'S', threads: 1, cpuTicks: 33, rssPages: 33, vmsBytes: 4096}); !ok || s != want {
		t.Errorf("parsed %+v, %v", s, ok)
	}
	for _, bad := range []string{"", "7", "7 (a)", "7 (a) S 1"} {
		if _, ok := parseStat(7, []byte(bad)); ok {
			t.Errorf("%q was parsed", bad)
		}
	}
}

// BenchmarkStream measures the way from a process to a reader.
func BenchmarkStream(b *testing.B) {
	const size = 256 << 20
	b.SetBytes(size)
	for b.Loop() {
		p, err := Start(reaper, Config{Path: "/usr/bin/head", Argv: []string{"head", "-c", fmt.Sprint(size), "/dev/zero"}, Dir: "/"})
		if err != nil {
			b.Fatal(err)
		}
		<-p.Done()
		p.Close()
	}
}

func BenchmarkTrue(b *testing.B) {
	for b.Loop() {
		p, err := Start(reaper, Config{Path: "/bin/true", Argv: []string{"true"}, Dir: "/", NoInput: true})
		if err != nil {
			b.Fatal(err)
		}
		<-p.Done()
		p.Close()
	}
}

func TestInputRoom(t *testing.T) {
	t.Parallel()
	p := launch(t, "wc -c")
	const total = 8 * procapi.MaxInputBytes
	piece := make([]byte, 64<<10)
	for sent := 0; sent < total; {
		err := p.Write(piece)
		switch {
		case err == nil:
			sent += len(piece)
		case errors.Is(err, ErrInputFull):
			select {
			case <-p.InputRoom():
			case <-time.After(patience):
				t.Fatal("no room")
			}
		default:
			t.Fatal(err)
		}
	}
	if err := p.CloseInput(); err != nil {
		t.Fatal(err)
	}
	await(t, p)
	if got := strings.TrimSpace(output(p)); got != fmt.Sprint(total) {
		t.Errorf("the process read %s bytes, want %d", got, total)
	}
}
