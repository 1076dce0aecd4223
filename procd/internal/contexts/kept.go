package contexts

import (
	"encoding/json"
	"slices"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// Kept tells what it takes to have the contexts again in a life without their processes.
// When not all fit, REPLs that live come first, then what is newest. What a template asks
// for, and nobody has made his own, its next life starts anew.
func (t *Table) Kept() []procapi.KeptContext {
	var live, rest []procapi.KeptContext
	for _, e := range slices.Backward(t.list()) {
		k, theirs := e.keep()
		switch {
		case !theirs:
		case k.Exit == nil && k.Request.Type == typeREPL:
			live = append(live, k)
		default:
			rest = append(rest, k)
		}
	}
	kept := bounded(append(live, rest...))
	slices.SortStableFunc(kept, func(a, b procapi.KeptContext) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return kept
}

// keep is the context without what its request wanted to be done at once; false if it is
// the template's.
func (e *entry) keep() (k procapi.KeptContext, theirs bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.warm && (e.fresh || e.plan.req.Type == typeCMD) {
		return procapi.KeptContext{}, false
	}
	k = procapi.KeptContext{ID: e.id, CreatedAt: e.created.UTC(), Request: e.plan.req}
	k.Request.WaitUntilDone = false
	if k.Request.REPL != nil {
		repl := *k.Request.REPL
		repl.Input = ""
		k.Request.REPL = &repl
	}
	if !e.starting && e.live.ended() {
		exit := e.live.Process.Exit()
		k.Exit = &exit
	}
	return k, true
}

// bounded leaves out what is beyond the bounds.
func bounded(all []procapi.KeptContext) []procapi.KeptContext {
	kept := []procapi.KeptContext{}
	room := procapi.MaxKeptBytes
	for _, k := range all {
		b, err := json.Marshal(k)
		if err != nil || len(b) >= room || len(kept) == procapi.MaxKept {
			continue
		}
		room -= len(b) + 1
		kept = append(kept, k)
	}
	return kept
}

// Revive makes contexts of an earlier life this table's, which is new. A REPL that lived
// gets a new interpreter; one that can't be started any more, and a command that ran, are
// shown as killed. What makes no sense is left out: it came from a sandbox.
func (t *Table) Revive(kept []procapi.KeptContext) {
	for _, k := range kept {
		p, err := newPlan(k.Request, t.cfg.Workspace)
		if err != nil || k.ID == "" || len(k.ID) > maxIDBytes {
			continue
		}
		e := &entry{id: k.ID, plan: p, created: k.CreatedAt, used: t.cfg.Now()}
		if k.Exit != nil || p.req.Type != typeREPL || !t.reviveREPL(e) {
			t.reviveEnded(e, k.Exit)
		}
	}
}

// maxIDBytes bounds what is taken for an id.
const maxIDBytes = 64

func (t *Table) reviveREPL(e *entry) bool {
	if t.reserve() != nil {
		return false
	}
	live, err := e.plan.start(t.cfg.Reaper, t.environment())
	if err != nil {
		t.release()
		return false
	}
	live.Process.Log().Forget() // nobody is about to read it
	e.live = live
	t.add(e, live)
	return true
}

func (t *Table) reviveEnded(e *entry, exit *procapi.Exit) {
	if exit == nil {
		exit = &procapi.Exit{ExitCode: proc.KilledExitCode, State: proc.StateKilled}
	}
	e.live, e.end = &Live{Process: proc.Ended(*exit)}, t.ends.Add(1)
	t.mu.Lock()
	if t.entries[e.id] == nil {
		t.insertLocked(e)
	}
	t.mu.Unlock()
	t.watchLimits(e)
}
