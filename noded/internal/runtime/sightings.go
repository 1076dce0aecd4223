package runtime

import (
	"maps"
	"sync"
	"time"

	"s0.run/internal/sandbox"
)

// eventDelay is how late an event about a removed container may come.
const eventDelay = time.Minute

// sightings tells which exits are news. Events come late and twice, and from a
// list it looks the same whether a container has lost its task or not got it yet.
type sightings struct {
	mu  sync.Mutex
	all map[sandbox.ID]*sighting
}

type sighting struct {
	starting bool      // it may have a container and no task yet
	ended    bool      // its exit was delivered, or was asked for
	oom      bool      // it was out of memory
	pid      uint32    // of the instance that this is about; 0: not known
	gone     time.Time // when it was removed; zero until then
}

func newSightings() sightings { return sightings{all: map[sandbox.ID]*sighting{}} }

func (s *sightings) change(id sandbox.ID, f func(*sighting)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[id] == nil {
		s.all[id] = &sighting{}
	}
	f(s.all[id])
}

// begin: the container is being started; what was seen of an earlier one is void.
func (s *sightings) begin(id sandbox.ID) {
	s.change(id, func(x *sighting) { *x = sighting{starting: true} })
}

// begun: the start has succeeded or failed.
func (s *sightings) begun(id sandbox.ID) { s.change(id, func(x *sighting) { x.starting = false }) }

// running: it has a task, whose exit alone counts: that of an earlier instance of
// the same id may still be on its way.
func (s *sightings) running(id sandbox.ID, pid uint32) {
	s.change(id, func(x *sighting) { x.pid = pid })
}

// lives: an end that was asked for has not come.
func (s *sightings) lives(id sandbox.ID) { s.change(id, func(x *sighting) { x.ended = false }) }

// end: the container is being removed.
func (s *sightings) end(id sandbox.ID) { s.change(id, func(x *sighting) { x.ended = true }) }

func (s *sightings) outOfMemory(id sandbox.ID) { s.change(id, func(x *sighting) { x.oom = true }) }

// gone: it was removed. It is remembered until no event about it can come.
func (s *sightings) gone(id sandbox.ID, now time.Time) {
	s.change(id, func(x *sighting) { x.gone = now })
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.all, func(_ sandbox.ID, x *sighting) bool { return !x.gone.IsZero() && now.Sub(x.gone) > eventDelay })
}

// exit notes an exit and tells whether it is news; if so it completes the reason.
func (s *sightings) exit(e *Exit) (news bool) {
	s.change(e.ID, func(x *sighting) {
		if x.ended || e.Reason == lost && x.starting || e.pid != 0 && x.pid != 0 && e.pid != x.pid {
			return
		}
		news, x.ended = true, true
		if x.oom {
			e.Reason = outOfMemory
		}
	})
	return news
}
