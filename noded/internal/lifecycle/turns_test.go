package lifecycle_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/archive"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
)

// D13: all children of a fork may be resumed at once, whatever the node starts at a time.
func TestD13_SixteenChildrenAreResumedAtOnce(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot() // which starts two at a time
	id := n.warm(1)[0]
	n.claim(id)
	children := n.fork(forkOf(id, new(true), 16))
	var all sync.WaitGroup
	for _, child := range children {
		all.Go(func() {
			if _, err := n.Resume(n.ctx(), child, 0, 0); err != nil {
				t.Errorf("%s: %v", child, err)
			}
		})
	}
	all.Wait()
}

// G04: a delete waits for no resume that waits for a place, and what gives up has taken none.
func TestG04_DeleteWhileAResumeWaits(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	starting, gate := make(chan struct{}, 10), make(chan struct{})
	var hold atomic.Bool
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "runtime.Start" && hold.Load() {
			starting <- struct{}{}
			<-gate
		}
		return nil
	}
	n := m.boot(func(c *lifecycle.Config) { c.ColdStarts = 1 })
	ids := n.warm(3)
	for _, id := range ids {
		n.claim(id)
		n.pause(id)
	}
	n.released()
	hold.Store(true)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- third(n.Resume(n.ctx(), ids[0], 0, 0)) }()
	<-starting
	ended, cancel := context.WithCancel(n.ctx())
	cancel()
	if _, err := n.Resume(ended, ids[2], 0, 0); !errdefs.Is(err, errdefs.Exhausted) && !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("who has no time is told %v", err)
	}
	go func() { second <- third(n.Resume(n.ctx(), ids[1], 0, 0)) }()
	eventually(t, "it waits", func() bool { return n.Waiting() == 1 })
	if err := n.Delete(n.ctx(), ids[1], 0, "test"); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err == nil {
		t.Error("it was resumed")
	}
	hold.Store(false)
	close(gate)
	if err := <-first; err != nil {
		t.Error(err)
	}
	n.resume(ids[2], 2)
}

func third(_ lifecycle.Sandbox, err error) error { return err }

// R2, X47: a node that could not resume what was moved to it means the same generation as
// the row by now, whatever failed, and so does what it stores and is asked to change.
func TestX47_AFailedMoveIsNoStaleGeneration(t *testing.T) {
	t.Parallel()
	for _, effect := range []string{"runtime.Target", "runtime.Start"} {
		t.Run(effect, func(t *testing.T) {
			t.Parallel()
			m, s := newMachine(t), newShelf(t)
			var broken atomic.Bool
			m.node.Fault = func(e string, _ sandbox.ID) error {
				if broken.Load() && e == effect {
					return errors.New("on purpose")
				}
				return nil
			}
			n := m.boot(with(s))
			id, ref := n.asleep(s)
			if err := n.Delete(n.ctx(), id, 0, "it is another node's"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is gone", func() bool { return n.Holding() == 0 })
			broken.Store(true)
			for _, after := range []sandbox.Generation{3, 5} { // the second time it has the image
				if _, err := n.ResumeStored(n.ctx(), stored(ref, after)); err == nil {
					t.Fatal("it was resumed")
				}
				n.knows(id, after, 1)
			}
			n.stop()
			n = m.boot(with(s))
			n.knows(id, 5, 1)
			n.released()
			if _, err := n.Update(n.ctx(), lifecycle.UpdateRequest{ID: id, Generation: 5, ReplaceEnv: true, Env: map[string]string{"A": "b"}}); err != nil {
				t.Fatal(err)
			}
			n.knows(id, 5, 0)
			if refs := s.put(n); len(refs) != 1 || refs[0] != ref {
				t.Errorf("stored are %v", refs)
			}
			n.knows(id, 5, 1)
			if _, err := n.Resume(n.ctx(), id, 0, 7); err == nil {
				t.Fatal("it was resumed")
			}
			broken.Store(false)
			if sb, err := n.Resume(n.ctx(), id, 0, 7); err != nil || sb.Generation != 8 || sb.Claim.Env["A"] != "b" {
				t.Errorf("%+v, %v", sb, err)
			}
		})
	}
}

// knows checks which generation of a paused sandbox the node means, and which it has stored.
func (n *noded) knows(id sandbox.ID, gen, stored sandbox.Generation) {
	n.t.Helper()
	sb, err := n.Get(id)
	if err != nil {
		n.t.Fatal(err)
	}
	if w := sb.Wire(); w.GetGeneration() != uint64(gen) || w.GetStoredGeneration() != uint64(stored) || w.GetState() != "paused" {
		n.t.Fatalf("it is %s %d, stored as %d: want %d, stored as %d", w.GetState(), w.GetGeneration(), w.GetStoredGeneration(), gen, stored)
	}
}

// G04: whoever has a sandbox's turn when a node starts is not overtaken by its recovery.
func TestG04_RecoveryWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var thaws atomic.Int32
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "runtime.Thaw" {
			thaws.Add(1)
		}
		return nil
	}
	n := m.boot()
	ids := n.warm(3)
	records := map[sandbox.ID]journal.Record{}
	for i, id := range ids {
		n.claim(id)
		if i < 2 {
			n.pause(id)
		}
	}
	eventually(t, "two are released", func() bool { return n.Holding() == 1 })
	for i, id := range ids {
		sb, err := n.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		rec := sb.Record
		if i < 2 {
			rec.State, rec.Generation = journal.Resuming, 2
		} else {
			rec.Frozen = true
		}
		records[id] = rec
		if err := n.journal.Put(n.ctx(), rec); err != nil {
			t.Fatal(err)
		}
	}
	n.stop()
	n = m.prepare()
	n.run()
	ends := make([]func(), len(ids))
	for i, id := range ids {
		ends[i] = n.HoldTurn(id)
	}
	n.Adopt(n.ctx()) // does not wait for ever
	for _, id := range ids[:2] {
		if sb, err := n.Get(id); err != nil || sb.Record.State != journal.Resuming {
			t.Errorf("it was changed by who had no turn: %s, %v", sb.Record.State, err)
		}
	}
	if got := thaws.Load(); got != 0 {
		t.Errorf("thawed %d times by who had no turn", got)
	}
	deleted := make(chan error, 1)
	go func() { deleted <- n.Delete(n.ctx(), ids[0], 0, "test") }()
	for _, end := range ends {
		end()
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deleted one is gone", func() bool { _, err := n.Get(ids[0]); return errdefs.Is(err, errdefs.NotFound) })
	eventually(t, "the other one is paused", func() bool { sb, err := n.Get(ids[1]); return err == nil && sb.State() == sandbox.Paused })
	n.serves(ids[2])
	n.resume(ids[1], 2)
}

// R4: an index whose end could not be recorded is its sandbox's until it is.
func TestR4_NoIndexIsLost(t *testing.T) {
	defer failpoint.Arm("")
	m := newMachine(t)
	var blocked atomic.Bool
	arrived, gate := make(chan struct{}), make(chan struct{})
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "network.Remove" && blocked.Load() {
			arrived <- struct{}{}
			<-gate
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	gen := sandbox.Generation(1)
	for range 3 {
		blocked.Store(true)
		n.pause(id)
		<-arrived
		blocked.Store(false)
		if err := failpoint.Arm("journal.commit=1*error(on purpose)"); err != nil {
			t.Fatal(err)
		}
		gate <- struct{}{}
		eventually(t, "the teardown is over", func() bool { return n.Holding() == 0 })
		gen++
		n.resume(id, gen)
		if got := n.IndexesInUse(); got != 1 {
			t.Fatalf("one sandbox has %d indexes", got)
		}
	}
	n.pause(id)
	eventually(t, "it has none", func() bool { return n.IndexesInUse() == 0 })
}

// G14: a node that ends many at once, or that starts with many that are paused, does not do
// everything for all of them at the same time.
func TestG14_TeardownsAreBounded(t *testing.T) {
	t.Parallel()
	const count = 60
	m := newMachine(t)
	var at, most, all atomic.Int32
	var hold atomic.Bool
	gate := make(chan struct{})
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect != "runtime.Remove" {
			return nil
		}
		all.Add(1)
		now := at.Add(1)
		defer at.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		if hold.Load() {
			<-gate
		}
		return nil
	}
	n := m.boot()
	ids := n.warm(count)
	for _, id := range ids[:2] {
		n.claim(id)
		n.pause(id)
	}
	n.resume(ids[0], 2)
	n.pause(ids[0])
	eventually(t, "they are released", func() bool { return n.Holding() == count-2 })
	n.stop()
	all.Store(0)
	n = m.boot()
	if got := all.Load(); got != 0 {
		t.Errorf("what was torn down is torn down again %d times", got)
	}
	most.Store(0)
	hold.Store(true)
	for _, id := range ids[2:] {
		if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "teardowns are at work", func() bool { return at.Load() == lifecycle.ReleasesAtOnce })
	hold.Store(false)
	close(gate)
	eventually(t, "all are gone", func() bool { return n.Holding() == 0 })
	if got := most.Load(); got != lifecycle.ReleasesAtOnce {
		t.Errorf("%d teardowns at a time", got)
	}
	n.resume(ids[0], 3)
	n.resume(ids[1], 2)
}

// A restore needs of a dropped image to know which contexts there were, and no more; a
// delete waits for that as little as for the whole of it.
func TestG04_DeleteWhileSomethingIsFetched(t *testing.T) {
	t.Parallel()
	for what, do := range map[string]func(n *noded, id sandbox.ID) error{
		"restore": func(n *noded, id sandbox.ID) error { return third(n.RestoreSnapshot(n.ctx(), id, 0, snap)) },
		"fork": func(n *noded, id sandbox.ID) error {
			_, err := n.Fork(n.ctx(), forkOf(id, nil, 1))
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newShelf(t)
			n := newMachine(t).boot(with(s))
			id, _ := n.asleep(s)
			n.keep(id, snap)
			if dropped, err := n.DropStored(n.ctx()); !dropped || err != nil {
				t.Fatal(dropped, err)
			}
			s.mu.Lock()
			s.hangs = true
			s.mu.Unlock()
			failed := make(chan error, 1)
			go func() { failed <- do(n, id) }()
			<-s.asked
			if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
				t.Fatal(err)
			}
			if err := <-failed; err == nil {
				t.Error("it was done")
			}
			n.nothingLeft()
		})
	}
}

func TestARestoreFetchesNoImage(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	n := newMachine(t).boot(with(s))
	id, _ := n.asleep(s)
	n.keep(id, snap)
	if dropped, err := n.DropStored(n.ctx()); !dropped || err != nil {
		t.Fatal(dropped, err)
	}
	for want, cause := range map[errdefs.Kind]error{errdefs.Unavailable: errors.New("connection refused"), errdefs.Conflict: archive.ErrDamaged} {
		s.fail(cause)
		kind(t, third(n.RestoreSnapshot(n.ctx(), id, 0, snap)), want)
	}
	s.fail(nil)
	if _, err := n.RestoreSnapshot(n.ctx(), id, 0, snap); err != nil {
		t.Fatal(err)
	}
	if got := s.whole.Load(); got != 0 {
		t.Errorf("%d images were fetched whole", got)
	}
	n.resume(id, 3)
}

// X24: a restore whose write failed has not happened, also for the next noded.
func TestX24_ARestoreThatIsNotRecorded(t *testing.T) {
	defer failpoint.Arm("")
	m := newMachine(t)
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	n.pause(id)
	n.rests()
	if err := failpoint.Arm("journal.commit=1*error(on purpose)"); err != nil {
		t.Fatal(err)
	}
	kind(t, third(n.RestoreSnapshot(n.ctx(), id, 0, snap)), errdefs.Unavailable)
	n.knows(id, 1, 0)
	if images := n.images(id); len(images) != 1 || images[0] != "1" {
		t.Errorf("its images are %q", images)
	}
	n.stop()
	n = m.boot()
	n.knows(id, 1, 0)
	n.resume(id, 2)
}

// images lists a sandbox's.
func (n *noded) images(id sandbox.ID) (names []string) {
	n.t.Helper()
	entries, err := os.ReadDir(n.image(id))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// X22, R7: a drop or a fetch that is cut off leaves no half of an image at its place.
func TestX22_DropsAndFetchesThatAreCutOff(t *testing.T) {
	defer failpoint.Arm("")
	for _, reboot := range []bool{false, true} {
		m, s := newMachine(t), newShelf(t)
		n := m.boot(with(s))
		id, _ := n.asleep(s)
		if err := failpoint.Arm("drop.after-aside=1*error(on purpose);fetch.begin=1*error(on purpose);fetch.after-image=1*error(on purpose)"); err != nil {
			t.Fatal(err)
		}
		dropped, err := n.DropStored(n.ctx())
		if dropped || err == nil {
			t.Fatalf("dropped: %v, %v", dropped, err)
		}
		for range 2 {
			if reboot {
				n.stop()
				n = m.boot(with(s))
			}
			if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Paused {
				t.Fatalf("%s, %v", sb.State(), err)
			}
			if _, err := n.Resume(n.ctx(), id, 0, 0); err == nil {
				t.Fatal("it was resumed")
			}
		}
		if got := s.whole.Load(); got != 1 {
			t.Errorf("%d images were fetched", got)
		}
		n.resume(id, 2)
		if got := s.whole.Load(); got != 1 {
			t.Errorf("an image that is there was fetched again: %d", got)
		}
		if n.hasImage(id) {
			t.Errorf("what runs has images: %q", n.images(id))
		}
	}
}
