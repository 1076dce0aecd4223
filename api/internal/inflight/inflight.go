// Package inflight bounds how many things of one kind go on at once, for each
// owner of such things: so many open WebSockets of a team, so many of a sandbox.
//
// A [Counter] is memory alone: each API server counts what it serves itself. What
// is refused, and with which words, is the caller's.
package inflight

import "sync"

// Counter is safe for concurrent use.
type Counter[Owner comparable] struct {
	most int

	mu  sync.Mutex
	now map[Owner]int
}

// New makes a counter that lets each owner have most things at once.
func New[Owner comparable](most int) *Counter[Owner] {
	return &Counter[Owner]{most: most, now: map[Owner]int{}}
}

// Enter counts one more thing of the owner's until leave is called, which is
// called once. It is refused when the owner has as many as it may.
func (c *Counter[Owner]) Enter(o Owner) (leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now[o] >= c.most {
		return nil, false
	}
	c.now[o]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.now[o]--; c.now[o] == 0 {
			delete(c.now, o)
		}
	}, true
}
