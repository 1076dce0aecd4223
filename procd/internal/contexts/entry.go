package contexts

import (
	"context"
	"maps"
	"sync"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/reap"
	"s0.run/procd/internal/repl"
)

// Live is a context's process, and its session if it is a REPL.
type Live struct {
	Process *proc.Process
	Session *repl.Session // nil for a command

	base map[string]string // the sandbox's environment that it was started in
}

// start runs a plan in the given environment.
func (p *plan) start(r *reap.Reaper, base map[string]string) (*Live, error) {
	cfg, err := p.config(base)
	if err != nil {
		return nil, err
	}
	live := &Live{base: base}
	if p.req.Type == typeREPL {
		live.Session = repl.NewSession(p.repl)
		cfg.Observe = live.Session.Observe
	}
	live.Process, err = proc.Start(r, cfg)
	if err != nil {
		return nil, startError(cfg, err)
	}
	if live.Session == nil {
		return live, nil
	}
	if err := live.Session.Start(live.Process); err != nil {
		live.Process.Close()
		return nil, startError(cfg, err)
	}
	return live, nil
}

func (l *Live) ended() bool {
	select {
	case <-l.Process.Done():
		return true
	default:
		return false
	}
}

// entry is a context in the table.
type entry struct {
	id      string
	number  uint64 // in order of creation
	plan    *plan
	created time.Time
	warm    bool // the template asked for it

	restart sync.Mutex // held over a whole restart, and by Delete

	mu       sync.Mutex
	live     *Live
	used     time.Time // last request, or output seen by the last sweep
	seen     uint64    // output at that sweep
	attached int       // readers that follow now
	fresh    bool      // a warm REPL that nobody has used
	end      uint64    // when its process ended, in order of ends
	starting bool      // a restart is under way: its process may have ended, it has not
}

// use returns the process and notes that somebody is interested in it.
func (e *entry) use(now time.Time) *Live {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.used, e.fresh = now, false
	return e.live
}

func (e *entry) replace(l *Live, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live, e.used, e.seen = l, now, 0
}

// restarting says whether a restart is under way.
func (e *entry) restarting(is bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.starting = is
}

// note remembers when the process ended, unless it is not the context's any more.
func (e *entry) note(l *Live, end uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.live == l {
		e.end = end
	}
}

// over tells of a context that has ended, and when.
func (e *entry) over() (live *Live, end uint64, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.live, e.end, !e.starting && e.live.ended()
}

// overdue tells whether the context's time is up.
func (e *entry) overdue(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if end := e.live.Process.Log().End(); end != e.seen || e.attached > 0 {
		e.seen, e.used = end, now
	}
	ttl, idle := e.plan.req.TTLSec, e.plan.req.IdleTimeoutSec
	return ttl > 0 && now.Sub(e.created) >= time.Duration(ttl)*time.Second ||
		idle > 0 && now.Sub(e.used) >= time.Duration(idle)*time.Second
}

func (e *entry) limited() bool { return e.plan.req.TTLSec > 0 || e.plan.req.IdleTimeoutSec > 0 }

// describe is the contract's view of a context.
func (e *entry) describe() procapi.Context {
	e.mu.Lock()
	live := e.live
	e.mu.Unlock()
	c := procapi.Context{
		ID: e.id, Type: e.plan.req.Type, Cwd: e.plan.dir, EnvVars: maps.Clone(e.plan.req.EnvVars),
		CreatedAt: e.created.UTC(), State: live.Process.State(),
	}
	if c.EnvVars == nil {
		c.EnvVars = map[string]string{}
	}
	if e.plan.req.Type == typeREPL {
		c.Alias = e.plan.repl.Name
	} else {
		c.Command = e.plan.req.CMD.Command
	}
	c.Running = c.State == proc.StateRunning
	c.Paused = c.State == proc.StatePaused
	if live.ended() {
		code := live.Process.Exit().ExitCode
		c.ExitCode = &code
	}
	return c
}

// exec writes data and waits for what the contract calls done: a REPL's prompt, or
// the end of a command.
func (l *Live) exec(ctx context.Context, data string) (procapi.ExecResult, error) {
	l.Process.Log().Forget() // the answer is what the caller waits for
	if l.Session != nil {
		span, err := l.Session.Exec(ctx, data)
		return l.result(span), err
	}
	from := l.Process.Log().End()
	if err := l.Process.Write([]byte(data)); err != nil {
		return procapi.ExecResult{}, err
	}
	return l.awaitEnd(ctx, from)
}

// awaitEnd waits for the end of the process.
func (l *Live) awaitEnd(ctx context.Context, from uint64) (procapi.ExecResult, error) {
	select {
	case <-l.Process.Done():
		return l.result(repl.Span{From: from, To: l.Process.Log().End()}), nil
	case <-ctx.Done():
		return procapi.ExecResult{}, ctx.Err()
	}
}
