// Package procevents relays what sandboxes tell of themselves to the API server,
// each event at least once.
//
//	procd ──► follower ──► box ──► Take ──► api stores ──► Ack ──► procd forgets
//
// Of every claimed sandbox whose claim asked for it, a follower reads procd's
// stream into a small box and stops reading while the box is full, so that a
// sandbox that talks without end fills its own queue and nothing of ours. A box
// is handed to one taker at a time, which keeps its order; what is not
// acknowledged in time is handed out again. After a restart procd tells again
// what was not acknowledged: every event bears an id that makes storing it twice
// harmless.
//
// What a sandbox says is data: its lines are bounded and paced, its types and ids
// checked. Whose it is comes from the node's own record. The package owns the
// boxes and the followers; it is told of sandboxes by the hub and decides nothing
// about them.
package procevents

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/events"
)

const (
	// A box is full with either; a node holds no more than this of each sandbox.
	boxEvents = 16
	boxBytes  = 64 << 10 // exceeded by one event at most

	// takeBoxes bounds one answer: with boxBytes and one event more, below what
	// a caller reads.
	takeBoxes = 16

	// leaseTime is what a taker has to store a batch.
	leaseTime = 10 * time.Second
	// againPause is before a batch that could not be stored is handed out again.
	againPause = 250 * time.Millisecond
	// maxWait bounds a caller's wait; recheck is how soon a lease's end is seen.
	maxWait, recheck = 30 * time.Second, 250 * time.Millisecond

	// endedKept is how long what an ended sandbox told is held for a taker.
	endedKept = time.Minute
)

// Config wires a Relay. Every field is required.
type Config struct {
	Hub      *events.Hub // tells of sandboxes
	Proc     Proc
	Stopping <-chan struct{} // closed when the node stops: takers wait no longer
	Log      *slog.Logger
}

// Proc is the way to a claimed sandbox's procd.
type Proc func(sandbox.ID, sandbox.Generation) (http.RoundTripper, error)

// Relay is safe for concurrent use.
type Relay struct {
	cfg Config

	mu      sync.Mutex
	boxes   map[key]*box
	order   []*box          // of boxes, by when each was last handed out
	leased  map[string]*box // by lease
	changed chan struct{}   // closed and replaced when a box may be taken
}

// key is one instance of a sandbox.
type key struct {
	id  sandbox.ID
	gen sandbox.Generation
}

// box holds a sandbox's events between procd and a taker; Relay.mu guards it.
type box struct {
	key
	claimID string
	stop    context.CancelFunc // of its follower
	room    chan struct{}      // holds a value when something has left the box

	queue     []event
	bytes     int
	lease     string    // "": nobody has it
	out       int       // events of the queue's head that the lease covers
	leaseEnds time.Time // meaningful while there is a lease
	notBefore time.Time // of the next lease
	stored    uint64    // procd's number of the last event that is stored
	ended     time.Time // zero: the sandbox lives
}

// event is one of procd's, checked.
type event struct {
	seq  uint64
	wire *nodeapi.SandboxEvent
}

// New makes a relay; it does nothing until Run.
func New(cfg Config) *Relay {
	return &Relay{cfg: cfg, boxes: map[key]*box{}, leased: map[string]*box{}, changed: make(chan struct{})}
}

// Run follows sandboxes until ctx ends.
func (r *Relay) Run(ctx context.Context) error {
	var followers sync.WaitGroup
	defer followers.Wait()
	for ctx.Err() == nil {
		r.watch(ctx, &followers)
	}
	return nil
}

// watch follows what the hub tells until ctx ends or the hub cuts it off.
func (r *Relay) watch(ctx context.Context, followers *sync.WaitGroup) {
	standing, sub := r.cfg.Hub.Subscribe()
	defer sub.Cancel()
	live := map[key]bool{}
	for _, e := range standing {
		if k, wanted := r.apply(ctx, followers, e); wanted {
			live[k] = true
		}
	}
	r.endOthers(func(k key) bool { return live[k] })
	for {
		select {
		case e, ok := <-sub.C():
			if !ok {
				return
			}
			r.apply(ctx, followers, e)
		case <-ctx.Done():
			return
		}
	}
}

// apply begins or ends the following of the sandbox that an event is about.
func (r *Relay) apply(ctx context.Context, followers *sync.WaitGroup, e *nodeapi.Event) (key, bool) {
	if gone := e.GetSandboxGone(); gone != "" {
		r.endOthers(func(k key) bool { return string(k.id) != gone })
		return key{}, false
	}
	sb := e.GetSandbox()
	if sb == nil || sb.GetEvents() == nil {
		return key{}, false
	}
	k := key{sandbox.ID(sb.GetId()), sandbox.Generation(sb.GetGeneration())}
	state := sandbox.State(sb.GetState())
	wanted := state == sandbox.Running || state == sandbox.Unknown
	r.endOthers(func(other key) bool { return other.id != k.id || other == k && wanted })
	if wanted {
		r.follow(ctx, followers, k, sb.GetClaimId())
	}
	return k, wanted
}

// follow starts a follower unless there is one.
func (r *Relay) follow(ctx context.Context, followers *sync.WaitGroup, k key, claimID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.boxes[k] != nil {
		return
	}
	ctx, stop := context.WithCancel(ctx)
	b := &box{key: k, claimID: claimID, stop: stop, room: make(chan struct{}, 1)}
	r.boxes[k] = b
	r.order = append(r.order, b)
	f := &follower{relay: r, box: b, log: r.cfg.Log.With("sandbox", k.id, "gen", k.gen)}
	followers.Go(func() { f.run(ctx) })
}

// endOthers ends the following of every sandbox that is not to be kept. What it
// told goes on waiting for a taker.
func (r *Relay) endOthers(keep func(key) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, b := range r.boxes {
		if keep(k) || !b.ended.IsZero() {
			continue
		}
		b.stop()
		b.ended = time.Now()
		r.dropIfDone(b, b.ended)
	}
}

// dropIfDone forgets the box of an ended sandbox that is empty or too old. It is
// called with mu held.
func (r *Relay) dropIfDone(b *box, now time.Time) {
	if b.ended.IsZero() || len(b.queue) > 0 && now.Sub(b.ended) < endedKept {
		return
	}
	delete(r.boxes, b.key)
	delete(r.leased, b.lease)
	for i, other := range r.order {
		if other == b {
			r.order = append(r.order[:i:i], r.order[i+1:]...)
			break
		}
	}
}

// put adds an event to a box.
func (r *Relay) put(b *box, e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b.queue = append(b.queue, e)
	b.bytes += len(e.wire.GetPayload())
	r.wake()
}

// wake is called with mu held.
func (r *Relay) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// full reports whether a follower has to wait for room.
func (r *Relay) full(b *box) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(b.queue) >= boxEvents || b.bytes >= boxBytes
}

// storedOf is procd's number of the last event that is stored.
func (r *Relay) storedOf(b *box) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return b.stored
}

// Take hands out what there is, or waits for something.
func (r *Relay) Take(ctx context.Context, wait time.Duration) []*nodeapi.SandboxEvents {
	deadline := time.NewTimer(min(wait, maxWait))
	defer deadline.Stop()
	for {
		batches, changed := r.take(time.Now())
		if len(batches) > 0 {
			return batches
		}
		select {
		case <-changed:
		case <-time.After(recheck): // a lease or a pause may be over
		case <-deadline.C:
			return nil
		case <-r.cfg.Stopping:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *Relay) take(now time.Time) ([]*nodeapi.SandboxEvents, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var batches []*nodeapi.SandboxEvents
	var taken, rest []*box
	for _, b := range append([]*box(nil), r.order...) {
		r.dropIfDone(b, now)
		if r.boxes[b.key] != b {
			continue
		}
		if len(batches) < takeBoxes && b.ready(now) {
			batches = append(batches, r.lease(b, now))
			taken = append(taken, b)
		} else {
			rest = append(rest, b)
		}
	}
	r.order = append(rest, taken...) // nobody is handed out twice before all others once
	return batches, r.changed
}

func (b *box) ready(now time.Time) bool {
	return len(b.queue) > 0 && !now.Before(b.notBefore) && (b.lease == "" || now.After(b.leaseEnds))
}

// lease is called with mu held.
func (r *Relay) lease(b *box, now time.Time) *nodeapi.SandboxEvents {
	delete(r.leased, b.lease)
	var id [16]byte
	rand.Read(id[:]) // never fails
	b.lease, b.out, b.leaseEnds = hex.EncodeToString(id[:]), len(b.queue), now.Add(leaseTime)
	r.leased[b.lease] = b
	batch := &nodeapi.SandboxEvents{Lease: b.lease, Sandbox: string(b.id), Generation: uint64(b.gen), ClaimId: b.claimID}
	for _, e := range b.queue {
		batch.Events = append(batch.Events, e.wire)
	}
	return batch
}

// Ack ends leases. Of a lease that is over it does nothing: its batch may be
// somebody else's.
func (r *Relay) Ack(stored, again []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for _, lease := range stored {
		b := r.leased[lease]
		if b == nil {
			continue
		}
		b.stored = b.queue[b.out-1].seq
		for _, e := range b.queue[:b.out] {
			b.bytes -= len(e.wire.GetPayload())
		}
		b.queue = append([]event(nil), b.queue[b.out:]...) // a copy: the slice must not keep what left
		r.release(b)
		select {
		case b.room <- struct{}{}:
		default: // the follower will look anyway
		}
		r.dropIfDone(b, now)
	}
	for _, lease := range again {
		if b := r.leased[lease]; b != nil {
			b.notBefore = now.Add(againPause)
			r.release(b)
		}
	}
	r.wake()
}

// release is called with mu held.
func (r *Relay) release(b *box) {
	delete(r.leased, b.lease)
	b.lease, b.out = "", 0
}
