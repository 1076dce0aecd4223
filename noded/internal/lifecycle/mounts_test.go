package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/volumes"
)

// tier is a lifecycle.Volumes whose volumes are their names. What is uncommitted is in dirty
// until a commit, an end of a use, or for ever if those fail.
type tier struct {
	mu       sync.Mutex
	portals  map[sandbox.ID]map[string]volumes.Mount
	dirty    map[string]bool
	stands   []string // where a mount was
	commits  int
	down     error // of commits
	busy     bool  // files are open
	aside    bool  // what is mounted was
	onCommit func()
	ending   func(ctx context.Context, id sandbox.ID) error // called for each DetachAll
}

func newTier() *tier {
	return &tier{portals: map[sandbox.ID]map[string]volumes.Mount{}, dirty: map[string]bool{}}
}

func (f *tier) use(cfg *lifecycle.Config) { cfg.Volumes = f }

func (f *tier) Dir(sandbox.ID) string { return "/portal" }

func (f *tier) Prepare(id sandbox.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.portals[id] == nil {
		f.portals[id] = map[string]volumes.Mount{}
	}
	return nil
}

func (f *tier) StandIn(id sandbox.ID, m volumes.Mount) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stands = append(f.stands, m.Name())
	return nil
}

func (f *tier) Has(id sandbox.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.portals[id]) > 0
}

func (f *tier) AttachWhen(_ context.Context, id sandbox.ID, m volumes.Mount, enter func() error) error {
	if err := enter(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.portals[id] == nil {
		return errors.New("no portal")
	}
	if f.aside {
		return errdefs.WithCode(errdefs.Conflict, volumeapi.CodeFenced, "it was put aside")
	}
	f.portals[id][m.ID] = m
	return nil
}

func (f *tier) Detach(ctx context.Context, id sandbox.ID, m volumes.Mount, look func(context.Context) error) error {
	if err := look(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		return volumes.ErrBusy
	}
	if err := f.commit(m.Volume.ID); err != nil {
		return err
	}
	delete(f.portals[id], m.ID)
	return nil
}

func (f *tier) DetachAll(ctx context.Context, id sandbox.ID) error {
	if f.ending != nil {
		if err := f.ending(ctx, id); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.portals, id)
	return nil
}

func (f *tier) CommitAll(_ context.Context, mounts []volumes.Mount) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range mounts {
		if err := f.commit(m.Volume.ID); err != nil {
			return err
		}
	}
	return nil
}

func (f *tier) commit(volume string) error {
	f.commits++
	if f.onCommit != nil {
		f.onCommit()
	}
	if f.down == nil {
		delete(f.dirty, volume)
	}
	return f.down
}

func (f *tier) List() ([]sandbox.ID, error) { return nil, nil }

// write has something in the volume that is not committed.
func (f *tier) write(volume string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dirty[volume] = true
}

func (f *tier) set(down error, busy bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down, f.busy = down, busy
}

// epochs are those of what a sandbox has in its portal, by mount.
func (f *tier) epochs(id sandbox.ID) map[string]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]uint64{}
	for name, m := range f.portals[id] {
		all[name] = m.Volume.Epoch
	}
	return all
}

func (f *tier) committed(volume string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.dirty[volume]
}

func mountOf(id, volume string, epoch uint64) journal.Mount {
	return journal.Mount{ID: id, MountPoint: "/mnt/" + id, Volume: journal.Volume{ID: volume, Team: "team", Epoch: epoch}}
}

// claimWith claims a slot with volumes.
func (n *noded) claimWith(slot sandbox.ID, all ...journal.Mount) {
	n.t.Helper()
	req := claimOf(slot, "claim-"+string(slot))
	req.Env, req.Mounts = nil, all
	if _, _, err := n.Claim(n.ctx(), req); err != nil {
		n.t.Fatal(err)
	}
}

func (n *noded) resumeWith(id sandbox.ID, all ...journal.Mount) error {
	_, err := n.Manager.Resume(n.ctx(), lifecycle.ResumeRequest{ID: id, Mounts: all})
	return err
}

func (n *noded) mounts(id sandbox.ID) (names []string) {
	n.t.Helper()
	sb, err := n.Get(id)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range sb.Claim.Mounts {
		names = append(names, m.ID)
	}
	return names
}

// R2: what a sandbox has mounted in its next life is what its row says, at the row's
// epochs, also when that is nothing; who is late with older ones is refused.
func TestX43_AResumeFencesByTheRow(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	n := m.boot(f.use)
	rt := noop.Runtime{Node: m.node}
	id := n.warm(1)[0]
	n.claimWith(id, mountOf("m1", "v1", 1), mountOf("m2", "v2", 1))
	n.pause(id)
	if err := n.resumeWith(id, mountOf("m1", "v1", 3)); err != nil {
		t.Fatal(err)
	}
	if got := f.epochs(id); len(got) != 1 || got["m1"] != 3 || len(rt.Mounts(id)) != 1 {
		t.Errorf("after a resume it has %v, and procd %v", got, rt.Mounts(id))
	}
	if !slices.Equal(f.stands, []string{"v2~m2"}) {
		t.Errorf("in the place of what its image knows: %v", f.stands)
	}
	if err := n.resumeWith(id, mountOf("m1", "v1", 4)); err != nil || f.epochs(id)["m1"] != 4 {
		t.Errorf("a resume of what runs: %v, epochs %v", err, f.epochs(id))
	}
	if err := n.resumeWith(id, mountOf("m1", "v1", 3)); errdefs.From(err).Code != volumeapi.CodeFenced {
		t.Errorf("a resume that is late: %v", err)
	}
	n.pause(id)
	if err := n.resumeWith(id, mountOf("m1", "v1", 3)); errdefs.From(err).Code != volumeapi.CodeFenced {
		t.Errorf("a resume of what is paused that is late: %v", err)
	}
	if err := n.resumeWith(id); err != nil {
		t.Fatal(err)
	}
	if got := f.epochs(id); len(got) != 0 || len(n.mounts(id)) != 0 {
		t.Errorf("without volumes it has %v and its record %v", got, n.mounts(id))
	}
}

// R6: that a volume of what runs was put aside is said to everybody who wants it to run, and
// not to the first alone.
func TestX47_AResumeKeepsSayingThatAVolumeWasPutAside(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	n := m.boot(f.use)
	id := n.warm(1)[0]
	n.claimWith(id, mountOf("m1", "v1", 1))
	putAside := func(is bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.aside = is
	}
	putAside(true)
	for i := range 3 {
		if err := n.resumeWith(id, mountOf("m1", "v1", 2)); errdefs.From(err).Code != volumeapi.CodeFenced {
			t.Errorf("resume %d: %v", i, err)
		}
		if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running {
			t.Errorf("then it is %s, %v", sb.State(), err)
		}
	}
	n.pause(id)
	putAside(false)
	for range 2 {
		if err := n.resumeWith(id, mountOf("m1", "v1", 3)); err != nil || f.epochs(id)["m1"] != 3 {
			t.Errorf("after a pause: %v, epochs %v", err, f.epochs(id))
		}
	}
}

// Volumes whose last commit takes for ever hold up the end of no other sandbox; the end of
// their own waits for that, also for the next noded.
func TestG14_SlowVolumesHoldUpNoTeardown(t *testing.T) {
	t.Parallel()
	const slow = lifecycle.ReleasesAtOnce + 1
	m, f := newMachine(t), newTier()
	var waiting atomic.Int32
	free := make(chan struct{})
	f.ending = func(ctx context.Context, id sandbox.ID) error {
		if len(f.epochs(id)) == 0 {
			return nil
		}
		waiting.Add(1)
		defer waiting.Add(-1)
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	n := m.boot(f.use)
	ids := n.warm(slow + 1)
	for i, id := range ids[:slow] {
		n.claimWith(id, mountOf(fmt.Sprint("m", i), fmt.Sprint("v", i), 1))
	}
	for _, id := range ids[:slow] {
		if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "their volumes are committed", func() bool { return waiting.Load() == slow })
	if err := n.Delete(n.ctx(), ids[slow], 0, "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another one is gone", func() bool {
		records, err := n.journal.All()
		return err == nil && len(records) == slow
	})
	n.stop()
	if waiting.Load() != 0 {
		t.Error("noded has stopped, and waits for volumes")
	}
	n = m.boot(f.use)
	eventually(t, "their volumes are committed by the next noded", func() bool { return waiting.Load() == slow })
	close(free)
	n.nothingLeft()
}

// The same for a sandbox that is in the object store, on a node that has never had it.
func TestX43_AStoredResumeFencesByTheRow(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	first, f := newMachine(t).boot(newTier().use, with(s)), newTier()
	id := first.warm(1)[0]
	first.claimWith(id, mountOf("m1", "v1", 1), mountOf("m2", "v2", 1))
	first.pause(id)
	refs := s.put(first)
	n := newMachine(t).boot(f.use, with(s))
	req := lifecycle.ResumeRequest{ID: id, Mounts: []journal.Mount{mountOf("m2", "v2", 5)}}
	where := stored(refs[0], 1)
	req.Stored = &where
	if _, err := n.Manager.Resume(n.ctx(), req); err != nil {
		t.Fatal(err)
	}
	if got := f.epochs(id); len(got) != 1 || got["m2"] != 5 {
		t.Errorf("it has %v", got)
	}
}

// R7: a pause is answered when the volumes are committed. While they can't be, the sandbox
// runs; if that is found out behind its image, the next to ask waits for it, too.
func TestX43_APauseAnswersBehindTheCommit(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	n := m.boot(f.use)
	id := n.warm(1)[0]
	n.claimWith(id, mountOf("m1", "v1", 1))
	f.write("v1")
	f.set(errors.New("the store is down"), false)
	if _, err := n.Pause(n.ctx(), id, 0); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a pause without a store: %v", err)
	}
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running {
		t.Errorf("then it is %s, %v", sb.State(), err)
	}
	f.set(nil, false)
	commits := 0
	f.onCommit = func() {
		if commits++; commits == 2 { // behind the image
			f.down = errors.New("the store is down")
		}
	}
	f.write("v1")
	for range 2 {
		if _, err := n.Pause(n.ctx(), id, 0); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("a pause whose last commit fails: %v", err)
		}
	}
	f.set(nil, false)
	f.write("v1")
	n.pause(id)
	if !f.committed("v1") {
		t.Error("a pause was answered without a commit")
	}
}

// R7: what can't be committed, or is in use, stays mounted; a retry is no way around it.
func TestX43_AnUnmountAnswersBehindTheCommit(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	n := m.boot(f.use)
	rt := noop.Runtime{Node: m.node}
	id := n.warm(1)[0]
	n.claimWith(id, mountOf("m1", "v1", 1))
	f.write("v1")
	there := func(when string) {
		t.Helper()
		if len(f.epochs(id)) != 1 || len(rt.Mounts(id)) != 1 || !slices.Equal(n.mounts(id), []string{"m1"}) {
			t.Errorf("%s: in the portal %v, inside %v, in the record %v", when, f.epochs(id), rt.Mounts(id), n.mounts(id))
		}
	}
	for range 2 {
		f.set(errors.New("the store is down"), false)
		if err := n.Unmount(n.ctx(), id, 0, "m1"); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("without a store: %v", err)
		}
		there("without a store")
		f.set(nil, true)
		if err := n.Unmount(n.ctx(), id, 0, "m1"); errdefs.From(err).Code != nodeapi.CodeVolumeBusy {
			t.Errorf("with an open file: %v", err)
		}
		there("with an open file")
	}
	f.set(nil, false)
	rt.SetBusy(id, true)
	if err := n.Unmount(n.ctx(), id, 0, "m1"); errdefs.From(err).Code != nodeapi.CodeVolumeBusy {
		t.Errorf("in use: %v", err)
	}
	rt.SetBusy(id, false)
	if err := n.Unmount(n.ctx(), id, 0, "m1"); err != nil {
		t.Fatal(err)
	}
	if !f.committed("v1") || len(f.epochs(id)) != 0 || len(rt.Mounts(id)) != 0 || len(n.mounts(id)) != 0 {
		t.Errorf("afterwards: in the portal %v, inside %v, in the record %v", f.epochs(id), rt.Mounts(id), n.mounts(id))
	}
}

// A paused sandbox gives a volume up when that is committed, and does not have it again.
func TestX43_AnUnmountOfWhatIsPaused(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	n := m.boot(f.use)
	id := n.warm(1)[0]
	n.claimWith(id, mountOf("m1", "v1", 1))
	n.pause(id)
	f.write("v1")
	f.set(errors.New("the store is down"), false)
	if err := n.Unmount(n.ctx(), id, 0, "m1"); !errdefs.Is(err, errdefs.Unavailable) || len(n.mounts(id)) != 1 {
		t.Errorf("without a store: %v, it has %v", err, n.mounts(id))
	}
	f.set(nil, false)
	if err := n.Unmount(n.ctx(), id, 0, "m1"); err != nil || len(n.mounts(id)) != 0 || !f.committed("v1") {
		t.Errorf("%v, it has %v", err, n.mounts(id))
	}
	for range 2 {
		if err := n.resumeWith(id); err != nil {
			t.Fatal(err)
		}
		if sb, err := n.Get(id); err != nil || len(sb.Claim.Former) > 0 || !slices.Equal(f.stands, []string{"v1~m1"}) {
			t.Errorf("resumed: %v, %v, in its place %v", sb.Claim.Former, err, f.stands)
		}
		n.pause(id)
	}
}

// What a paused sandbox has lost and has again is its volume, not what stood in its place.
func TestX43_AMountThatComesBackStays(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	n := m.boot(f.use)
	rt := noop.Runtime{Node: m.node}
	id := n.warm(1)[0]
	n.claimWith(id, mountOf("m1", "v1", 1))
	n.pause(id)
	if err := n.Unmount(n.ctx(), id, 0, "m1"); err != nil {
		t.Fatal(err)
	}
	if err := n.resumeWith(id, mountOf("m1", "v1", 2)); err != nil {
		t.Fatal(err)
	}
	if got := f.epochs(id); got["m1"] != 2 || len(rt.Mounts(id)) != 1 || len(f.stands) != 0 {
		t.Errorf("it has %v, procd %v, and in its place %v", got, rt.Mounts(id), f.stands)
	}
}

// What stands in the place of a volume and is in use stays over pauses: an image that knows
// it can be taken up with it alone.
func TestX43_AFormerMountInUseStays(t *testing.T) {
	t.Parallel()
	m, f := newMachine(t), newTier()
	rt := noop.Runtime{Node: m.node}
	var busy atomic.Bool
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if effect == "process.Live" {
			rt.SetBusy(id, busy.Load())
		}
		return nil
	}
	n := m.boot(f.use)
	id := n.warm(1)[0]
	n.claimWith(id, mountOf("m1", "v1", 1))
	n.pause(id)
	busy.Store(true)
	for stands := 1; stands <= 3; stands++ {
		if stands == 3 {
			busy.Store(false)
		}
		if err := n.resumeWith(id); err != nil {
			t.Fatal(err)
		}
		sb, err := n.Get(id)
		if err != nil || len(f.stands) != stands || (len(sb.Claim.Former) == 1) != busy.Load() {
			t.Errorf("in its place %v, former %v, %v", f.stands, sb.Claim.Former, err)
		}
		n.pause(id)
	}
	if err := n.resumeWith(id); err != nil || len(f.stands) != 3 {
		t.Errorf("at last in its place %v, %v", f.stands, err)
	}
}
