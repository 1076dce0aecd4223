package warm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/freeport"
	"s0.run/internal/warm"
	"s0.run/procd/internal/contexts"
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
	second   = 20 * time.Millisecond // of the probes
)

// bundle is a manager that runs.
type bundle struct {
	*Manager
	t     *testing.T
	dir   string
	ended chan error
}

func start(t *testing.T, specs ...warm.Process) *bundle {
	t.Helper()
	b := &bundle{t: t, dir: t.TempDir(), ended: make(chan error, 1)}
	table := contexts.New(contexts.Config{Reaper: reaper, Workspace: b.dir, Env: []string{"PATH=/usr/bin:/bin", "HOME=" + b.dir}, Now: time.Now})
	b.Manager = New(Config{Contexts: table, Reaper: reaper})
	b.second = second
	ctx, cancel := context.WithCancel(context.Background())
	tableEnded, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(tableEnded); table.Run(ctx) }()
	go func() { defer close(ended); b.ended <- b.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended; <-tableEnded })
	for i, p := range specs {
		for _, probe := range []*warm.Probe{p.Startup, p.Readiness, p.Liveness} {
			if probe != nil {
				*probe = probe.WithDefaults()
			}
		}
		if p.Name == "" {
			specs[i].Name = "p" + strconv.Itoa(i)
		}
	}
	if err := warm.Validate(specs); err != nil {
		t.Fatal(err)
	}
	b.Start(specs)
	return b
}

// await waits for a status.
func (b *bundle) await(what string, is func(procapi.WarmStatus) bool) procapi.WarmStatus {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	found := errors.New("found")
	var last procapi.WarmStatus
	err := b.Watch(ctx, func(s procapi.WarmStatus) error {
		if last = s; is(s) {
			return found
		}
		return nil
	})
	if err != found {
		b.t.Fatalf("never: %s; at last %+v, %v", what, last, err)
	}
	return last
}

func ready(s procapi.WarmStatus) bool { return s.Ready }

// fails waits for the failure and for what Run says of it.
func (b *bundle) fails(says string) {
	b.t.Helper()
	s := b.await("a failure that says "+says, func(s procapi.WarmStatus) bool { return s.Failed })
	if s.Ready || !strings.Contains(s.Reason, says) {
		b.t.Errorf("%+v, want a failure that says %q", s, says)
	}
	_ = b.Watch(context.Background(), func(procapi.WarmStatus) error { return nil }) // somebody was told
	select {
	case err := <-b.ended:
		if err == nil || err.Error() != s.Reason {
			b.t.Errorf("Run returned %v", err)
		}
		b.ended <- nil
	case <-time.After(patience):
		b.t.Fatal("Run goes on after a failure")
	}
}

func sh(script string) warm.Process {
	return warm.Process{Type: warm.CMD, Command: []string{"sh", "-c", script}}
}

// check is a probe that has time enough, whatever else the machine does.
func check(script string) *warm.Probe {
	return &warm.Probe{Exec: []string{"sh", "-c", script}, TimeoutSeconds: 1000}
}

func TestReadyWithoutProcesses(t *testing.T) {
	t.Parallel()
	b := start(t)
	b.await("ready", ready)
	if err := b.SetEnv(map[string]string{"A": "b"}, Stale); err != nil {
		t.Error(err)
	}
}

func TestProcessesWithoutProbes(t *testing.T) {
	t.Parallel()
	b := start(t, sh("sleep 1000"), warm.Process{Type: warm.REPL})
	b.await("ready", ready)
	list := b.cfg.Contexts.List().Contexts
	if len(list) != 2 || list[0].Type != "cmd" || list[1].Alias != "python" || !list[0].Running || !list[1].Running {
		t.Errorf("contexts: %+v", list)
	}
}

func TestStartupComesFirst(t *testing.T) {
	t.Parallel()
	p := sh("sleep 1000")
	p.Startup = check("test -e started")
	p.Startup.FailureThreshold = 1000
	p.Readiness = check("test -e ready")
	p.Liveness = check("test -e started") // fails before
	p.Liveness.FailureThreshold = 1
	b := start(t, p)
	b.await("a reason", func(s procapi.WarmStatus) bool {
		return !s.Ready && strings.Contains(s.Reason, `warm process p0 has not started yet: command "sh": exited with code 1`)
	})
	b.touch("started")
	b.await("not ready", func(s procapi.WarmStatus) bool { return strings.Contains(s.Reason, "p0 is not ready") })
	b.touch("ready")
	b.await("ready", ready)
	b.remove("ready")
	b.await("readiness lost", func(s procapi.WarmStatus) bool { return !s.Ready && !s.Failed })
	b.touch("ready")
	b.await("ready again", ready)
	b.remove("started")
	b.fails("warm process p0 is not alive")
}

func (b *bundle) touch(name string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), nil, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bundle) remove(name string) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.dir, name)); err != nil {
		b.t.Fatal(err)
	}
}

func TestAllMustBeReady(t *testing.T) {
	t.Parallel()
	slow := sh("sleep 1000")
	slow.Readiness = check("test -e ready")
	b := start(t, sh("sleep 1000"), slow)
	b.await("the slow one's reason", func(s procapi.WarmStatus) bool { return strings.HasPrefix(s.Reason, "warm process p1 is not ready") })
	b.touch("ready")
	b.await("ready", ready)
}

func TestHTTPAndTCPProbes(t *testing.T) {
	t.Parallel()
	var status atomic.Int64
	status.Store(http.StatusServiceUnavailable)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" || r.Header.Get("X-Probe") != "yes" || r.Host != "named" {
			status.Store(http.StatusTeapot)
		}
		w.WriteHeader(int(status.Load()))
	}))
	defer srv.Close()
	p := sh("sleep 1000")
	p.Startup = &warm.Probe{TCPPort: portOf(srv.Listener)}
	p.Readiness = &warm.Probe{FailureThreshold: 2, HTTP: &warm.HTTPGet{
		Path: "/healthz", Port: portOf(srv.Listener), Headers: []warm.Header{{Name: "X-Probe", Value: "yes"}, {Name: "host", Value: "named"}},
	}}
	b := start(t, p)
	b.await("unavailable", func(s procapi.WarmStatus) bool {
		return strings.HasSuffix(s.Reason, fmt.Sprintf("GET http://localhost:%d/healthz: status 503", portOf(srv.Listener)))
	})
	status.Store(http.StatusFound) // a redirect is a success, and not followed
	b.await("ready", ready)
	status.Store(http.StatusInternalServerError)
	b.await("lost", func(s procapi.WarmStatus) bool { return strings.Contains(s.Reason, "status 500") })
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

func TestFailures(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	hang, err := net.Listen("tcp", "127.0.0.1:0") // accepts, never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hang.Close() }) // after the subtests
	never := func(p warm.Process, probe warm.Probe) warm.Process {
		probe.PeriodSeconds = 1
		if probe.TimeoutSeconds == 0 {
			probe.TimeoutSeconds = 10
		}
		p.Startup = &probe
		return p
	}
	for says, p := range map[string]warm.Process{
		"p0 could not be started: starting \"no-such-program\"":                               {Type: warm.CMD, Command: []string{"no-such-program"}},
		`p0 could not be started: unknown REPL "cobol"`:                                       {Type: warm.REPL, Alias: "cobol"},
		"p0 exited with code 3: last words":                                                   sh("echo first >&2; echo last words >&2; exit 3"),
		"p0 exited with code 0":                                                               sh("exit 0"),
		"p0 was killed":                                                                       sh("kill -9 $$"),
		`did not start: command "sh": exited with code 1: because`:                            never(sh("sleep 1000"), *check("echo because; exit 1")),
		fmt.Sprintf("did not start: port %d: connection refused", port):                       never(sh("sleep 1000"), warm.Probe{TCPPort: port}),
		fmt.Sprintf("GET https://localhost:%d/: nothing within 200ms", portOf(hang)):          never(sh("sleep 1000"), warm.Probe{HTTP: &warm.HTTPGet{Path: "/", Port: portOf(hang), TLS: true}}),
		`did not start: command "sleep": nothing within 200ms`:                                never(sh("sleep 1000"), warm.Probe{Exec: []string{"sleep", "1000"}}),
		"is not alive: process: it is paused":                                                 {Type: warm.CMD, Command: []string{"sh", "-c", "kill -STOP $$"}, Liveness: &warm.Probe{Process: true}},
		"p0 exited with code 9: ??[31mred":                                                    sh(`printf '\033\001[31mred\n'; exit 9`),
		"p0 exited with code 8: " + strings.Repeat("x", 200-3) + "...":                        sh("head -c 1000 /dev/zero | tr '\\0' x; exit 8"),
		`p0 could not be started: working directory "/no/such/dir" does not exist`:            {Type: warm.CMD, Command: []string{"sleep", "1"}, Cwd: "/no/such/dir"},
		`did not start: command "no-such-probe": starting "no-such-probe": no such file or d`: never(sh("sleep 1000"), warm.Probe{Exec: []string{"no-such-probe"}}),
	} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			start(t, p).fails(says)
		})
	}
}

// What the template's processes would see of a claim restarts them, and nothing else.
func TestAClaimRestartsWhatIsStale(t *testing.T) {
	t.Parallel()
	show := func(p warm.Process) warm.Process { p.Readiness = check("test -e out-$NAME"); return p }
	named := func(name, script string) warm.Process {
		p := sh(script)
		p.Name, p.Env = name, map[string]string{"NAME": name}
		return p
	}
	const script = `echo "$CLAIM" > out-$NAME; exec sleep 1000`
	keep, blind := named("keep", script), named("blind", script)
	keep.KeepOnClaim = true
	blind.Env["CLAIM"] = "own"
	repl := warm.Process{Name: "repl", Type: warm.REPL}
	b := start(t, show(named("sees", script)), show(keep), show(blind), repl)
	b.await("ready", ready)
	before := b.contexts()
	for range 2 { // the second is a repetition whose answer got lost
		if err := b.SetEnv(map[string]string{"CLAIM": "yes"}, Stale); err != nil {
			t.Fatal(err)
		}
	}
	b.await("ready", ready)
	after := b.contexts()
	for i, restarted := range []bool{true, false, false, true} {
		if (before[i] != after[i]) != restarted {
			t.Errorf("process %d: pid %d, then %d", i, before[i], after[i])
		}
		if err := unix.Kill(before[i], 0); restarted && err == nil {
			t.Errorf("process %d lives beside the one that replaced it", i)
		}
	}
	if got := b.read("out-sees"); got != "yes\n" {
		t.Errorf("the restarted one sees %q", got)
	}
	if err := b.SetEnv(map[string]string{"CLAIM": "later"}, None); err != nil {
		t.Fatal(err)
	}
	if now := b.contexts(); now[0] != after[0] || now[3] != after[3] {
		t.Error("a change of the running sandbox's environment restarted a process")
	}
	if err := b.SetEnv(map[string]string{"CLAIM": "later"}, All); err != nil {
		t.Fatal(err)
	}
	for i, now := range b.contexts() {
		if restarted := now != after[i]; restarted == (i == 1) { // all but the one that is to be kept
			t.Errorf("process %d restarted: %v", i, restarted)
		}
	}
}

// contexts are the pids of all contexts.
func (b *bundle) contexts() (pids []int) {
	b.t.Helper()
	for _, c := range b.cfg.Contexts.List().Contexts {
		stats, err := b.cfg.Contexts.Stats(c.ID)
		if err != nil {
			b.t.Fatal(err)
		}
		pids = append(pids, stats.PID)
	}
	return pids
}

func (b *bundle) read(name string) string {
	raw, _ := os.ReadFile(filepath.Join(b.dir, name))
	return string(raw)
}

func TestARestartThatFails(t *testing.T) {
	t.Parallel()
	b := start(t, sh("sleep 1000"))
	b.await("ready", ready)
	if err := b.SetEnv(map[string]string{"PATH": "/no/where"}, Stale); err == nil {
		t.Error("SetEnv says nothing")
	}
	b.fails(`warm process p0 could not be restarted: starting "sh"`)
}

// A tenant may do with a warm process what he may do with any context.
func TestWhatATenantOwnsIsNotWatched(t *testing.T) {
	t.Parallel()
	server := sh("sleep 1000")
	server.Liveness = check("test -e alive")
	server.Liveness.PeriodSeconds, server.Liveness.FailureThreshold = 1, 100
	b := start(t, server, warm.Process{Type: warm.REPL, Liveness: check("test -e alive")})
	b.await("ready", ready)
	list := b.cfg.Contexts.List().Contexts
	if _, err := b.cfg.Contexts.Exec(t.Context(), list[1].ID, "exit()"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.cfg.Contexts.Restart(list[0].ID); err != nil { // still the template's
		t.Fatal(err)
	}
	if err := b.cfg.Contexts.Delete(list[0].ID); err != nil {
		t.Fatal(err)
	}
	// Whatever the manager concludes it concludes within its last goroutines' time.
	b.touch("alive")
	b.await("ready", ready)
	if status, _ := b.Status(); status.Failed {
		t.Errorf("%+v", status)
	}
	select {
	case err := <-b.ended:
		t.Errorf("the sandbox would have ended: %v", err)
	default:
	}
}

func TestARestartedProcessIsWatchedOn(t *testing.T) {
	t.Parallel()
	b := start(t, sh("echo $$ > pid; exec sleep 1000"))
	b.await("ready", ready)
	id := b.cfg.Contexts.List().Contexts[0].ID
	if _, err := b.cfg.Contexts.Restart(id); err != nil {
		t.Fatal(err)
	}
	if err := b.cfg.Contexts.Signal(id, "TERM"); err != nil {
		t.Fatal(err)
	}
	b.fails("warm process p0 was killed")
}

func TestCounter(t *testing.T) {
	t.Parallel()
	probe := &warm.Probe{SuccessThreshold: 2, FailureThreshold: 2}
	c := counter{probe: probe, period: time.Second}
	bad := errors.New("no")
	at := func(d time.Duration) time.Time { return time.Unix(100, 0).Add(d) }
	for i, step := range []struct {
		err     error
		at      time.Duration
		decided bool
	}{
		{bad, 0, false}, {bad, 100 * time.Millisecond, false}, {bad, 900 * time.Millisecond, false}, // early looks count for nothing
		{bad, time.Second, false}, {bad, 1500 * time.Millisecond, false}, {bad, 2 * time.Second, true}, // two periods have passed
		{nil, 3 * time.Second, false}, {nil, 3100 * time.Millisecond, true}, {nil, 4 * time.Second, true},
		{bad, 5 * time.Second, false}, {nil, 6 * time.Second, false}, {bad, 7 * time.Second, false}, {bad, 7100 * time.Millisecond, true},
	} {
		if got := c.decides(step.err, at(step.at)); got != step.decided {
			t.Errorf("step %d: decided %v", i, got)
		}
	}
}
