package relay

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"s0.run/internal/sandbox"
)

const (
	// A flow that moves fewer than minBytes in both directions together for as long
	// as window is cut (D15, E20): it is idle, or slow on purpose. A ping a minute,
	// in TLS, is more than that.
	window   = 10 * time.Minute
	minBytes = 1 << 10
)

// Flow is an open connection of a sandbox.
type Flow struct {
	Sandbox sandbox.ID
	// Cut ends the flow; it is called at most once, and not after the flow was removed.
	Cut func()
	// Allowed says whether the sandbox's policy, as it is now, still lets the flow be.
	Allowed func() bool

	up, down atomic.Int64
	swept    int64 // bytes at the last sweep; the registry's
	since    time.Time
	cut      atomic.Bool
}

func (f *Flow) addUp(n int)   { f.up.Add(int64(n)) }
func (f *Flow) addDown(n int) { f.down.Add(int64(n)) }

// Resume has a flow count on from what another process counted.
func (f *Flow) Resume(up, down int64) {
	f.up.Store(up)
	f.down.Store(down)
	f.swept = up + down
}

// Bytes are what left the sandbox and what came to it.
func (f *Flow) Bytes() (up, down int64) { return f.up.Load(), f.down.Load() }

// WasCut says whether the registry ended the flow.
func (f *Flow) WasCut() bool { return f.cut.Load() }

// Registry knows the open flows of every sandbox. It is safe for concurrent use.
type Registry struct {
	mu    sync.Mutex
	flows map[sandbox.ID]map[*Flow]struct{} // by sandbox
}

// NewRegistry makes an empty registry.
func NewRegistry() *Registry { return &Registry{flows: map[sandbox.ID]map[*Flow]struct{}{}} }

// Add registers a flow; remove ends that.
func (r *Registry) Add(f *Flow) (remove func()) {
	f.since = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flows[f.Sandbox] == nil {
		r.flows[f.Sandbox] = map[*Flow]struct{}{}
	}
	r.flows[f.Sandbox][f] = struct{}{}
	return func() { r.remove(f) }
}

func (r *Registry) remove(f *Flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flows[f.Sandbox], f)
	if len(r.flows[f.Sandbox]) == 0 {
		delete(r.flows, f.Sandbox)
	}
}

// Rejudge cuts the flows of a sandbox that its policy no longer allows (E21), and
// returns how many those were.
func (r *Registry) Rejudge(id sandbox.ID) (n int) {
	for _, f := range r.of(id) {
		if !f.Allowed() && f.cut.CompareAndSwap(false, true) {
			f.Cut()
			n++
		}
	}
	return n
}

func (r *Registry) of(id sandbox.ID) (all []*Flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.flows[id] {
		all = append(all, f)
	}
	return all
}

// Open is how many flows a sandbox has.
func (r *Registry) Open(id sandbox.ID) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flows[id])
}

// Run cuts flows that hardly move, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(window / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			r.sweep(now)
		}
	}
}

func (r *Registry) sweep(now time.Time) {
	r.mu.Lock()
	var slow []*Flow
	for _, flows := range r.flows {
		for f := range flows {
			if f.slow(now) {
				slow = append(slow, f)
			}
		}
	}
	r.mu.Unlock()
	for _, f := range slow {
		if f.cut.CompareAndSwap(false, true) {
			f.Cut()
		}
	}
}

// slow says whether a flow's window ended with too little, and begins the next.
func (f *Flow) slow(now time.Time) bool {
	if now.Sub(f.since) < window {
		return false
	}
	up, down := f.Bytes()
	moved := up + down - f.swept
	f.swept, f.since = up+down, now
	return moved < minBytes
}
