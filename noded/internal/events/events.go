// Package events tells subscribers the node's truth: all of it first, then each
// change.
//
// The [Hub] keeps the last event of every key that still stands, so that a
// subscriber that comes late starts from the same picture as everybody else. It
// owns that table and the subscribers' queues, decides nothing about what it
// tells, and never waits for a subscriber: one whose queue is full is cut off
// and starts over.
package events

import (
	"sync"

	"s0.run/internal/nodeapi"
)

// queueLength is how far behind a subscriber may be: some seconds of a busy node.
const queueLength = 4096

// Hub is safe for concurrent use. Events are immutable once handed in.
type Hub struct {
	mu       sync.Mutex
	standing map[string]*nodeapi.Event
	subs     map[*Subscription]struct{}
}

// NewHub makes an empty hub.
func NewHub() *Hub {
	return &Hub{standing: map[string]*nodeapi.Event{}, subs: map[*Subscription]struct{}{}}
}

// Subscription is one subscriber's queue.
type Subscription struct {
	hub   *Hub
	queue chan *nodeapi.Event
}

// C delivers the events; it is closed when the subscriber was too slow.
func (s *Subscription) C() <-chan *nodeapi.Event { return s.queue }

// Cancel ends the subscription; nothing is delivered afterwards.
func (s *Subscription) Cancel() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subs, s)
}

// Subscribe returns what stands now and a subscription to what changes from now on.
func (h *Hub) Subscribe() ([]*nodeapi.Event, *Subscription) {
	s := &Subscription{hub: h, queue: make(chan *nodeapi.Event, queueLength)}
	h.mu.Lock()
	defer h.mu.Unlock()
	initial := make([]*nodeapi.Event, 0, len(h.standing))
	for _, e := range h.standing {
		initial = append(initial, e)
	}
	h.subs[s] = struct{}{}
	return initial, s
}

// Set tells an event that stands until its key is set again or cleared.
func (h *Hub) Set(key string, e *nodeapi.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.standing[key] = e
	h.tell(e)
}

// Clear tells that what stood under key has ended. If nothing stood, nobody
// knew of it and nobody is told. A nil event is cleared silently.
func (h *Hub) Clear(key string, e *nodeapi.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.standing[key] == nil {
		return
	}
	delete(h.standing, key)
	if e != nil {
		h.tell(e)
	}
}

// tell is called with mu held; the sends never block.
func (h *Hub) tell(e *nodeapi.Event) {
	for s := range h.subs {
		select {
		case s.queue <- e:
		default:
			delete(h.subs, s)
			close(s.queue)
		}
	}
}
