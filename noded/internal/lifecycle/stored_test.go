package lifecycle_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/archive"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
)

// shelf is an object store of whole images.
type shelf struct {
	t testing.TB

	mu     sync.Mutex
	images map[archive.Ref]archive.Image // copies
	asked  chan struct{}
	whole  atomic.Int32 // images that were fetched
	hangs  bool
	err    error
	until  time.Time // whoever fetched last had time
}

func newShelf(t testing.TB) *shelf {
	return &shelf{t: t, images: map[archive.Ref]archive.Image{}, asked: make(chan struct{}, 100)}
}

// put stores what n has that is not stored.
func (s *shelf) put(n *noded) (refs []archive.Ref) {
	s.t.Helper()
	for _, img := range n.Unstored() {
		release, ok := n.Hold(img)
		if !ok {
			s.t.Fatalf("%s is not to be had", img.Ref)
		}
		defer release()
		dir := filepath.Join(s.t.TempDir(), "image")
		if err := os.CopyFS(dir, os.DirFS(img.Dir)); err != nil {
			s.t.Fatal(err)
		}
		s.mu.Lock()
		s.images[img.Ref] = archive.Image{Ref: img.Ref, Dir: dir, About: img.About}
		s.mu.Unlock()
		if ok, err := n.SetStored(n.ctx(), img); !ok || err != nil {
			s.t.Fatalf("stored: %v, %v", ok, err)
		}
		refs = append(refs, img.Ref)
	}
	return refs
}

func (s *shelf) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *shelf) Fetch(ctx context.Context, ref archive.Ref, dir string) ([]byte, error) {
	img, err := s.ask(ctx, ref)
	if err != nil {
		return nil, err
	}
	s.whole.Add(1)
	s.mu.Lock()
	s.until, _ = ctx.Deadline()
	s.mu.Unlock()
	return img.About, os.CopyFS(dir, os.DirFS(img.Dir))
}

func (s *shelf) FetchFile(ctx context.Context, ref archive.Ref, name string, _ int64) ([]byte, error) {
	img, err := s.ask(ctx, ref)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(img.Dir, name))
}

func (s *shelf) ask(ctx context.Context, ref archive.Ref) (archive.Image, error) {
	s.asked <- struct{}{}
	s.mu.Lock()
	img, ok, hangs, err := s.images[ref], true, s.hangs, s.err
	_, ok = s.images[ref]
	s.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return img, context.Cause(ctx)
	}
	if err != nil {
		return img, err
	}
	if !ok {
		return img, archive.ErrNotFound
	}
	return img, nil
}

func with(s *shelf) func(*lifecycle.Config) { return func(c *lifecycle.Config) { c.Archive = s } }

// asleep makes a paused sandbox that is on the shelf, too.
func (n *noded) asleep(s *shelf) (sandbox.ID, archive.Ref) {
	n.t.Helper()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	n.rests()
	refs := s.put(n)
	if len(refs) != 1 || refs[0] != (archive.Ref{Team: "team", Sandbox: id, Generation: 1}) {
		n.t.Fatalf("stored %v", refs)
	}
	return id, refs[0]
}

// rests waits until every sandbox is paused and its teardown, which takes its turn for the
// last record, has written that.
func (n *noded) rests() {
	n.t.Helper()
	eventually(n.t, "all are torn down", func() bool { return n.Holding() == 0 })
}

func stored(ref archive.Ref, after sandbox.Generation) lifecycle.Stored {
	return lifecycle.Stored{Ref: ref, ClaimID: "claim-" + string(ref.Sandbox), After: after}
}

// X41: what is dropped from a crowded disk is fetched when it is resumed, and stays
// paused while it can't be.
func TestX41_ADroppedImageIsFetched(t *testing.T) {
	t.Parallel()
	m, s := newMachine(t), newShelf(t)
	n := m.boot(with(s))
	if dropped, err := n.DropStored(n.ctx()); dropped || err != nil {
		t.Errorf("dropped nothing: %v, %v", dropped, err)
	}
	id, _ := n.asleep(s)
	if sb, err := n.Get(id); err != nil || sb.Wire().GetStoredGeneration() != 1 {
		t.Errorf("stored: %v, %v", sb.Wire(), err)
	}
	if dropped, err := n.DropStored(n.ctx()); !dropped || err != nil || n.hasImage(id) {
		t.Fatalf("dropped: %v, %v", dropped, err)
	}
	if dropped, err := n.DropStored(n.ctx()); dropped || err != nil {
		t.Errorf("dropped twice: %v, %v", dropped, err)
	}
	n.stop()
	n = m.boot(with(s)) // and it is known by the journal alone
	for what, c := range map[string]struct {
		err  error
		kind errdefs.Kind
	}{
		"down": {errors.New("connection refused"), errdefs.Unavailable}, "damaged": {archive.ErrDamaged, errdefs.Conflict}, "gone": {archive.ErrNotFound, errdefs.Conflict},
		"no room": {errdefs.New(errdefs.Exhausted, "full"), errdefs.Exhausted},
	} {
		s.fail(c.err)
		if _, err := n.Resume(n.ctx(), id, 0, 0); !errdefs.Is(err, c.kind) {
			t.Errorf("X43: %s: %v", what, err)
		}
		if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Paused {
			t.Errorf("X43: %s: then it is %s, %v", what, sb.State(), err)
		}
	}
	s.fail(nil)
	n.resume(id, 2)
	if sb, _ := n.Get(id); sb.Wire().GetStoredGeneration() != 0 {
		t.Error("what runs is stored")
	}
	n.pause(id)
	if list := n.Unstored(); len(list) != 1 || list[0].Generation != 2 {
		t.Errorf("to be stored: %v", list)
	}
}

// X22: a drop that was cut off is finished by the next one, also where nothing is left to do.
// Not parallel: the table of failpoints is the process's.
func TestX22_ADropIsFinished(t *testing.T) {
	defer failpoint.Arm("")
	s := newShelf(t)
	n := newMachine(t).boot(with(s))
	id, _ := n.asleep(s)
	if err := failpoint.Arm("drop.after-aside=1*error(on purpose)"); err != nil {
		t.Fatal(err)
	}
	if dropped, err := n.DropStored(n.ctx()); dropped || err == nil || !n.hasImage(id) {
		t.Fatalf("a drop that was to be cut off: %v, %v", dropped, err)
	}
	if dropped, err := n.DropStored(n.ctx()); !dropped || err != nil || n.hasImage(id) {
		t.Errorf("the next one: %v, %v", dropped, err)
	}
	if dropped, err := n.Drop(id); !dropped || err != nil {
		t.Errorf("of what is gone: %v, %v", dropped, err)
	}
	n.resume(id, 2)
}

// X41, X43: who can't have a snapshot or a pause is told whether it is worth another try.
func TestX41_WhyASandboxCannotBeSaved(t *testing.T) {
	t.Parallel()
	m, s := newMachine(t), newShelf(t)
	full := errdefs.New(errdefs.Exhausted, "the disk is full")
	var fault atomic.Pointer[error]
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if err := fault.Load(); err != nil && effect == "runtime.Checkpoint" {
			return *err
		}
		return nil
	}
	n := m.boot(with(s))
	id, _ := n.asleep(s)
	if dropped, err := n.DropStored(n.ctx()); !dropped || err != nil {
		t.Fatalf("dropped: %v, %v", dropped, err)
	}
	causes := map[errdefs.Kind]error{errdefs.Conflict: archive.ErrDamaged, errdefs.Exhausted: full, errdefs.Unavailable: errors.New("connection refused")}
	for want, cause := range causes {
		s.fail(cause)
		_, err := n.Snapshot(n.ctx(), id, 0, snap)
		kind(t, err, want)
	}
	s.fail(nil)
	n.resume(id, 2)
	causes[errdefs.Conflict] = errdefs.New(errdefs.Conflict, "it can't be saved")
	for want, cause := range causes {
		fault.Store(&cause)
		eventually(t, "procd is back", func() bool { return n.Connected(id) })
		_, err := n.Pause(n.ctx(), id, 0)
		kind(t, err, want)
	}
}

// What was dropped is forked like what was not.
func TestADroppedImageIsForked(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	n := newMachine(t).boot(with(s))
	id, _ := n.asleep(s)
	if dropped, err := n.DropStored(n.ctx()); !dropped || err != nil {
		t.Fatalf("dropped: %v, %v", dropped, err)
	}
	child, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Fork(n.ctx(), lifecycle.ForkRequest{ID: id, Children: []lifecycle.Child{{ID: child, ClaimID: "child"}}}); err != nil {
		t.Fatal(err)
	}
	n.resume(child, 2)
	n.resume(id, 2)
}

func TestTheLongestPausedIsDroppedFirst(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	n := newMachine(t).boot(with(s))
	ids := n.warm(3)
	for _, id := range ids {
		n.claim(id)
		n.pause(id)
	}
	n.rests()
	unstored := n.Unstored()[0].Sandbox
	for _, img := range n.Unstored()[1:] {
		if ok, err := n.SetStored(n.ctx(), img); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	var order []sandbox.ID
	for _, id := range ids {
		if id != unstored {
			order = append(order, id)
		}
	}
	for _, id := range order {
		if dropped, err := n.DropStored(n.ctx()); !dropped || err != nil || n.hasImage(id) {
			t.Errorf("%s is not the next to go: %v, %v", id, dropped, err)
		}
	}
	if dropped, err := n.DropStored(n.ctx()); dropped || err != nil || !n.hasImage(unstored) {
		t.Errorf("what is nowhere else is gone: %v, %v", dropped, err)
	}
}

// R2: what came of a sandbox elsewhere counts, not what this node still has of it.
func TestR2_AnOutdatedInstanceEnds(t *testing.T) {
	t.Parallel()
	for state, bring := range map[string]func(n *noded, id sandbox.ID){
		"paused":  func(*noded, sandbox.ID) {},
		"running": func(n *noded, id sandbox.ID) { n.resume(id, 2) },
		"failed": func(n *noded, id sandbox.ID) {
			n.resume(id, 2)
			(noop.Runtime{Node: n.node}).Kill(id, true)
			eventually(n.t, "failed", func() bool { sb, err := n.Get(id); return err == nil && sb.State() == sandbox.Failed })
		},
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s := newShelf(t)
			n := newMachine(t).boot(with(s))
			id, ref := n.asleep(s)
			s.mu.Lock()
			later := s.images[ref] // another node has resumed it as 4 and paused it again
			later.Generation = 4
			var rec map[string]any
			if err := json.Unmarshal(later.About, &rec); err != nil {
				t.Error(err)
			}
			rec["image"], rec["generation"] = 4, 4
			later.About, _ = json.Marshal(rec)
			s.images[later.Ref] = later
			s.mu.Unlock()
			bring(n, id)
			if _, err := n.ResumeStored(n.ctx(), stored(later.Ref, 6)); !errdefs.Is(err, errdefs.Unavailable) {
				t.Fatalf("beside an older one: %v", err)
			}
			eventually(t, "the older one is gone", func() bool { return n.Holding() == 0 && !n.hasImage(id) })
			sb, err := n.ResumeStored(n.ctx(), stored(later.Ref, 6))
			if err != nil || sb.Generation != 7 || sb.State() != sandbox.Running {
				t.Errorf("resumed as %d, %s: %v", sb.Generation, sb.State(), err)
			}
		})
	}
}

// A delete waits for no fetch, and nothing is left of either.
func TestG04_DeleteWhileAnImageIsFetched(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	s.hangs = true
	n := newMachine(t).boot(with(s))
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := n.ResumeStored(n.ctx(), stored(archive.Ref{Team: "team", Sandbox: id, Generation: 1}, 1))
		failed <- err
	}()
	<-s.asked
	if _, err := n.Get(id); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("it is somebody's before it is whole: %v", err)
	}
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("it was resumed")
	}
	n.nothingLeft()
	if n.hasImage(id) {
		t.Error("there is an image")
	}
}

func TestANodeWithoutAnArchive(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.ResumeStored(n.ctx(), stored(archive.Ref{Team: "team", Sandbox: id, Generation: 1}, 1)); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("it was asked for an image: %v", err)
	}
	n.nothingLeft()
}
