package lifecycle

import (
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/netns"
)

// Running is a sandbox that somebody has claimed and that has not ended, with
// where on this machine its traces are.
type Running struct {
	ID         sandbox.ID
	Generation sandbox.Generation
	Limits     cgroup.Limits
	DiskBytes  int64 // that it may write to its root filesystem; 0: as many as there are
	Network    netns.Slot
	OverlayDir string
}

// Running finds one sandbox, for a caller that knows its generation (0: any).
func (m *Manager) Running(id sandbox.ID, gen sandbox.Generation) (Running, error) {
	inst := m.find(id)
	if inst == nil {
		return Running{}, notFound(id)
	}
	rec := m.record(inst)
	if err := usable(rec); err != nil {
		return Running{}, err
	}
	if err := checkGeneration(rec, gen); err != nil {
		return Running{}, err
	}
	return m.running(rec), nil
}

// AllRunning lists them.
func (m *Manager) AllRunning() []Running {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Running
	for _, inst := range m.instances {
		if inst.rec.State == journal.Claimed {
			all = append(all, m.running(inst.rec))
		}
	}
	return all
}

func (m *Manager) running(rec journal.Record) Running {
	return Running{
		ID: rec.ID, Generation: rec.Generation, Limits: limits(rec.Spec, rec.Claim, false), DiskBytes: rec.Spec.DiskBytes,
		Network: netns.Slot{ID: rec.ID, Index: rec.NetIndex, IP: rec.IP}, OverlayDir: m.overlayDir(rec.ID),
	}
}
