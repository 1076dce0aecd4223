package repl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
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

const (
	patience = 30 * time.Second
	path     = "/usr/local/bin:/usr/bin:/bin"
)

// required are the REPLs that a machine that runs these tests must have. Debian
// has no swift and no kotlin: those are tested where they are installed.
var required = []string{"python", "node", "bash", "zsh", "ruby", "lua", "php", "r", "perl", "sqlite", "redis-cli"}

// running is a session and its process.
type running struct {
	*Session
	proc *proc.Process
}

func start(t testing.TB, req procapi.REPLRequest, terminal bool) *running {
	t.Helper()
	def, err := Define(&req, terminal)
	if err != nil {
		t.Fatal(err)
	}
	var file string
	var argv []string
	for _, c := range def.Candidates {
		if file, err = proc.LookPath(c.Name, "/", path); err == nil {
			argv = append([]string{c.Name}, c.Args...)
			break
		}
	}
	if file == "" {
		if slices.Contains(required, def.Name) {
			t.Fatalf("%s is not installed; these tests require %v", def.Name, required)
		}
		t.Skipf("%s is not installed", def.Name)
	}
	env := []string{"PATH=" + path, "HOME=" + t.TempDir(), "TERM=" + def.Term}
	for k, v := range def.Env {
		env = append(env, k+"="+v)
	}
	s := NewSession(def)
	size := procapi.PTYSize{Rows: 24, Cols: max(80, def.Columns)}
	p, err := proc.Start(reaper, proc.Config{Path: file, Argv: argv, Dir: "/", Env: env, Size: &size, Observe: s.Observe})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := s.Start(p); err != nil {
		t.Fatal(err)
	}
	return &running{s, p}
}

func startAlias(t testing.TB, alias string) *running {
	t.Helper()
	return start(t, procapi.REPLRequest{Alias: alias}, false)
}

// exec runs code and returns what it printed.
func (r *running) exec(ctx context.Context, code string) (string, error) {
	span, err := r.Exec(ctx, code)
	out, _ := r.proc.Log().Collect(span.From, span.To)
	return string(r.Trim(out)), err
}

func (r *running) mustExec(t testing.TB, code string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := r.exec(ctx, code)
	if err != nil {
		all, _ := r.proc.Log().Collect(0, r.proc.Log().End())
		t.Fatalf("exec of %.100q: %v; all output: %q", code, err, all[max(0, len(all)-2000):])
	}
	return out
}

// Each step's output is exactly what a terminal shows: echo, result, "\r\n".
var conversations = map[string][][2]string{
	"python": {
		{"x = 41", "x = 41\r\n"},
		{"print(x + 1)\n", "print(x + 1)\r\n42\r\n"},
		{"x + 2", "x + 2\r\n43\r\n"},
		{"a = 1\nprint(a)\nb = 2", "a = 1\r\n_S0_> print(a)\r\n1\r\n_S0_> b = 2\r\n"},
		{"def f():\n  return 7\n\nf()", "def f():\r\n__S0_CONT__   return 7\r\n__S0_CONT__ \r\n_S0_> f()\r\n7\r\n"},
		{"for i in range(2):\n\tprint(i)", "for i in range(2):\r\n__S0_CONT__ \tprint(i)\r\n__S0_CONT__ \r\n0\r\n1\r\n"},
		{"print('no newline', end='')", "print('no newline', end='')\r\nno newline"},
		{"print('ü€')\r\n", "print('ü€')\r\nü€\r\n"},
		{"1/0", "1/0\r\nTraceback (most recent call last):\r\n  File \"<stdin>\", line 1, in <module>\r\nZeroDivisionError: division by zero\r\n"},
		{"import os; os.environ.get('PYTHONINSPECT')", "import os; os.environ.get('PYTHONINSPECT')\r\n"},
		{"os.system('env | grep -c PYTHONINSPECT')", "os.system('env | grep -c PYTHONINSPECT')\r\n0\r\n256\r\n"},
		{"x = '''a", "x = '''a\r\n__S0_CONT__ \r\n__S0_CONT__ "},
		{"b'''", "b'''\r\n"},
		{"len(x)", "len(x)\r\n4\r\n"}, // a, the empty line that was tried to end it, b
	},
	"node": {
		{"1 + 1", "1 + 1\r\n2\r\n"},
		{"function f() {\nreturn 7 }\nf()", "function f() {\r\n__S0_CONT__ return 7 }\r\nundefined\r\n_S0_> f()\r\n7\r\n"},
		{"await new Promise(r => setTimeout(r, 100, 5))", "await new Promise(r => setTimeout(r, 100, 5))\r\n5\r\n"},
		{"[] instanceof Array", "[] instanceof Array\r\ntrue\r\n"},
		{"if (true) {", "if (true) {\r\n__S0_CONT__ "},
		{"8 }", "8 }\r\n8\r\n"},
	},
	"bash": {
		{"echo hi", "echo hi\r\nhi\r\n"},
		{"for i in 1 2; do\necho $i\ndone", "for i in 1 2; do\r\n__S0_CONT__ echo $i\r\n__S0_CONT__ done\r\n1\r\n2\r\n"},
		{"cat <<E\na b\nE", "cat <<E\r\n__S0_CONT__ a b\r\n__S0_CONT__ E\r\na b\r\n"},
		{"env | grep -c -e PS1 -e PROMPT_COMMAND", "env | grep -c -e PS1 -e PROMPT_COMMAND\r\n0\r\n"},
		{"printf tail", "printf tail\r\ntail"},
		{"(exit 3); echo $?", "(exit 3); echo $?\r\n3\r\n"},
		{"\n", "\r\n"},
	},
	"zsh": {
		{"echo hi", "echo hi\r\nhi\r\n"},
		{"for i in 1 2; do\necho $i\ndone", "for i in 1 2; do\r\n__S0_CONT__ echo $i\r\n__S0_CONT__ done\r\n1\r\n2\r\n"},
		{"printf tail", "printf tail\r\ntail"},
	},
	"perl": {
		{"$x = 41; print $x + 1, \"\\n\"", "$x = 41; print $x + 1, \"\\n\"\r\n42\r\n"},
		{"sub f {\n7 }\nprint f()", "sub f {\r\n__S0_CONT__ 7 }\r\n_S0_> print f()\r\n7"},
	},
	"sqlite": {
		{"create table t(a); insert into t values(42);", "create table t(a); insert into t values(42);\r\n"},
		{"select a\nfrom t;", "select a\r\n__S0_CONT__ from t;\r\n42\r\n"},
		{"select '" + strings.Repeat("x", 300) + "';", "select '" + strings.Repeat("x", 300) + "';\r\n" + strings.Repeat("x", 300) + "\r\n"},
	},
	"ruby": {
		{"x = 41", "x = 41\r\n=> 41\r\n"},
		{"def f\n7\nend\nf", "def f\r\n__S0_CONT__ 7\r\n__S0_CONT__ end\r\n=> :f\r\n_S0_> f\r\n=> 7\r\n"},
	},
	"lua": {
		{"print(41 + 1)", "print(41 + 1)\r\n42\r\n"},
		{"function f()\nreturn 7 end\nprint(f())", "function f()\r\n__S0_CONT__ return 7 end\r\n_S0_> print(f())\r\n7\r\n"},
	},
	"php": {
		{"$x = 41; echo $x + 1;", "$x = 41; echo $x + 1;\r\n42"},
		{"function f() {\nreturn 7; }\necho f(), PHP_EOL;", "function f() {\r\n__S0_CONT__ return 7; }\r\n_S0_> echo f(), PHP_EOL;\r\n7\r\n"},
		{"no_such();", "no_such();\r\nError: Call to undefined function no_such()\r\n"},
	},
	"r": {
		{"41 + 1", "41 + 1\r\n[1] 42\r\n"},
		{"f <- function() {\n7 }\nf()", "f <- function() {\r\n__S0_CONT__ 7 }\r\n_S0_> f()\r\n[1] 7\r\n"},
	},
	"redis-cli": {{"help", "help\r\nredis-cli "}},
}

func TestConversations(t *testing.T) {
	t.Parallel()
	for alias, steps := range conversations {
		t.Run(alias, func(t *testing.T) {
			t.Parallel()
			r := startAlias(t, alias)
			for _, step := range steps {
				got := r.mustExec(t, step[0])
				if r.def.Exact && got != step[1] || !strings.HasPrefix(got, step[1]) {
					t.Errorf("%q printed %q, want %q", step[0], got, step[1])
				}
			}
		})
	}
}

// At a terminal, line editors echo in their own way; what must hold is that an
// exec ends with its own output and not before. (Ruby's asks the terminal for the
// cursor's place first, and there is none here to answer.)
func TestConversationsAtATerminal(t *testing.T) {
	t.Parallel()
	for alias, code := range map[string]string{
		"python": "import time\ntime.sleep(0.3)\nprint(41 + 1)", "bash": "sleep 0.3\necho $((41 + 1))",
		"zsh": "sleep 0.3\necho $((41 + 1))", "node": "41 + 1", "lua": "print(41 + 1)", "sqlite": "select 41 + 1;",
	} {
		t.Run(alias, func(t *testing.T) {
			t.Parallel()
			r := start(t, procapi.REPLRequest{Alias: alias}, true)
			for range 2 {
				if out := r.mustExec(t, code); !strings.Contains(out, "42") {
					t.Errorf("%q printed %q", code, out)
				}
			}
		})
	}
}

func TestSlowLinesAreWaitedFor(t *testing.T) {
	t.Parallel()
	r := startAlias(t, "python")
	r.mustExec(t, "import time")
	// Both lines are slower than the contract's quiet time and than offerDelay, and silent;
	// the first by far, so that an offer that comes late on a busy machine does not meet its end.
	out := r.mustExec(t, "time.sleep(4)\ntime.sleep(0.7); print('done')")
	if !strings.HasSuffix(out, "done\r\n") {
		t.Errorf("output %q", out)
	}
}

func TestLinesThatTheCodeItselfReads(t *testing.T) {
	t.Parallel()
	for alias, c := range map[string]struct{ code, after string }{
		"python": {"x = input()\nhello\nx + '!'", "'hello!'\r\n"},
		"bash":   {"read x\nhello\necho $x!", "hello!\r\n"},
	} {
		t.Run(alias, func(t *testing.T) {
			t.Parallel()
			r := startAlias(t, alias)
			if out := r.mustExec(t, c.code); !strings.HasSuffix(out, c.after) {
				t.Errorf("output %q", out)
			}
			if out := r.mustExec(t, "1"); !strings.HasPrefix(out, "1\r\n") {
				t.Errorf("the next exec gave %q", out)
			}
		})
	}
}

func TestExecTimesOutAndTheNextAnswersTheProgram(t *testing.T) {
	t.Parallel()
	r := startAlias(t, "python")
	r.mustExec(t, "y = 1")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := r.exec(ctx, "x = input('name? ')"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("exec that waits for input: %v", err)
	}
	r.mustExec(t, "gopher")
	if out := r.mustExec(t, "x"); out != "x\r\n'gopher'\r\n" {
		t.Errorf("output %q", out)
	}
}

func TestInputBesideExec(t *testing.T) {
	t.Parallel()
	r := startAlias(t, "python")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	turn, err := r.Input(ctx, []byte("x = input()\n"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := r.Input(ctx, []byte("gopher\n")) // the REPL is busy: it is the program's
	if err != nil {
		t.Fatal(err)
	}
	for _, turn := range []Turn{turn, answer} {
		if err := r.Await(ctx, turn); err != nil {
			t.Fatal(err)
		}
	}
	if out := r.mustExec(t, "x"); out != "x\r\n'gopher'\r\n" {
		t.Errorf("output %q", out)
	}
	// Typed key by key, then answered once.
	for _, key := range []string{"1", "+", "1", "\n"} {
		if turn, err = r.Input(ctx, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Await(ctx, turn); err != nil {
		t.Fatal(err)
	}
	if out := r.mustExec(t, "3"); out != "3\r\n3\r\n" {
		t.Errorf("output %q", out)
	}
}

func TestExecsQueueUp(t *testing.T) {
	t.Parallel()
	r := startAlias(t, "python")
	r.mustExec(t, "n = 0")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if out := r.mustExec(t, "n += 1; print('n', n)"); strings.Count(out, "n ") < 2 || strings.Count(out, "\r\n") != 2 {
				t.Errorf("output %q", out)
			}
		})
	}
	wg.Wait()
	if out := r.mustExec(t, "n"); out != "n\r\n20\r\n" {
		t.Errorf("output %q", out)
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	busy := make(chan error, maxWaiting+2)
	for range maxWaiting + 2 {
		go func() { _, err := r.exec(ctx, "import time; time.sleep(1000)"); busy <- err }()
	}
	if err := <-busy; !errors.Is(err, ErrBusy) {
		t.Errorf("one exec too many: %v", err)
	}
	cancel()
	for range maxWaiting + 1 {
		if err := <-busy; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled exec: %v", err)
		}
	}
}

func TestPromptInTheCode(t *testing.T) {
	t.Parallel()
	r := startAlias(t, "python")
	out := r.mustExec(t, "import time; print('_S0_> ', end='', flush=True); print('end')")
	if !strings.HasSuffix(out, "_S0_> end\r\n") {
		t.Errorf("output %q", out)
	}
	if out := r.mustExec(t, "1"); out != "1\r\n1\r\n" {
		t.Errorf("the next exec gave %q", out)
	}
}

func TestExitDuringExec(t *testing.T) {
	t.Parallel()
	r := startAlias(t, "bash")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := r.exec(ctx, "echo bye; exit 3")
	if !errors.Is(err, ErrExited) || !strings.Contains(out, "\r\nbye\r\n") || r.proc.Exit().ExitCode != 3 {
		t.Errorf("output %q, %v, exit %+v", out, err, r.proc.Exit())
	}
	if _, err := r.exec(ctx, "echo more"); !errors.Is(err, ErrExited) {
		t.Errorf("exec after the end: %v", err)
	}
}

func TestLongLine(t *testing.T) {
	t.Parallel()
	for alias, code := range map[string]string{"python": "len('%s')", "node": "'%s'.length", "bash": "x=%s; echo ${#x}"} {
		t.Run(alias, func(t *testing.T) {
			t.Parallel()
			r := startAlias(t, alias)
			const n = 50_000
			if out := r.mustExec(t, fmt.Sprintf(code, strings.Repeat("x", n))); !strings.HasSuffix(out, fmt.Sprint("\r\n", n, "\r\n")) {
				t.Errorf("output of %d ends with %q; begins %q, all %d", len(out), out[max(0, len(out)-50):], out[:20], r.proc.Log().End())
			}
			if out := r.mustExec(t, fmt.Sprintf(code, "y")); !strings.HasSuffix(out, "\r\n1\r\n") {
				t.Errorf("the next exec gave %q", out)
			}
		})
	}
}

func TestCustom(t *testing.T) {
	t.Parallel()
	shell := []procapi.Candidate{{Name: "no-such-program"}, {Name: "sh", Args: []string{"-i"}}}
	for name, c := range map[string]procapi.REPLConfig{
		"prompt_token": {
			Name: "mine", Candidates: shell, Env: []procapi.EnvVar{{Name: "PS1", ValueFrom: "prompt"}},
			Ready: &procapi.Ready{Mode: "prompt_token", Token: "ask> "},
		},
		"custom_prompt": {
			Name: "mine", Candidates: shell, Env: []procapi.EnvVar{{Name: "PS1", Value: "ask> "}},
			Prompt: &procapi.Prompt{CustomPrompt: "ask> "},
		},
		"a token of its own": {
			Name: "mine", Candidates: []procapi.Candidate{{Name: "sh", Args: []string{"-c", "sleep 0.1; echo I am up; sleep 0.1; exec sh -i"}}},
			Env:    []procapi.EnvVar{{Name: "PS1", ValueFrom: "prompt"}},
			Prompt: &procapi.Prompt{CustomPrompt: "ask> "}, Ready: &procapi.Ready{Mode: "prompt_token", Token: "am up"},
		},
		"the prompt is the token": {
			Name: "mine", Candidates: shell, Env: []procapi.EnvVar{{Name: "PS1", ValueFrom: "prompt"}},
			Prompt: &procapi.Prompt{CustomPrompt: "ask> "}, Ready: &procapi.Ready{Mode: "prompt_token"},
		},
		"startup_delay": {
			Name: "mine", Candidates: shell, Env: []procapi.EnvVar{{Name: "PS1", ValueFrom: "prompt"}, {Name: "KIND", ValueFrom: "term"}},
			DefaultTerm: "dumb", Prompt: &procapi.Prompt{CustomPrompt: "ask> "}, Ready: &procapi.Ready{Mode: "startup_delay", StartupDelayMS: 500},
		},
		"learned prompt": {Name: "mine", Candidates: shell, Env: []procapi.EnvVar{{Name: "PS1", Value: "? "}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, procapi.REPLRequest{Config: &c}, false)
			for range 2 {
				if out := r.mustExec(t, "sleep 0.2; echo $((41 + 1))"); out != "sleep 0.2; echo $((41 + 1))\r\n42\r\n" {
					t.Errorf("output %q", out)
				}
			}
		})
	}
}

// BenchmarkPython compares a round trip through a session with the interpreter's own.
func BenchmarkPython(b *testing.B) {
	r := startAlias(b, "python")
	r.mustExec(b, "1")
	for b.Loop() {
		r.mustExec(b, "1")
	}
}
