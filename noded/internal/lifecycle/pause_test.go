package lifecycle_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/snapshots"
)

func (n *noded) pause(id sandbox.ID) {
	n.t.Helper()
	sb, err := n.Pause(n.ctx(), id, 0)
	if err != nil || sb.State() != sandbox.Paused {
		n.t.Fatalf("pause of %s: %s, %v", id, sb.State(), err)
	}
}

// Resume resumes what has no volumes and is on this node.
func (n *noded) Resume(ctx context.Context, id sandbox.ID, gen, after sandbox.Generation) (lifecycle.Sandbox, error) {
	return n.Manager.Resume(ctx, lifecycle.ResumeRequest{ID: id, Generation: gen, After: after})
}

// ResumeStored resumes what has no volumes and is in the object store.
func (n *noded) ResumeStored(ctx context.Context, s lifecycle.Stored) (lifecycle.Sandbox, error) {
	return n.Manager.Resume(ctx, lifecycle.ResumeRequest{ID: s.Sandbox, Stored: &s})
}

func (n *noded) resume(id sandbox.ID, want sandbox.Generation) {
	n.t.Helper()
	sb, err := n.Resume(n.ctx(), id, 0, 0)
	if err != nil || sb.State() != sandbox.Running || sb.Generation != want {
		n.t.Fatalf("resume of %s: %s, generation %d, %v", id, sb.State(), sb.Generation, err)
	}
}

// released waits until nothing of any sandbox runs.
func (n *noded) released() {
	n.t.Helper()
	eventually(n.t, "released", func() bool { return len(n.node.Left()) == 0 })
}

func (n *noded) image(id sandbox.ID) string { return filepath.Join(n.dir, "images", string(id)) }

func (n *noded) hasImage(id sandbox.ID) bool {
	_, err := os.Stat(n.image(id))
	return err == nil
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	_, w := n.watch()
	n.pause(id)
	w.until(id, "paused")
	n.released()
	if !n.hasImage(id) {
		t.Error("there is no image")
	}
	if images := n.Images(); len(images) != 1 || images[0] != spec.Image {
		t.Errorf("it needs the images %q", images)
	}
	n.pause(id) // again
	if _, err := n.Proc(id, 0); errdefs.From(err).Code != lifecycle.CodePaused {
		t.Errorf("the way to a paused sandbox: %v", err)
	}
	if _, err := n.Update(n.ctx(), lifecycle.UpdateRequest{ID: id, ReplaceEnv: true, Env: map[string]string{"A": "asleep"}, MemoryBytes: 512 << 20}); err != nil {
		t.Errorf("update of a paused sandbox: %v", err)
	}
	if _, err := n.Resume(n.ctx(), id, 7, 0); errdefs.From(err).Code != lifecycle.CodeStaleGeneration {
		t.Errorf("resume of another generation: %v", err)
	}

	n.resume(id, 2)
	w.until(id, "running")
	if n.hasImage(id) {
		t.Error("the image of what runs is kept")
	}
	if who := (noop.Runtime{Node: n.node}).Identity(id); who.Generation != 2 || who.Env["A"] != "asleep" {
		t.Errorf("procd was told to be %+v", who)
	}
	if l := (noop.Groups{Node: n.node}).Limits(id); l.MemoryBytes != 512<<20 || l.Idle {
		t.Errorf("limits %+v", l)
	}
	n.resume(id, 2) // again
	if _, err := n.Pause(n.ctx(), id, 1); errdefs.From(err).Code != lifecycle.CodeStaleGeneration {
		t.Errorf("pause of an older generation: %v", err)
	}

	n.pause(id)
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
	eventually(t, "every index is given back", func() bool { return n.IndexesInUse() == 0 })
}

func TestPauseIsForClaimedSandboxes(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	slot := n.warm(1)[0]
	for _, do := range []func(context.Context, sandbox.ID, sandbox.Generation) (lifecycle.Sandbox, error){n.Pause, n.PauseFiles, func(ctx context.Context, id sandbox.ID, gen sandbox.Generation) (lifecycle.Sandbox, error) {
		return n.Resume(ctx, id, gen, 0)
	}} {
		if _, err := do(n.ctx(), slot, 0); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("of a slot: %v", err)
		}
		if _, err := do(n.ctx(), "local-nosuch", 0); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("of nothing: %v", err)
		}
	}
}

// X19–X24 without the kill: a pause that fails leaves the sandbox running or paused,
// a resume that fails leaves it paused.
func TestX19_PauseAndResumeUndo(t *testing.T) {
	defer failpoint.Arm("")
	for place, want := range map[string]sandbox.State{
		"pause.journal.commit": sandbox.Running, "pause.after-intent": sandbox.Running, "pause.after-manifest": sandbox.Running, "pause.after-quiesce": sandbox.Running,
		"pause.after-checkpoint": sandbox.Paused,
		"resume.journal.commit":  sandbox.Paused, "resume.after-intent": sandbox.Paused, "resume.after-netns": sandbox.Paused, "resume.after-cgroup": sandbox.Paused,
		"resume.after-dirs": sandbox.Paused, "resume.after-listen": sandbox.Paused, "resume.after-start": sandbox.Paused,
		"resume.after-handshake": sandbox.Paused, "resume.after-limits": sandbox.Paused, "resume.after-events": sandbox.Paused, "resume.after-commit": sandbox.Paused,
	} {
		t.Run(place, func(t *testing.T) {
			n := newMachine(t).boot()
			id := n.warm(1)[0]
			n.claim(id)
			do := n.Pause
			verb, _, _ := strings.Cut(place, ".")
			if verb == "resume" {
				n.pause(id)
				n.released()
				n.rests()
				do = func(ctx context.Context, id sandbox.ID, gen sandbox.Generation) (lifecycle.Sandbox, error) {
					return n.Resume(ctx, id, gen, 0)
				}
			}
			if commit := "journal.commit"; strings.HasSuffix(place, commit) {
				place = commit
			}
			if err := failpoint.Arm(place + "=1*error(on purpose)"); err != nil {
				t.Fatal(err)
			}
			if _, err := do(n.ctx(), id, 0); (err == nil) != (place == "pause.after-checkpoint") {
				t.Errorf("%s: %v", verb, err)
			} else if err != nil && strings.Contains(errdefs.From(err).Message, "on purpose") {
				t.Errorf("the cause is shown: %q", errdefs.From(err).Message)
			}
			eventually(t, "the state is "+string(want), func() bool {
				sb, err := n.Get(id)
				return err == nil && sb.State() == want
			})
			// And it is none the worse for it.
			n.pause(id)
			if _, err := n.Resume(n.ctx(), id, 0, 0); err != nil {
				t.Fatal(err)
			}
			if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
				t.Fatal(err)
			}
			n.nothingLeft()
		})
	}
}

// X43: an image that can't be written leaves the sandbox running.
func TestX43_ASandboxThatCannotBeSavedGoesOn(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.node.Fault = func(e string, _ sandbox.ID) error {
		if e == "runtime.Checkpoint" {
			return errors.New("no space left on device")
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	_, err := n.Pause(n.ctx(), id, 0)
	kind(t, err, errdefs.Unavailable)
	eventually(t, "it runs again", func() bool {
		sb, err := n.Get(id)
		return err == nil && sb.State() == sandbox.Running
	})
	if n.hasImage(id) {
		t.Error("half an image is left")
	}
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}

// X28: a sandbox that containerd can't be asked about after it was frozen is not given
// up, and neither is its image, which its shim may still complete.
func TestX28_APauseWithoutContainerd(t *testing.T) {
	t.Parallel()
	for name, saved := range map[string]bool{"not saved": false, "saved by the shim alone": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			var away atomic.Bool
			m.node.Fault = func(e string, _ sandbox.ID) error {
				if away.Load() && (e == "runtime.Checkpoint" || e == "runtime.Thaw" || e == "runtime.List") {
					return errors.New("containerd is away")
				}
				return nil
			}
			n := m.boot()
			id := n.warm(1)[0]
			n.claim(id)
			away.Store(true)
			_, err := n.Pause(n.ctx(), id, 0)
			kind(t, err, errdefs.Unavailable)
			if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Unknown {
				t.Errorf("what nobody knows is shown as %s: %v", sb.State(), err)
			}
			if !n.hasImage(id) {
				t.Error("the image is gone, which may be all that is left")
			}
			want := sandbox.Running
			if away.Store(false); saved {
				n.checkpoint(id)
				want = sandbox.Paused
			}
			eventually(t, string(want), func() bool {
				sb, err := n.Get(id)
				return err == nil && sb.State() == want
			})
		})
	}
}

// G03: until a resume has ended, its generation is nobody's: who ends the sandbox that
// he knows to be paused ends it.
func TestG03_DeleteOfAKnownGenerationDuringResume(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	starting, goOn := make(chan struct{}), make(chan struct{})
	var armed atomic.Bool
	m.node.Fault = func(e string, _ sandbox.ID) error {
		if e == "runtime.Start" && armed.CompareAndSwap(true, false) {
			close(starting)
			<-goOn
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	n.released()
	armed.Store(true)
	resumed := make(chan error, 1)
	go func() { resumed <- second(n.Resume(n.ctx(), id, 1, 0)) }()
	<-starting
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Starting || sb.Wire().GetGeneration() != 1 {
		t.Errorf("it is shown as %s of generation %d: %v", sb.State(), sb.Wire().GetGeneration(), err)
	}
	brief, cancel := context.WithTimeout(n.ctx(), 20*time.Millisecond)
	defer cancel()
	kind(t, n.Delete(brief, id, 1, "test"), errdefs.Unavailable) // it has interrupted the resume, and not had its turn
	close(goOn)
	if err := <-resumed; err == nil {
		t.Error("a resume that was interrupted has succeeded")
	}
	if err := n.Delete(n.ctx(), id, 1, "test"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}

func second(_ lifecycle.Sandbox, err error) error { return err }

// X19–X24: whatever noded had begun when it was killed, the next one finds the
// sandbox running, paused or ended, and says so.
func TestX20_PauseAndResumeAreFinishedByTheNextNoded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		state  journal.State
		before func(n *noded, id sandbox.ID) // what had happened by then
		want   sandbox.State
	}{
		"pausing, not saved": {journal.Pausing, func(*noded, sandbox.ID) {}, sandbox.Running},
		"pausing, frozen": {journal.Pausing, func(n *noded, id sandbox.ID) {
			if err := (noop.Runtime{Node: n.node}).Freeze(n.ctx(), id); err != nil {
				t.Fatal(err)
			}
		}, sandbox.Running},
		"pausing, saved": {journal.Pausing, func(n *noded, id sandbox.ID) {
			n.checkpoint(id)
		}, sandbox.Paused},
		"pausing, ended without an image": {journal.Pausing, func(n *noded, id sandbox.ID) {
			noop.Runtime{Node: n.node}.Kill(id, true)
		}, sandbox.Failed},
		"paused, not released": {journal.Paused, func(n *noded, id sandbox.ID) {
			n.checkpoint(id)
		}, sandbox.Paused},
		"resuming, started": {journal.Resuming, func(n *noded, id sandbox.ID) {
			files := filepath.Join(n.image(id), "1", snapshots.FilesPart)
			if err := os.MkdirAll(files, 0o700); err != nil {
				n.t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(files, "noop"), nil, 0o600); err != nil {
				n.t.Fatal(err)
			}
		}, sandbox.Paused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			n := m.boot()
			id := n.warm(1)[0]
			rec := n.claim(id).Record
			rec.State, rec.Image = c.state, 1
			if err := n.journal.Put(n.ctx(), rec); err != nil {
				t.Fatal(err)
			}
			n.stop()
			c.before(n, id)
			n = m.boot()
			eventually(t, string(c.want), func() bool {
				sb, err := n.Get(id)
				return err == nil && sb.State() == c.want
			})
			if c.want == sandbox.Paused {
				n.released()
			}
			if c.want != sandbox.Failed {
				n.pause(id)
				if _, err := n.Resume(n.ctx(), id, 0, 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
				t.Fatal(err)
			}
			n.nothingLeft()
		})
	}
}

// checkpoint saves a sandbox behind noded's back, as its shim does.
func (n *noded) checkpoint(id sandbox.ID) {
	n.t.Helper()
	dir := filepath.Join(n.image(id), "1")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	if err := (noop.Runtime{Node: n.node}).Checkpoint(n.t.Context(), id, dir); err != nil {
		n.t.Fatal(err)
	}
}

// A paused sandbox outlives any number of restarts, and takes no place.
func TestX46_PausedSandboxesOutliveRestarts(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot(func(c *lifecycle.Config) { c.Max = 2 })
	ids := n.warm(2)
	for _, id := range ids {
		n.claim(id)
		n.pause(id)
	}
	n.released()
	for range 3 {
		n.stop()
		n = m.boot(func(c *lifecycle.Config) { c.Max = 2 })
	}
	eventually(t, "their places are free", func() bool { return n.Create(n.ctx(), "pool", spec, nil) == nil })
	eventually(t, "both of them", func() bool { return n.Create(n.ctx(), "pool", spec, nil) == nil })
	others := n.free()
	if _, err := n.Resume(n.ctx(), ids[0], 0, 0); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("resume on a full node: %v", err)
	}
	n.Drain(n.ctx(), others[0])
	eventually(t, "there is a place again", func() bool {
		_, err := n.Resume(n.ctx(), ids[0], 0, 0)
		return err == nil
	})
}

// G03: whoever comes first, a sandbox that is deleted while it is saved or woken ends.
func TestG03_DeleteDuringPauseAndResume(t *testing.T) {
	t.Parallel()
	for _, effect := range []string{"runtime.Checkpoint", "runtime.Start"} {
		t.Run(effect, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			var n *noded
			var id sandbox.ID
			deleted := make(chan error, 1)
			armed := make(chan struct{}, 1)
			m.node.Fault = func(e string, _ sandbox.ID) error {
				select {
				case <-armed:
					if e != effect {
						armed <- struct{}{}
						return nil
					}
					go func() { deleted <- n.Delete(n.ctx(), id, 0, "test") }()
				default:
				}
				return nil
			}
			n = m.boot()
			id = n.warm(1)[0]
			n.claim(id)
			if effect == "runtime.Start" {
				n.pause(id)
				n.released()
				armed <- struct{}{}
				_, _ = n.Resume(n.ctx(), id, 0, 0)
			} else {
				armed <- struct{}{}
				_, _ = n.Pause(n.ctx(), id, 0)
			}
			if err := <-deleted; err != nil {
				t.Fatal(err)
			}
			n.nothingLeft()
		})
	}
}

// X24, R4: what a killed noded has left of images that are no life of their sandbox's any
// more goes with the next one's start, not with the sandbox's next pause or its end.
func TestX24_OldImagesGo(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(3)
	for _, id := range slots {
		n.claim(id)
	}
	runs, paused, failed := slots[0], slots[1], slots[2]
	n.pause(paused)
	noop.Runtime{Node: m.node}.Kill(failed, true)
	eventually(t, "only one runs", func() bool { return len(m.node.Left()) == 3 })
	n.stop()
	for _, id := range slots {
		if err := os.MkdirAll(filepath.Join(n.image(id), "7", "memory"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n = m.boot()
	eventually(t, "the images of what does not exist any more go", func() bool {
		left, err := os.ReadDir(n.image(paused))
		return !n.hasImage(runs) && !n.hasImage(failed) && err == nil && len(left) == 1 && left[0].Name() == "1"
	})
	n.resume(paused, 2)
}

// X29: the shim dies with a sandbox that it was saving. Nobody can say any more how the
// sandbox ended; that it has shows in that nobody looks after it.
func TestX29_ShimDiesInAPause(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.SetAdoptGrace(time.Second)
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "runtime.Checkpoint" || effect == "runtime.Thaw" {
			noop.Runtime{Node: m.node}.LoseTask(id)
			return errors.New("no such task")
		}
		return nil
	}
	if sb, err := n.Pause(n.ctx(), id, 0); err == nil {
		t.Fatalf("%+v", sb)
	}
	eventually(t, "it has failed", func() bool {
		sb, err := n.Get(id)
		return err == nil && sb.State() == sandbox.Failed
	})
	n.released()
	if err := n.Delete(n.ctx(), id, 0, "seen"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}
