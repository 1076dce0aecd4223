package lifecycle

import (
	"sync"

	"s0.run/internal/errdefs"
	"s0.run/noded/internal/journal"
)

// coldStarts bounds the starts under way because no slot was free.
type coldStarts struct {
	most int

	mu  sync.Mutex
	all int
	of  map[string]int // by team
}

func newColdStarts(most int) *coldStarts { return &coldStarts{most: most, of: map[string]int{}} }

// begin takes a place for a team, until end. Where the node is shared, the last
// place is for a team that has none: who starts many does not keep out who starts
// one.
func (c *coldStarts) begin(team string, shared bool) (end func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	free := c.most - c.all
	if free < 1 || free == 1 && shared && c.of[team] > 0 {
		return nil, false
	}
	c.all++
	c.of[team]++
	return func() { c.end(team) }, true
}

func (c *coldStarts) end(team string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[team]--; c.of[team] == 0 {
		delete(c.of, team)
	}
}

// beginCold takes a place for a start without a slot.
func (m *Manager) beginCold(team string) (end func(), err error) {
	end, ok := m.cold.begin(team, m.shared(team))
	if !ok {
		return nil, errdefs.New(errdefs.Exhausted, "too many sandboxes are starting").WithRetryAfter(coldRetryAfter)
	}
	return end, nil
}

// shared reports whether another team has sandboxes here, paused ones included.
func (m *Manager) shared(team string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, inst := range m.instances {
		if c := inst.rec.Claim; c != nil && c.Team != team && inst.rec.State != journal.Terminating {
			return true
		}
	}
	return false
}
