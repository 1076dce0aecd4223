package lifecycle_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/noop"
)

// recorded is what the journal says of a sandbox.
func (n *noded) recorded(id sandbox.ID) journal.Record {
	n.t.Helper()
	all, err := n.journal.All()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, rec := range all {
		if rec.ID == id {
			return rec
		}
	}
	n.t.Fatalf("the journal has no %s", id)
	return journal.Record{}
}

// R7: who writes to a volume stands still for one instant of it and goes on, whatever comes
// of that instant; the journal says so while he does.
func TestR7_AWriterStandsStillForAnInstant(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	n := m.boot(f.use)
	rt := noop.Runtime{Node: m.node}
	id := n.warm(1)[0]
	reads := mountOf("m2", "v2", 1)
	reads.ReadOnly = true
	n.claimWith(id, mountOf("m1", "v1", 1), reads)
	failed := errors.New("it failed")
	done := 0
	do := func(end func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			done++
			if !rt.Frozen(id) || !n.recorded(id).Frozen {
				t.Errorf("frozen: %v, in the journal: %v", rt.Frozen(id), n.recorded(id).Frozen)
			}
			return end(ctx)
		}
	}
	goesOn := func() {
		t.Helper()
		n.serves(id)
		if rt.Frozen(id) || n.recorded(id).Frozen {
			t.Errorf("afterwards frozen: %v, in the journal: %v", rt.Frozen(id), n.recorded(id).Frozen)
		}
	}
	if err := n.Still(n.ctx(), "v1", do(func(context.Context) error { return nil })); err != nil || done != 1 {
		t.Errorf("%v, done %d times", err, done)
	}
	goesOn()
	if err := n.Still(n.ctx(), "v1", do(func(context.Context) error { return failed })); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	goesOn()
	err := n.Still(n.ctx(), "v1", do(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }))
	if e := errdefs.From(err); e.Kind != errdefs.Unavailable || e.Code != volumeapi.CodeWritten || e.RetryAfter <= 0 {
		t.Errorf("an instant that takes too long: %v", err)
	}
	goesOn()
	ctx, cancel := context.WithCancel(n.ctx())
	if err := n.Still(ctx, "v1", do(func(ctx context.Context) error { cancel(); <-ctx.Done(); return ctx.Err() })); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits: %v", err)
	}
	goesOn()
	done = 0
	never := do(func(context.Context) error { return nil })
	for _, volume := range []string{"v2", "another"} {
		if err := n.Still(n.ctx(), volume, never); err != nil || n.Writes(volume) {
			t.Errorf("%s: %v", volume, err)
		}
	}
	n.pause(id)
	if err := n.Still(n.ctx(), "v1", never); err != nil || done != 0 || !n.Writes("v1") {
		t.Errorf("paused: %v, done %d times", err, done)
	}
}

// R3, X24: a sandbox that could not be frozen or thawed goes on all the same, and one that is
// to end ends.
func TestX24_AnInstantThatFails(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	var fails atomic.Pointer[string]
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if which := fails.Load(); which != nil && *which == effect && fails.CompareAndSwap(which, nil) {
			return errors.New("on purpose")
		}
		return nil
	}
	n := m.boot(f.use)
	rt := noop.Runtime{Node: m.node}
	id := n.warm(1)[0]
	n.claimWith(id, mountOf("m1", "v1", 1))
	for _, effect := range []string{"runtime.Freeze", "runtime.Thaw"} {
		fails.Store(&effect)
		if err := n.Still(n.ctx(), "v1", func(context.Context) error { return nil }); err == nil {
			t.Errorf("without %s it is an instant", effect)
		}
		n.serves(id)
		if rt.Frozen(id) {
			t.Errorf("without %s it stands still", effect)
		}
	}
	begun, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- n.Still(n.ctx(), "v1", func(ctx context.Context) error { close(begun); <-ctx.Done(); return ctx.Err() })
	}()
	<-begun
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("an instant of what was deleted")
	}
	n.nothingLeft()
}
