package lifecycle_test

import (
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/archive"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/noop"
)

// elsewhere has another node have resumed what is on the shelf, and paused it again as a
// later generation.
func (s *shelf) elsewhere(ref archive.Ref, gen sandbox.Generation) archive.Ref {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	later := s.images[ref]
	later.Generation = gen
	var rec map[string]any
	if err := json.Unmarshal(later.About, &rec); err != nil {
		s.t.Fatal(err)
	}
	rec["image"], rec["generation"] = gen, gen
	var err error
	if later.About, err = json.Marshal(rec); err != nil {
		s.t.Fatal(err)
	}
	s.images[later.Ref] = later
	return later.Ref
}

// orphan makes something that nobody owns.
func (m *machine) orphan(id sandbox.ID) {
	m.t.Helper()
	if err := (noop.Groups{Node: m.node}).Create(id, cgroup.Limits{}); err != nil {
		m.t.Fatal(err)
	}
}

// gate is a place where somebody who passes first waits.
type gate struct {
	reached, opened chan struct{}
	once            sync.Once
	open            func()
}

// newGate is open at the test's end, whatever became of it.
func newGate(t *testing.T) *gate {
	g := &gate{reached: make(chan struct{}), opened: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.opened) })
	t.Cleanup(g.open)
	return g
}

func (g *gate) pass() {
	g.once.Do(func() {
		close(g.reached)
		<-g.opened
	})
}

// G12: a sandbox that comes back while what it has left here is swept is not swept with it.
func TestG12_ASandboxComesBackBehindItsSweep(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	id, ref := newMachine(t).boot(with(s)).asleep(s)
	m := newMachine(t)
	m.orphan(id)
	sweep := newGate(t)
	m.node.Fault = func(effect string, of sandbox.ID) error {
		if effect == "runtime.Remove" && of == id {
			sweep.pass()
		}
		return nil
	}
	n := m.boot(with(s))
	t.Cleanup(sweep.open) // before the node stops
	<-sweep.reached
	if err := n.Delete(n.ctx(), id, 3, "test"); err != nil {
		t.Errorf("deleting what is swept: %v", err)
	}
	_, err := n.ResumeStored(n.ctx(), stored(ref, 1))
	sweep.open()
	if !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("it comes back while it is swept: %v", err)
	}
	n.rests()
	if left := m.node.Left(); len(left) > 0 {
		t.Errorf("the sweep has left %q", left)
	}
	if sb, err := n.ResumeStored(n.ctx(), stored(ref, 1)); err != nil || sb.State() != sandbox.Running {
		t.Errorf("resumed as %s: %v", sb.State(), err)
	}
	n.serves(id)
}

// G12: the end of a sandbox that was here before is not that of the one which came back,
// however often either was taken up.
func TestG12_AnEndIsOfTheSandboxThatWasListed(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	m := newMachine(t)
	n := m.boot(with(s))
	id, ref := n.asleep(s)
	n.stop()
	other, _ := sandbox.NewID("local")
	m.orphan(other)
	teardown, sweep, again := newGate(t), newGate(t), newGate(t)
	again.open()
	var away, noticed atomic.Bool
	away.Store(true)
	m.node.Fault = func(effect string, of sandbox.ID) error {
		switch {
		case effect == "runtime.List" && away.Load():
			return errors.New("containerd is away")
		case effect == "runtime.List" && noticed.Load():
			again.pass()
		case effect == "network.List":
			sweep.pass() // all is listed
		case effect == "runtime.Remove" && of == id:
			teardown.pass()
		case effect == "groups.Remove" && of == other:
			return errors.New("busy") // so that there is another sweep soon
		}
		return nil
	}
	n = m.boot(with(s))
	t.Cleanup(func() { teardown.open(); sweep.open() }) // before the node stops
	n.resume(id, 2)
	(noop.Runtime{Node: m.node}).Kill(id, false)
	<-teardown.reached // it has ended, and is there still
	away.Store(false)
	<-sweep.reached
	teardown.open()
	later := s.elsewhere(ref, 4)
	if _, err := n.ResumeStored(n.ctx(), stored(later, 6)); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("beside an older one: %v", err)
	}
	n.rests()
	if sb, err := n.ResumeStored(n.ctx(), stored(later, 6)); err != nil || sb.Generation != 7 {
		t.Errorf("resumed as %d: %v", sb.Generation, err)
	}
	noticed.Store(true)
	sweep.open()
	<-again.reached
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running {
		t.Errorf("it is %s: %s %v", sb.State(), sb.Reason, err)
	}
}
