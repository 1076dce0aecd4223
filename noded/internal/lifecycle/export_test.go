package lifecycle

import "time"

// SetAdoptGrace is for tests that wait for its end.
func (m *Manager) SetAdoptGrace(d time.Duration) { m.adoptGrace = d }
