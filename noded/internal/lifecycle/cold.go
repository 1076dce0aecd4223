package lifecycle

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"s0.run/internal/errdefs"
	"s0.run/noded/internal/journal"
)

// maxWaiting bounds the resumes that wait for a place, of which no team has more than half
// where the node is shared.
const maxWaiting = 256

// coldStarts bounds the starts under way for somebody who waits: claims that found no free
// slot, and resumes. A claim may find a slot elsewhere or a moment later, and is told when
// there is no place. A resume's sandbox is here, so it waits for one. A place that gets free
// goes to the team that waits and has fewest, and of those to the one that has begun none
// for longest.
type coldStarts struct {
	most    int
	tenants func() tenants // who is on this node; asked without mu

	mu    sync.Mutex
	all   int
	of    map[string]int    // by team
	queue []*waiter         // the oldest first
	count uint64            // of the places that were ever taken
	last  map[string]uint64 // which of them a team has taken last that has, or waits for, one
}

type waiter struct {
	team  string
	begun chan struct{} // closed when it has a place
}

// tenants are the teams that have sandboxes on the node, as far as one needs to know.
type tenants struct {
	one  string // of them; empty: there is none
	more bool   // beside it
}

// beside reports whether another team is there.
func (t tenants) beside(team string) bool { return t.more || t.one != "" && t.one != team }

func newColdStarts(most int, tenants func() tenants) *coldStarts {
	return &coldStarts{most: most, tenants: tenants, of: map[string]int{}, last: map[string]uint64{}}
}

// begin takes a place for a team, until end.
func (c *coldStarts) begin(team string) (end func(), ok bool) {
	here := c.tenants()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fits(team, here) {
		return nil, false
	}
	return c.take(team), true
}

// fits reports whether there is a place for a team. Where the node is shared, the last one
// is for a team that has none: who starts many does not keep out who starts one.
func (c *coldStarts) fits(team string, here tenants) bool {
	free := c.most - c.all
	return free > 1 || free == 1 && (c.of[team] == 0 || !here.beside(team))
}

func (c *coldStarts) take(team string) (end func()) {
	c.all++
	c.count++
	c.of[team]++
	c.last[team] = c.count
	return func() { c.end(team) }
}

func (c *coldStarts) end(team string) {
	here := c.tenants()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[team]--; c.of[team] == 0 {
		delete(c.of, team)
	}
	for i := c.next(here); i >= 0; i = c.next(here) {
		w := c.queue[i]
		c.queue = slices.Delete(c.queue, i, i+1)
		c.take(w.team)
		close(w.begun)
	}
	if c.of[team] == 0 && c.waiting(team) == 0 {
		delete(c.last, team)
	}
}

func (c *coldStarts) waiting(team string) (n int) {
	for _, w := range c.queue {
		if w.team == team {
			n++
		}
	}
	return n
}

// next is whose turn it is in the queue; -1: nobody's.
func (c *coldStarts) next(here tenants) int {
	found := -1
	for i, w := range c.queue {
		if c.fits(w.team, here) && (found < 0 || c.before(w.team, c.queue[found].team)) {
			found = i
		}
	}
	return found
}

func (c *coldStarts) before(a, b string) bool {
	return cmp.Or(cmp.Compare(c.of[a], c.of[b]), cmp.Compare(c.last[a], c.last[b])) < 0
}

// wait is begin for who waits for a place as long as ctx allows. It fails at once where too
// many do.
func (c *coldStarts) wait(ctx context.Context, team string) (end func(), ok bool) {
	w, end := c.enqueue(team)
	if w == nil {
		return end, end != nil
	}
	select {
	case <-w.begun:
		return func() { c.end(team) }, true
	case <-ctx.Done():
	}
	c.mu.Lock()
	i := slices.Index(c.queue, w)
	if i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
		if c.of[team] == 0 && c.waiting(team) == 0 {
			delete(c.last, team)
		}
	}
	c.mu.Unlock()
	if i < 0 {
		c.end(team) // it was given a place at the same time
	}
	return nil, false
}

// enqueue takes a place, or one in the queue, or neither.
func (c *coldStarts) enqueue(team string) (w *waiter, end func()) {
	here := c.tenants()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fits(team, here) {
		return nil, c.take(team)
	}
	if len(c.queue) >= maxWaiting || c.waiting(team) >= maxWaiting/2 && here.beside(team) {
		return nil, nil
	}
	w = &waiter{team: team, begun: make(chan struct{})}
	c.queue = append(c.queue, w)
	return w, nil
}

var errStarting = errdefs.New(errdefs.Exhausted, "too many sandboxes are starting").WithRetryAfter(coldRetryAfter)

// beginCold takes a place for a start without a slot.
func (m *Manager) beginCold(team string) (end func(), err error) {
	end, ok := m.cold.begin(team)
	if !ok {
		return nil, errStarting
	}
	return end, nil
}

// awaitCold takes a place for a resume.
func (m *Manager) awaitCold(ctx context.Context, team string) (end func(), err error) {
	end, ok := m.cold.wait(ctx, team)
	if !ok {
		return nil, because(ctx, errStarting)
	}
	return end, nil
}

// tenants looks who has sandboxes here, paused ones included.
func (m *Manager) tenants() (here tenants) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, inst := range m.instances {
		switch c := inst.rec.Claim; {
		case c == nil || inst.rec.State == journal.Terminating:
		case here.one == "":
			here.one = c.Team
		case here.one != c.Team:
			here.more = true
			return here
		}
	}
	return here
}
