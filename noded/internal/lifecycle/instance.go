package lifecycle

import (
	"context"
	"errors"
	"time"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/channel"
	"s0.run/noded/internal/journal"
)

// instance is one sandbox in memory.
//
// Its turn is the right to change it: creating, claiming, updating, ending. It
// is a place for one, not a mutex, for it is held across I/O and waited for
// with a deadline; a claim only tries it, for a slot that is busy is not free.
type instance struct {
	id       sandbox.ID
	specHash string
	turn     chan struct{} // holds a value while somebody has the turn

	told map[string]string // the environment that procd has; nil if that is not known; the turn guards it

	stillbirths int // how often in a row it ended as soon as it was resumed; the turn guards it

	kept []procapi.KeptContext // what its procd, which is new, is told to have again; the turn guards it

	// Manager.mu guards what follows. rec is replaced whole; what it points to
	// never changes.
	rec       journal.Record
	ready     bool                    // a slot that may be claimed
	warmKept  bool                    // its warm processes are followed
	unhealthy string                  // why its warm processes keep it from being ready
	binding   bool                    // a slot whose claim is under way
	life      int                     // how often it was taken up: an end counts for the life that it is of
	unseen    bool                    // since this noded started, procd has not answered
	channel   *channel.Channel        // nil before there is one and after it was closed
	back      chan struct{}           // closed when a fork lets it have a channel again; nil without one
	cancel    context.CancelCauseFunc // ends the creation; nil when none is under way
	disposing bool                    // a teardown is at work
	rested    chan struct{}           // closed when it is not any more; nil without one
}

// atRest reports whether the sandbox's record says that nothing of it runs.
func atRest(rec journal.Record) bool { return ended(rec) || rec.State == journal.Paused }

// ended reports whether the sandbox's life is over, as far as its record knows.
func ended(rec journal.Record) bool {
	return rec.State == journal.Failed || rec.State == journal.Terminating
}

var errEnded = errors.New("the sandbox has ended")

func newInstance(rec journal.Record) *instance {
	return &instance{id: rec.ID, specHash: rec.Spec.Hash(), turn: make(chan struct{}, 1), rec: rec}
}

func (i *instance) tryTurn() bool {
	select {
	case i.turn <- struct{}{}:
		return true
	default:
		return false
	}
}

func (i *instance) takeTurn(ctx context.Context) error {
	select {
	case i.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *instance) endTurn() { <-i.turn }

// Sandbox is a claimed sandbox as others may know it.
type Sandbox struct {
	journal.Record
	Unseen bool // the node restarted and can't say yet whether it lives
}

// State is the state that the API shows.
func (s Sandbox) State() sandbox.State {
	switch s.Record.State {
	case journal.Claimed, journal.Pausing:
		if s.Unseen {
			return sandbox.Unknown
		}
		return sandbox.Running
	case journal.Paused:
		return sandbox.Paused
	case journal.Resuming:
		return sandbox.Starting
	case journal.Failed:
		return sandbox.Failed
	case journal.Terminating:
		return sandbox.Terminating
	}
	return sandbox.Unknown
}

// Wire translates the sandbox for the node API. Its claim must be set.
func (s Sandbox) Wire() *nodeapi.Sandbox {
	w := &nodeapi.Sandbox{
		Id: string(s.ID), Generation: uint64(known(s.Record)), PoolKey: s.PoolKey, State: string(s.State()), Reason: nodeapi.Text(s.Reason),
		Team: s.Claim.Team, User: s.Claim.User, ClaimId: s.Claim.ClaimID, ClaimedUnixNano: s.Claim.Time.UnixNano(),
		MemoryBytes: s.Claim.MemoryBytes, CpuMillis: s.Claim.CPUMillis, Env: s.Claim.Env, Pod: s.Pod,
	}
	if s.IP.IsValid() {
		w.Ip = s.IP.String()
	}
	if isStored(s.Record) {
		w.StoredGeneration = uint64(s.Stored)
	}
	if e := s.Claim.Events; e != nil {
		w.Events = &nodeapi.EventsConfig{WatchDir: e.WatchDir}
	}
	for _, mount := range s.Claim.Mounts {
		w.Mounts = append(w.Mounts, mountState(mount))
	}
	return w
}

// told is what every watcher may know: a tenant's variables are for who asks for
// the sandbox.
func (s Sandbox) told() *nodeapi.Sandbox {
	w := s.Wire()
	w.Env = nil
	return w
}

func (i *instance) sandbox() Sandbox { return Sandbox{Record: i.rec, Unseen: i.unseen} }

// change changes an instance in memory and tells what came of it, in one step,
// so that events of one sandbox are in the order of its states.
func (m *Manager) change(inst *instance, f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := inst.rec.State
	f()
	m.tell(inst)
	if was == journal.Paused || inst.rec.State == journal.Paused {
		m.imagesChanged()
	}
}

// tell is called with mu held. The hub ignores the end of what nobody was told of.
func (m *Manager) tell(inst *instance) {
	id := string(inst.id)
	if inst.rec.State == journal.Slot && inst.ready {
		m.cfg.Hub.Set("slot/"+id, &nodeapi.Event{Event: &nodeapi.Event_SlotFree{
			SlotFree: &nodeapi.Slot{Id: id, PoolKey: inst.rec.PoolKey, Generation: uint64(inst.rec.Generation)},
		}})
	} else {
		m.cfg.Hub.Clear("slot/"+id, &nodeapi.Event{Event: &nodeapi.Event_SlotTaken{SlotTaken: id}})
	}
	m.tellPod(inst)
	if inst.rec.Claim != nil {
		m.cfg.Hub.Set("sandbox/"+id, &nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: inst.sandbox().told()}})
	}
	m.kick()
}

func (m *Manager) kick() {
	select {
	case m.changed <- struct{}{}:
	default: // a look is due anyway
	}
}

func (m *Manager) find(id sandbox.ID) *instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.instances[id]
}

// lifeOf says which life of a sandbox is meant by what is known of it now.
func (m *Manager) lifeOf(inst *instance) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return inst.life
}

func (m *Manager) record(inst *instance) journal.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return inst.rec
}

// forget drops a sandbox of which nothing is left. Its index rests for a while.
func (m *Manager) forget(inst *instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := string(inst.id)
	delete(m.instances, inst.id)
	if inst.rec.Claim != nil {
		delete(m.claims, inst.rec.Claim.ClaimID)
	}
	m.indexes.release(inst.rec.NetIndex, time.Now())
	m.cfg.Hub.Clear("slot/"+id, &nodeapi.Event{Event: &nodeapi.Event_SlotTaken{SlotTaken: id}})
	m.cfg.Hub.Clear("sandbox/"+id, &nodeapi.Event{Event: &nodeapi.Event_SandboxGone{SandboxGone: id}})
	m.kick()
}
