package lifecycle_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/snapshots"
)

// dyingInMemory is a machine whose sandboxes end whenever they are taken up from an image
// with memory, as one does whose first process was killed while it was frozen.
func dyingInMemory(t *testing.T) (m *machine, starts *atomic.Int32) {
	t.Helper()
	m, starts = newMachine(t), new(atomic.Int32)
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if effect != "process.Live" {
			return nil
		}
		starts.Add(1)
		if p := (noop.Runtime{Node: m.node}).Begun(id); p == "" || strings.HasSuffix(p, ".files") {
			return nil
		}
		return errors.New("killed in its image")
	}
	return m, starts
}

// X30, X24: a sandbox whose first process was killed while it was frozen is not refused for
// ever: its files are what it goes on with, and its contexts are there.
func TestX30_KilledInItsImage(t *testing.T) {
	t.Parallel()
	m, starts := dyingInMemory(t)
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	kept := []procapi.KeptContext{{ID: "ctx-12345678"}}
	(noop.Runtime{Node: m.node}).Keep(id, kept)
	n.pause(id)
	starts.Store(0)
	n.resume(id, 2)
	if got := starts.Load(); got != 3 {
		t.Errorf("it was taken up %d times: want twice with its memory, then without", got)
	}
	if told := (noop.Runtime{Node: m.node}).Identity(id); !reflect.DeepEqual(told.Kept, kept) {
		t.Errorf("its procd was told to keep %+v", told.Kept)
	}
	if n.hasImage(id) {
		t.Error("the image of what runs is kept")
	}
	n.pause(id) // its memory is a new one, and worth as much as any
	if manifest, err := snapshots.Read(filepath.Join(n.image(id), "2")); err != nil || !manifest.Memory {
		t.Errorf("paused again as %+v: %v", manifest, err)
	}
}

// R7: memory is given up for what is seen again and again, not for a kill.
func TestX29_KilledOnceWhileItIsResumed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var kills atomic.Int32
	memory := ""
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if effect != "process.Live" || kills.Add(-1) < 0 {
			return nil
		}
		return errors.New("killed from outside")
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	memory = filepath.Join(n.image(id), "1", snapshots.MemoryPart)
	kills.Store(1)
	n.resume(id, 2)
	if begun := (noop.Runtime{Node: m.node}).Begun(id); begun != filepath.Dir(memory) {
		t.Errorf("it began with %s", begun)
	}
	if who := (noop.Runtime{Node: m.node}).Identity(id); len(who.Kept) > 0 {
		t.Error("its procd was taken for a new one")
	}
}

// R7: who is late with the end of one life ends no other.
func TestX29_TheEndOfALifeBefore(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var late func()
	done := make(chan struct{})
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "runtime.Start" && late != nil {
			go func() { defer close(done); late() }()
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	end := n.EndLater(id)
	n.pause(id)
	n.released()
	late = end
	n.resume(id, 2)
	<-done
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running {
		t.Errorf("the next life is %s: %v", sb.State(), err)
	}
	n.EndLater(id)()
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Failed {
		t.Errorf("when it has ended itself it is %s: %v", sb.State(), err)
	}
}

// What can't be taken up at all is refused, and stays what it is.
func TestX30_EndsWithoutItsMemoryToo(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var dying atomic.Bool
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if effect == "process.Live" && dying.Load() {
			return errors.New("killed")
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	dying.Store(true)
	for range 2 {
		if _, err := n.Resume(n.ctx(), id, 0, 0); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("resume: %v", err)
		}
	}
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Paused || sb.Generation != 1 {
		t.Errorf("then it is %s %d: %v", sb.State(), sb.Generation, err)
	}
	n.released()
	for _, part := range []string{snapshots.FilesPart, snapshots.MemoryPart} {
		if _, err := os.Stat(filepath.Join(n.image(id), "1", part)); err != nil {
			t.Errorf("R7: %v", err)
		}
	}
	dying.Store(false)
	n.resume(id, 2)
}

// An end without memory is told at once: there is nothing else to start from.
func TestX30_FilesAloneAreTriedOnce(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var starts atomic.Int32
	var dying atomic.Bool
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if effect != "process.Live" || !dying.Load() {
			return nil
		}
		starts.Add(1)
		return errors.New("killed")
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	if _, err := n.PauseFiles(n.ctx(), id, 0); err != nil {
		t.Fatal(err)
	}
	dying.Store(true)
	if _, err := n.Resume(n.ctx(), id, 0, 0); !errdefs.Is(err, errdefs.Unavailable) || starts.Load() != 1 {
		t.Errorf("resume: %v, after %d starts", err, starts.Load())
	}
}
