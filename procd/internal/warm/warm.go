// Package warm keeps the processes that a template wants to run before there is
// a tenant: it starts them, probes them, and says whether all of them are healthy.
//
// A warm process is a context like any other. What it is beyond that ends as soon
// as a tenant makes it his own: a REPL by its first use, a command by its
// deletion. Until then its end, a failed startup probe and a failed liveness probe
// are the sandbox's failure: [Manager.Run] returns it and procd exits, for the
// template promised a sandbox with that process in it. A claim that changes what a
// process would see restarts it.
//
// The manager owns one goroutine for each process and those of its probes; package
// contexts owns the processes. It never restarts what failed.
package warm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/warm"
	"s0.run/procd/internal/contexts"
	"s0.run/procd/internal/probe"
	"s0.run/procd/internal/reap"
)

const (
	// reportTime is how long a failure waits for somebody who wants to know, before
	// procd exits without having told.
	reportTime = time.Second

	// heardTime is how long procd lives on when it has told: whoever was told ends
	// the sandbox with that reason, and must not learn of an exit first.
	heardTime = 500 * time.Millisecond
)

// Config of a manager. All fields are required.
type Config struct {
	Contexts *contexts.Table
	Reaper   *reap.Reaper // runs the commands of probes
}

// Manager is safe for concurrent use.
type Manager struct {
	cfg     Config
	second  time.Duration              // what the numbers of probes count; tests have shorter ones
	tasks   chan func(context.Context) // what Run shall run
	stopped chan struct{}              // closed when Run takes no more tasks

	failure  chan struct{} // closed at the first failure
	reported chan struct{} // closed when somebody was told of it
	tell     sync.Once     // closes reported

	restarting sync.Mutex // held while processes are started or restarted

	mu        sync.Mutex
	processes []*process
	status    procapi.WarmStatus
	changed   chan struct{} // closed when status changes
}

// process is a warm process. The manager's mu guards what follows context.
type process struct {
	spec    warm.Process
	context *contexts.Warm

	ready  bool
	reason string // why it is not
}

// New returns a manager without processes, which is ready.
func New(cfg Config) *Manager {
	return &Manager{
		cfg: cfg, second: time.Second, tasks: make(chan func(context.Context)), stopped: make(chan struct{}),
		failure: make(chan struct{}), reported: make(chan struct{}),
		status: procapi.WarmStatus{Ready: true}, changed: make(chan struct{}),
	}
}

// Run watches over the processes until ctx ends or one of them fails, and returns
// the failure.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	defer close(m.stopped)
	for {
		select {
		case task := <-m.tasks:
			work.Go(func() { task(ctx) })
		case <-ctx.Done():
			return nil
		case <-m.failure:
			m.awaitReport(ctx)
			status, _ := m.Status()
			return errors.New(status.Reason)
		}
	}
}

func (m *Manager) awaitReport(ctx context.Context) {
	timer := time.NewTimer(reportTime)
	defer timer.Stop()
	select {
	case <-m.reported:
		sleep(ctx, heardTime)
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Start has the processes started; it doesn't wait for that. It is called once. One
// that can't be started is a failure like any other.
func (m *Manager) Start(specs []warm.Process) {
	if len(specs) == 0 {
		return
	}
	m.mu.Lock()
	m.publishLocked(procapi.WarmStatus{Reason: "warm processes are being started"})
	m.mu.Unlock()
	m.run(func(ctx context.Context) { m.start(ctx, specs) })
}

func (m *Manager) start(ctx context.Context, specs []warm.Process) {
	m.restarting.Lock()
	defer m.restarting.Unlock()
	started := make([]*process, 0, len(specs))
	for _, spec := range specs {
		if ctx.Err() != nil {
			return
		}
		p := &process{spec: spec, reason: "has not started yet"}
		var err error
		if p.context, err = m.cfg.Contexts.StartWarm(request(spec)); err != nil {
			m.fail(p, fmt.Sprintf("could not be started: %v", err))
			return
		}
		started = append(started, p)
	}
	m.mu.Lock()
	m.processes = started
	m.updateLocked()
	m.mu.Unlock()
	for _, p := range started {
		m.run(func(ctx context.Context) { m.keep(ctx, p) })
	}
}

// run has Run run a task, unless it has ended.
func (m *Manager) run(task func(context.Context)) {
	select {
	case m.tasks <- task:
	case <-m.stopped:
	}
}

func request(spec warm.Process) procapi.CreateContext {
	req := procapi.CreateContext{Type: spec.Type, Cwd: spec.Cwd, EnvVars: spec.Env}
	if spec.Type == warm.REPL {
		req.REPL = &procapi.REPLRequest{Alias: spec.Alias}
	} else {
		req.CMD = &procapi.CMDRequest{Command: spec.Command}
	}
	return req
}

// Restart says which processes are ended and started anew, of those that a claim may
// restart at all and that are the template's still.
type Restart int

// What may be restarted.
const (
	None  Restart = iota
	Stale         // those that would see another environment
	All
)

// SetEnv replaces the sandbox's environment. It returns when what is to be restarted
// was.
func (m *Manager) SetEnv(env map[string]string, restart Restart) error {
	if err := m.cfg.Contexts.SetEnv(env); err != nil || restart == None {
		return err
	}
	m.restarting.Lock()
	defer m.restarting.Unlock()
	m.mu.Lock()
	all := m.processes
	m.mu.Unlock()
	errs := make([]error, len(all))
	var restarts sync.WaitGroup
	for i, p := range all {
		if !p.spec.KeepOnClaim && p.context.Kept() && (restart == All || p.context.Stale()) {
			restarts.Go(func() { errs[i] = m.restart(p) })
		}
	}
	restarts.Wait()
	return errors.Join(errs...)
}

func (m *Manager) restart(p *process) error {
	m.set(p, false, "is being restarted")
	err := p.context.Restart()
	if err != nil {
		m.fail(p, fmt.Sprintf("could not be restarted: %v", err))
	}
	return err
}

// keep watches over a process, and over those that restarts put into its place.
func (m *Manager) keep(ctx context.Context, p *process) {
	for live := p.context.Live(); live != nil; {
		live = m.follow(ctx, p, live)
	}
}

// follow watches over a process until it ends and returns what has taken its
// place; nil when there is nothing to watch any more.
func (m *Manager) follow(ctx context.Context, p *process, live *contexts.Live) *contexts.Live {
	probing, stop := context.WithCancel(ctx)
	var probes sync.WaitGroup
	probes.Go(func() { m.probe(probing, p, live) })
	select {
	case <-live.Process.Done():
	case <-ctx.Done():
	}
	stop()
	probes.Wait()
	if ctx.Err() != nil {
		return nil
	}
	if next := p.context.Next(live); next != nil {
		m.set(p, false, "was restarted")
		return next
	}
	if !p.context.Kept() {
		m.set(p, true, "")
		return nil
	}
	m.restarting.Lock() // a restart that failed knows better why
	defer m.restarting.Unlock()
	m.fail(p, probe.Ending(live.Process.Exit(), live.Process.Log()))
	return nil
}

// set says whether a process is healthy, and why not.
func (m *Manager) set(p *process, ready bool, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.ready, p.reason = ready, reason
	m.updateLocked()
}

// fail ends it all. The first failure is the one that is told.
func (m *Manager) fail(p *process, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status.Failed {
		return
	}
	m.publishLocked(procapi.WarmStatus{Failed: true, Reason: p.say(reason)})
	close(m.failure)
}

// condemn fails a process for what its probes say, unless it is on its way out
// already: killed by a restart, or to end by itself, which says more.
func (m *Manager) condemn(p *process, live *contexts.Live, reason string) {
	if p.context.Next(live) != nil {
		return
	}
	select {
	case <-live.Process.Done():
	default:
		m.fail(p, reason)
	}
}

func (m *Manager) updateLocked() {
	if m.status.Failed {
		return
	}
	status := procapi.WarmStatus{Ready: true}
	for _, p := range m.processes {
		if !p.ready {
			status = procapi.WarmStatus{Reason: p.say(p.reason)}
			break
		}
	}
	m.publishLocked(status)
}

func (m *Manager) publishLocked(status procapi.WarmStatus) {
	if status != m.status {
		m.status = status
		close(m.changed)
		m.changed = make(chan struct{})
	}
}

// say is what the host is told of a process.
func (p *process) say(reason string) string {
	return probe.Printable("warm process "+p.spec.Name+" "+reason, procapi.MaxWarmReason)
}

// Status is how the processes are, and a channel that is closed when that changes.
func (m *Manager) Status() (status procapi.WarmStatus, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status, m.changed
}

// Watch sends the status, and again whenever it changes, until ctx ends, send
// fails, or a failure was sent.
func (m *Manager) Watch(ctx context.Context, send func(procapi.WarmStatus) error) error {
	for {
		status, changed := m.Status()
		if err := send(status); err != nil {
			return err
		}
		if status.Failed {
			m.tell.Do(func() { close(m.reported) })
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
