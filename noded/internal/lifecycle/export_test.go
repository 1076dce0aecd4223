package lifecycle

import "time"

// SetAdoptGrace is for tests that wait for its end.
func (m *Manager) SetAdoptGrace(d time.Duration) { m.adoptGrace = d }

// SetWarmUpTimeout is for tests that wait for its end.
func (m *Manager) SetWarmUpTimeout(d time.Duration) { m.warmUpTimeout = d }

// IndexesInUse counts what is neither free nor resting.
func (m *Manager) IndexesInUse() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.indexes.used)
}
