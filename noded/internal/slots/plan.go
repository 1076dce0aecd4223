package slots

import (
	"cmp"
	"slices"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
)

// Pool is a number of free slots of one spec.
type Pool struct {
	Key  string
	Spec sandbox.Spec
	Min  int    // free slots to keep
	Max  int    // free slots to keep at most, when demand asks for more than Min
	Team string // whose it is; empty: everybody's
}

// demandWindow is how long a claim counts as demand: a pool keeps as many slots
// free as were claimed in it, within its bounds.
const demandWindow = 5 * time.Minute

// counts is what exists of a pool; idle and warming count its present spec alone.
type counts struct {
	idle    []sandbox.ID
	warming int
	waits   string // why one of those that warm does, if it is known
	taken   int
}

// A staleSlot is one that no pool wants any more and nobody has: its pool is gone,
// or has another spec by now.
type staleSlot struct {
	id   sandbox.ID
	key  string
	free bool // it could be claimed if the pool came back
}

// count sorts the node's slots by pool.
func count(pools map[string]*pool, have []lifecycle.Slot) (byKey map[string]*counts, stale []staleSlot) {
	byKey = map[string]*counts{}
	for _, s := range have {
		if s.PoolKey == "" || s.Pod != "" { // a cold start of no pool, or Kubernetes'
			continue
		}
		c := byKey[s.PoolKey]
		if c == nil {
			c = &counts{}
			byKey[s.PoolKey] = c
		}
		p := pools[s.PoolKey]
		current := p != nil && p.hash == s.SpecHash
		switch {
		case s.State == lifecycle.Taken:
			c.taken++
		case !current:
			stale = append(stale, staleSlot{id: s.ID, key: s.PoolKey, free: s.State == lifecycle.Free})
		case s.State == lifecycle.Free:
			c.idle = append(c.idle, s.ID)
		default:
			c.warming++
			if s.Reason != "" {
				c.waits = s.Reason
			}
		}
	}
	return byKey, stale
}

// drains lists the stale slots to end. A replaced pool's free ones are kept while
// the pool that took its place has not as many of its own as it should: if the new
// spec turns out to be wrong and the old one comes back, they are there. They never
// are more than the new pool lacks, they make way when the node is full, and after
// a while they go, whatever the new pool has.
func drains(pools map[string]*pool, byKey map[string]*counts, stale []staleSlot, now time.Time) []sandbox.ID {
	keep := map[string]int{} // by family
	for key, p := range pools {
		family := nodeapi.PoolFamily(key)
		if family == "" || now.Sub(p.since) >= rollback || errdefs.Is(p.lastError, errdefs.Exhausted) {
			continue
		}
		idle := 0
		if c := byKey[key]; c != nil {
			idle = len(c.idle)
		}
		keep[family] += max(0, p.target(now)-idle)
	}
	var all []sandbox.ID
	for _, s := range stale {
		if family := nodeapi.PoolFamily(s.key); s.free && keep[family] > 0 {
			keep[family]--
			continue
		}
		all = append(all, s.id)
	}
	return all
}

// target is how many slots the pool should have free now.
func (p *pool) target(now time.Time) int {
	p.demand = slices.DeleteFunc(p.demand, func(t time.Time) bool { return now.Sub(t) >= demandWindow })
	return min(max(p.Min, len(p.demand)), p.Max)
}

// unknown is a pool's count of sandboxes before the first look: what a restart
// finds is not demand.
const unknown = -1

// claimed notes how many sandboxes the pool has given away; more than before is
// demand. More than Max would make no difference.
func (p *pool) claimed(taken int, now time.Time) {
	if p.taken != unknown {
		for range min(taken-p.taken, p.Max) {
			p.demand = append(p.demand, now)
		}
	}
	if excess := len(p.demand) - p.Max; excess > 0 {
		p.demand = p.demand[excess:]
	}
	p.taken = taken
}

// A need is one slot that a pool lacks.
type need struct {
	pool *pool
	fill float64 // how full the pool is; the emptiest comes first
}

// failing sorts pools that fail behind all others: each attempt may take a place
// for long, and there are few.
func failing(p *pool) int { return min(p.failures, 1) }

// needs lists what is to be warmed, in the order in which to do it.
func needs(pools map[string]*pool, byKey map[string]*counts, now time.Time) []need {
	var all []need
	for key, p := range pools {
		c := byKey[key]
		if c == nil {
			c = &counts{}
		}
		target := p.target(now)
		have := len(c.idle) + max(c.warming, p.inFlight)
		for ; have < target; have++ {
			all = append(all, need{pool: p, fill: float64(have) / float64(target)})
		}
	}
	slices.SortFunc(all, func(a, b need) int {
		return cmp.Or(failing(a.pool)-failing(b.pool), cmp.Compare(a.fill, b.fill), cmp.Compare(a.pool.Key, b.pool.Key))
	})
	return all
}

// surplus lists free slots beyond what a pool should have.
func surplus(pools map[string]*pool, byKey map[string]*counts, now time.Time) []sandbox.ID {
	var all []sandbox.ID
	for key, p := range pools {
		if c := byKey[key]; c != nil {
			all = append(all, c.idle[min(p.target(now), len(c.idle)):]...)
		}
	}
	return all
}
