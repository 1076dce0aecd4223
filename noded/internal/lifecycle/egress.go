package lifecycle

import (
	"context"

	"s0.run/internal/sandbox"
	"s0.run/noded/internal/egress"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/netns"
)

// Egress is the face of package egress, where the contracts are.
type Egress interface {
	Available() bool
	Attach(ctx context.Context, s netns.Slot, gen sandbox.Generation)
	SetPolicy(ctx context.Context, id sandbox.ID, team string, n *journal.Network) error
	Detach(ctx context.Context, id sandbox.ID)
}

// addNetwork makes a sandbox's network, with its policy in force before anything runs
// in it.
func (m *Manager) addNetwork(ctx context.Context, rec journal.Record) error {
	slot := m.cfg.Network.Slot(rec.ID, rec.NetIndex)
	if err := m.cfg.Network.Add(slot); err != nil {
		return err
	}
	m.cfg.Egress.Attach(ctx, slot, rec.Generation)
	m.openEgress(ctx, rec)
	return nil
}

// removeNetwork closes a sandbox's way out before its link goes.
func (m *Manager) removeNetwork(ctx context.Context, slot netns.Slot) error {
	m.cfg.Egress.Detach(ctx, slot.ID)
	m.ending(slot)
	return m.cfg.Network.Remove(slot)
}

// ending has the last of a claimed sandbox's counters read, which go with its link.
func (m *Manager) ending(slot netns.Slot) {
	inst := m.find(slot.ID)
	if inst == nil || m.cfg.Ending == nil {
		return
	}
	if rec := m.record(inst); rec.Claim != nil {
		last := m.running(rec)
		last.Network = slot
		m.cfg.Ending(last)
	}
}

// knowNetwork fills the desired state from a record of before, of which something may
// be alive.
func (m *Manager) knowNetwork(ctx context.Context, rec journal.Record) {
	if atRest(rec) || rec.NetIndex == 0 {
		return
	}
	m.cfg.Egress.Attach(ctx, m.cfg.Network.Slot(rec.ID, rec.NetIndex), rec.Generation)
	m.openEgress(ctx, rec)
}

// openEgress has a sandbox's policy enforced as soon as somebody can. Until then
// nothing passes, which no sandbox is held up for.
func (m *Manager) openEgress(ctx context.Context, rec journal.Record) {
	if rec.Claim == nil {
		return
	}
	if err := m.cfg.Egress.SetPolicy(ctx, rec.ID, rec.Claim.Team, rec.Claim.Network); err != nil {
		m.log(rec).Debug("a sandbox has no egress yet", "error", err)
	}
}

// setPolicy puts a policy into force that somebody asked for, or fails.
func (m *Manager) setPolicy(ctx context.Context, rec journal.Record) error {
	if rec.Claim.Network == nil {
		m.openEgress(ctx, rec)
		return nil
	}
	return m.cfg.Egress.SetPolicy(ctx, rec.ID, rec.Claim.Team, rec.Claim.Network)
}

// checkEgress refuses a policy that nobody would enforce.
func (m *Manager) checkEgress(n *journal.Network) error {
	if n != nil && !m.cfg.Egress.Available() {
		return egress.ErrUnavailable
	}
	return nil
}
