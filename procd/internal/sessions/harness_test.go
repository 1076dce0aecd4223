package sessions

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// fake is a process that does what the test says, on the bubble's clock.
type fake struct {
	req  procapi.CreateContext
	log  *proc.Log
	done chan struct{}

	mu      sync.Mutex
	exit    procapi.Exit
	signals []syscall.Signal
	input   []byte
	size    procapi.PTYSize
	closed  bool // its input
	full    bool // its input
	over    bool
	onTerm  func(*fake) // what TERM does; nil: end it
	state   string
}

func (f *fake) PID() int              { return 4711 }
func (f *fake) Log() *proc.Log        { return f.log }
func (f *fake) Done() <-chan struct{} { return f.done }
func (f *fake) Exit() procapi.Exit    { return f.exit }
func (f *fake) Kill() error           { f.end(137, proc.StateKilled); return nil }
func (f *fake) Close()                {}

func (f *fake) State() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fake) end(code int, state string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	f.over = true
	f.exit = procapi.Exit{ExitCode: code, State: state}
	f.log.Close()
	close(f.done)
}

func (f *fake) print(text string) { f.log.Append(proc.Stdout, []byte(text)) }

func (f *fake) Write(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.full:
		return proc.ErrInputFull
	case f.closed:
		return proc.ErrNoInput
	}
	f.input = append(f.input, b...)
	return nil
}

func (f *fake) CloseInput() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *fake) Resize(size procapi.PTYSize) error {
	if f.req.PTYSize == nil {
		return proc.ErrNoTerminal
	}
	f.size = size
	return nil
}

func (f *fake) Signal(sig syscall.Signal) error {
	f.mu.Lock()
	f.signals = append(f.signals, sig)
	onTerm := f.onTerm
	f.mu.Unlock()
	switch {
	case sig == syscall.SIGKILL:
		return f.Kill()
	case sig != syscall.SIGTERM:
	case onTerm != nil:
		onTerm(f)
	default:
		f.end(143, proc.StateKilled)
	}
	return nil
}

func (f *fake) onTermination(do func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onTerm = do
}

func stubborn(*fake) {}

// bundle is a table of fakes.
type bundle struct {
	*Table
	t *testing.T

	mu     sync.Mutex
	made   []*fake
	refuse error // what the next starts say
	probes map[string]*answers
}

// answers are how the commands of a probe end.
type answers struct{ code, asked int }

// silent is a probe's command that does not end.
const silent = -1

// inBubble runs a test on a clock of its own, which stands still while anything
// is to be done. Everything has ended afterwards.
func inBubble(t *testing.T, test func(*bundle)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bundle{t: t, probes: map[string]*answers{}}
		b.Table = New(Config{Start: b.startFake})
		b.SetGeneration(3)
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { b.Run(ctx) })
		defer run.Wait()
		defer cancel()
		test(b)
	})
}

func (b *bundle) startFake(req procapi.CreateContext, keep int) (Process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse != nil {
		return nil, b.refuse
	}
	f := &fake{req: req, log: proc.NewLog(keep), done: make(chan struct{}), state: proc.StateRunning}
	if req.CMD.Command[0] == "probe" {
		a := b.probeLocked(req.CMD.Command[1])
		if a.asked++; a.code != silent {
			f.end(a.code, proc.StateStopped)
		}
		return f, nil
	}
	b.made = append(b.made, f)
	return f, nil
}

func (b *bundle) probeLocked(name string) *answers {
	if b.probes[name] == nil {
		b.probes[name] = &answers{}
	}
	return b.probes[name]
}

// answer says how the commands of a probe end from now on; else they succeed.
func (b *bundle) answer(name string, code int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probeLocked(name).code = code
}

// asked is how often a probe was run.
func (b *bundle) asked(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.probeLocked(name).asked
}

func (b *bundle) refuseStarts(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = err
}

// latest is the process of the latest attempt, one of n that there were.
func (b *bundle) latest(n int) *fake {
	b.t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.made) != n {
		b.t.Fatalf("%d processes were started, want %d", len(b.made), n)
	}
	return b.made[n-1]
}

func (b *bundle) create(change func(*procapi.SessionSpec)) string {
	b.t.Helper()
	spec := procapi.SessionSpec{Command: []string{"work"}}
	if change != nil {
		change(&spec)
	}
	s, err := b.Create("", spec)
	if err != nil {
		b.t.Fatal(err)
	}
	return s.ID
}

func (b *bundle) see(id string) procapi.Session {
	b.t.Helper()
	synctest.Wait()
	s, err := b.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bundle) wantPhase(id, phase string) procapi.Session {
	b.t.Helper()
	s := b.see(id)
	if s.Phase != phase {
		b.t.Fatalf("phase %s, want %s; events %v", s.Phase, phase, b.types(id))
	}
	return s
}

func (b *bundle) events(id string) []procapi.SessionEvent {
	b.t.Helper()
	page, err := b.Events(id, 0, procapi.MaxSessionEvents)
	if err != nil {
		b.t.Fatal(err)
	}
	return page.Events
}

func (b *bundle) types(id string) (types []string) {
	b.t.Helper()
	for _, ev := range b.events(id) {
		types = append(types, strings.TrimSuffix(ev.Type+":"+ev.Reason, ":"))
	}
	return types
}

func (b *bundle) wantTypes(id string, want ...string) {
	b.t.Helper()
	synctest.Wait()
	if got := b.types(id); !slices.Equal(got, want) {
		b.t.Fatalf("events\n%v, want\n%v", got, want)
	}
}

// pass lets time pass; what is due meanwhile happens.
func (b *bundle) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("error %v, want %s", err, code)
	}
}
