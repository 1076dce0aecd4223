package contexts

import (
	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// Launch starts a command the way a context's is started, in the environment that
// the sandbox has now. The process is the caller's and in no table; its log keeps
// so many bytes, and waits for the caller to attach.
func (t *Table) Launch(req procapi.CreateContext, keep int) (*proc.Process, error) {
	p, err := newPlan(req, t.cfg.Workspace)
	if err != nil {
		return nil, err
	}
	cfg, err := p.config(t.environment())
	if err != nil {
		return nil, err
	}
	cfg.Keep = keep
	process, err := proc.Start(t.cfg.Reaper, cfg)
	if err != nil {
		return nil, startError(cfg, err)
	}
	return process, nil
}
