package lifecycle

import (
	"context"
	"time"

	"s0.run/internal/sandbox"
)

// SetAdoptGrace is for tests that wait for its end.
func (m *Manager) SetAdoptGrace(d time.Duration) { m.adoptGrace = d }

// SetWarmUpTimeout is for tests that wait for its end.
func (m *Manager) SetWarmUpTimeout(d time.Duration) { m.warmUpTimeout = d }

// FallSilent is what happens when procd has not answered for long.
func (m *Manager) FallSilent(id sandbox.ID) {
	if inst := m.find(id); inst != nil {
		m.lost(context.Background(), inst, m.lifeOf(inst), true)
	}
}

// Connected reports whether the sandbox's procd is connected.
func (m *Manager) Connected(id sandbox.ID) bool {
	inst := m.find(id)
	return inst != nil && m.connected(inst)
}

// IndexesInUse counts what is neither free nor resting.
func (m *Manager) IndexesInUse() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.indexes.used)
}

// HoldTurn takes a sandbox's turn, until end.
func (m *Manager) HoldTurn(id sandbox.ID) (end func()) {
	inst := m.find(id)
	inst.turn <- struct{}{}
	return inst.endTurn
}

// Drop drops the image of a sandbox that is in the store.
func (m *Manager) Drop(id sandbox.ID) (bool, error) {
	return m.drop(context.Background(), m.record(m.find(id)))
}

// Waiting counts the resumes that wait for a place.
func (m *Manager) Waiting() int {
	m.cold.mu.Lock()
	defer m.cold.mu.Unlock()
	return len(m.cold.queue)
}

// ReleasesAtOnce is the bound of teardowns.
const ReleasesAtOnce = releasesAtOnce

// EndLater has a sandbox's end, which comes now, handled when it is called.
func (m *Manager) EndLater(id sandbox.ID) func() {
	inst := m.find(id)
	life := m.lifeOf(inst)
	return func() { m.exited(context.Background(), inst, life, Exit{ID: id, Reason: "killed"}) }
}
