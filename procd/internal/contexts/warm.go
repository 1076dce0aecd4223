package contexts

import (
	"maps"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/repl"
)

// Warm is a context that the template asked for and that runs before there is a
// tenant. It is listed and used like any other. A REPL is fresh until somebody
// uses it, and answers the first plain request for its alias: so a client's first
// line of code finds an interpreter that waits.
type Warm struct {
	table *Table
	entry *entry
}

// StartWarm starts a context for the template.
func (t *Table) StartWarm(req procapi.CreateContext) (*Warm, error) {
	e, live, err := t.start(req, true)
	if err != nil {
		return nil, err
	}
	live.Process.Log().Forget() // nobody is about to read it
	return &Warm{t, e}, nil
}

// Live is the process now.
func (w *Warm) Live() *Live { return w.entry.current() }

// Kept tells whether the process is the template's still: nobody has deleted it,
// nor made a REPL his own by using it.
func (w *Warm) Kept() bool {
	if _, err := w.table.get(w.entry.id); err != nil {
		return false
	}
	w.entry.mu.Lock()
	defer w.entry.mu.Unlock()
	return w.entry.fresh || w.entry.plan.req.Type == typeCMD
}

// Next is the process that a restart has put into the place of one that ended,
// nil if none has. It waits for a restart that is under way.
func (w *Warm) Next(ended *Live) *Live {
	w.entry.restart.Lock()
	defer w.entry.restart.Unlock()
	if live := w.entry.current(); live != ended {
		return live
	}
	return nil
}

// Stale tells whether the process would see another environment if it started now.
func (w *Warm) Stale() bool {
	p := w.entry.plan
	return !maps.Equal(p.environment(w.Live().base), p.environment(w.table.environment()))
}

// Restart ends the process and starts it anew.
func (w *Warm) Restart() error {
	_, err := w.table.Restart(w.entry.id)
	return err
}

// Beside says how to run a command where the process runs, in the environment
// that it sees, without input.
func (w *Warm) Beside(argv []string) (proc.Config, error) {
	p := *w.entry.plan
	p.req.Type, p.req.REPL, p.req.CMD = typeCMD, nil, &procapi.CMDRequest{Command: argv}
	p.req.PTYSize, p.req.WaitUntilDone = nil, true
	return p.config(w.Live().base)
}

// takeFresh gives the warm REPL that a plain request means to the first who asks.
func (t *Table) takeFresh(req procapi.CreateContext) *entry {
	if !plainREPL(req) {
		return nil
	}
	def, err := repl.Define(req.REPL, false)
	if err != nil {
		return nil // the request's own way will say why
	}
	for _, e := range t.list() {
		if e.take(def.Name, t.cfg.Now()) {
			return e
		}
	}
	return nil
}

// plainREPL tells a request that names a REPL and nothing else.
func plainREPL(req procapi.CreateContext) bool {
	return req.Type == typeREPL && req.CMD == nil && (req.REPL == nil || req.REPL.Config == nil && req.REPL.Input == "") &&
		!req.WaitUntilDone && req.Cwd == "" && len(req.EnvVars) == 0 && req.PTYSize == nil && req.IdleTimeoutSec == 0 && req.TTLSec == 0
}

// take makes a fresh REPL somebody's; false if it is none, or of another name.
func (e *entry) take(name string, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.fresh || e.plan.repl.Name != name || e.live.ended() {
		return false
	}
	e.fresh, e.used = false, now
	return true
}
