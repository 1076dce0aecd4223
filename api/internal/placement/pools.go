package placement

import (
	"slices"
	"time"
)

// Pool is what a node says of one of its pools, beside its slots and sandboxes,
// which come one by one: see [Table.Idle] and [Table.Claimed].
type Pool struct {
	Key       string
	Warming   uint32
	LastError string // why the last warm-up failed, for the operator; empty when it did not
	Message   string // what of it, or of why slots still warm, the template's owner may see

	Ready bool      // the node has of it what it should
	Since time.Time // when that last changed, by the node's clock
	At    time.Time // when the node last said anything of it, by ours
}

// PoolChanged replaces a pool's counters.
func (t *Table) PoolChanged(name string, p Pool) {
	t.update(name, func(n *node) { n.pools[p.Key] = p })
}

// Pools sums up the pools whose keys match over all nodes that can be asked. Of the
// last errors, one is kept. The sum is ready when all are, since the last of them
// is; otherwise it is not since the first of them is not.
func (t *Table) Pools(match func(key string) bool) Pool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var sum Pool
	var ready, short []time.Time
	for _, n := range t.nodes {
		for key, p := range n.pools {
			if !n.synced || !match(key) {
				continue
			}
			if p.Ready {
				ready = append(ready, p.Since)
			} else {
				short = append(short, p.Since)
			}
			if p.At.After(sum.At) {
				sum.At = p.At
			}
			sum.Warming += p.Warming
			if p.LastError != "" {
				sum.LastError = p.LastError
			}
			if p.Message != "" {
				sum.Message = p.Message
			}
		}
	}
	switch {
	case len(short) > 0:
		sum.Since = slices.MinFunc(short, time.Time.Compare)
	case len(ready) > 0:
		sum.Ready, sum.Since = true, slices.MaxFunc(ready, time.Time.Compare)
	}
	return sum
}

// Claimed counts the sandboxes of the pools whose keys match.
func (t *Table) Claimed(match func(key string) bool) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	total := 0
	for key, n := range t.claimed {
		if match(key) {
			total += n
		}
	}
	return total
}
