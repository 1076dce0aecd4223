package lifecycle

import (
	"context"
	"errors"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/snapshots"
)

const (
	// maxChildren bounds what one fork makes.
	maxChildren = 16
	// stopWait is how long a request waits for a source that stands still.
	stopWait = 5 * time.Second
)

// ForkRequest asks for sandboxes that are what another is at this moment.
type ForkRequest struct {
	ID         sandbox.ID
	Generation sandbox.Generation // 0: any
	Memory     *bool              // processes and memory, too; nil: as a paused source was saved, a running one's files alone
	User       string             // whose the children are, in the source's team
	Children   []Child
}

// Child is what a fork's caller has chosen for one of them.
type Child struct {
	ID      sandbox.ID
	ClaimID string
}

func (r ForkRequest) validate(cluster string) error {
	if len(r.Children) == 0 || len(r.Children) > maxChildren {
		return errdefs.New(errdefs.InvalidArgument, "fork: %d children: want 1 to %d", len(r.Children), maxChildren)
	}
	seen := map[string]bool{}
	for _, c := range r.Children {
		if id, err := sandbox.ParseID(string(c.ID)); err != nil || id.Cluster() != cluster {
			return errdefs.New(errdefs.InvalidArgument, "fork: %.64q is no id of a sandbox here", c.ID)
		}
		if c.ClaimID == "" || len(c.ClaimID) > maxNameBytes || seen[c.ClaimID] || seen[string(c.ID)] {
			return errdefs.New(errdefs.InvalidArgument, "fork: want an id and a claim_id of its own for each child")
		}
		seen[c.ClaimID], seen[string(c.ID)] = true, true
	}
	if len(r.User) > maxNameBytes {
		return errdefs.New(errdefs.InvalidArgument, "fork: user of more than %d bytes", maxNameBytes)
	}
	return nil
}

// Fork makes paused sandboxes of what a sandbox of their team is now. The source stays
// what it was: a paused one is not touched, a running one goes on, also when the fork
// fails. It returns when all children are durable; else there is none. The same children
// are always answered the same.
func (m *Manager) Fork(ctx context.Context, req ForkRequest) ([]Sandbox, error) {
	if err := req.validate(m.cfg.Cluster); err != nil {
		return nil, err
	}
	inst := m.find(req.ID)
	if inst == nil {
		return nil, notFound(req.ID)
	}
	if err := inst.takeTurn(ctx); err != nil {
		return nil, busy(req.ID, err)
	}
	defer inst.endTurn()
	if sbs, err := m.forked(req); sbs != nil || err != nil {
		return sbs, err
	}
	rec := m.record(inst)
	if len(mountsOf(rec)) > 0 {
		return nil, errdefs.New(errdefs.Conflict, "sandbox %s has volumes mounted: a fork would have them, too", req.ID)
	}
	if err := usable(rec); err != nil && (rec.State != journal.Paused || rec.Claim == nil) {
		return nil, err
	}
	if err := checkGeneration(rec, req.Generation); err != nil {
		return nil, err
	}
	if err := m.cfg.Disk.Room(); err != nil {
		return nil, err
	}
	if err := m.fork(ctx, inst, rec, req); err != nil {
		return nil, forkError(req.ID, err)
	}
	return m.forked(req)
}

// forked is what an earlier call with the same children has made; nil: nothing.
func (m *Manager) forked(req ForkRequest) ([]Sandbox, error) {
	var made []Sandbox
	for _, c := range req.Children {
		if m.find(c.ID) == nil {
			continue
		}
		sb, err := m.Get(c.ID)
		if err != nil || sb.Claim.ClaimID != c.ClaimID {
			return nil, errdefs.New(errdefs.Conflict, "fork: sandbox %s exists", c.ID).WithCause(err)
		}
		made = append(made, sb)
	}
	if len(made) > 0 && len(made) < len(req.Children) {
		return nil, errdefs.New(errdefs.Conflict, "fork: some of its children have ended")
	}
	return made, nil
}

func forkError(id sandbox.ID, err error) error {
	var typed *errdefs.Error
	if errors.As(err, &typed) {
		return err
	}
	return errdefs.New(errdefs.Unavailable, "sandbox %s could not be forked", id).WithCause(err)
}

// fork takes the steps. The caller has the source's turn; its Delete interrupts them.
func (m *Manager) fork(ctx context.Context, inst *instance, rec journal.Record, req ForkRequest) error {
	ctx, cancel := m.interruptible(context.WithoutCancel(ctx), inst, imageTimeout)
	defer cancel()
	if rec.State == journal.Paused {
		if err := m.bringImage(ctx, rec); err != nil {
			return err
		}
	}
	f := &forking{m: m, source: inst, rec: rec, req: req}
	steps, err := f.steps()
	if err != nil {
		return err
	}
	if err := f.reserve(); err != nil {
		return err
	}
	begin := time.Now()
	if err := m.runSteps(ctx, "fork", steps); err != nil {
		err = because(ctx, err)
		m.log(rec).Warn("a fork failed", "error", err)
		f.undo(ctx)
		return err
	}
	f.done()
	m.log(rec).Info("sandbox is forked", "children", len(f.children), "memory", f.manifest.Memory, "took", time.Since(begin), "stopped", f.stopped)
	return nil
}

// forking is a fork under way. It belongs to whoever has the source's turn.
type forking struct {
	m        *Manager
	source   *instance
	rec      journal.Record // the source's
	req      ForkRequest
	manifest snapshots.Manifest

	children []*instance      // in the table, their turns taken
	records  []journal.Record // what they will be
	frozenAt time.Time        // zero: the source runs
	stopped  time.Duration    // for how long it did not
}

// steps are those of a fork of this source. A paused one's image is cloned. A running one
// is saved into the first child's, and that is cloned: with its memory, it has to stand
// still for as long as that takes, which its record says before it does.
func (f *forking) steps() ([]step, error) {
	with := f.req.Memory != nil && *f.req.Memory
	if f.rec.State == journal.Paused {
		err := f.fromImage()
		return []step{
			{"clone", func(context.Context) error { return f.clone(f.m.imageDir(f.rec), 0) }},
			{"commit", f.commit},
		}, err
	}
	save := []step{{"save", func(ctx context.Context) error { return f.m.cfg.Runtime.SaveFiles(ctx, f.rec.ID, f.dir(0)) }}}
	if with {
		save = []step{{"intent", f.intend}, {"quiesce", f.quiesce}, {"freeze", f.freeze}, {"save", f.save}, {"thaw", f.thaw}, {"seal", f.seal}}
	}
	steps := append([]step{{"dirs", func(ctx context.Context) error { return f.describe(ctx, with) }}}, save...)
	return append(steps,
		step{"clone", func(context.Context) error { return f.clone(f.dir(0), 1) }},
		step{"commit", f.commit},
	), nil
}

// fromImage takes a paused source's manifest for its children's: without one nobody knows
// whose the image is.
func (f *forking) fromImage() error {
	manifest, err := f.m.manifest(f.rec, f.m.imageDir(f.rec))
	if errors.Is(err, snapshots.ErrNone) {
		return errdefs.New(errdefs.Conflict, "sandbox %s was paused by an older version: resume and pause it to fork it", f.rec.ID).WithCause(err)
	}
	if err != nil {
		return err
	}
	if f.req.Memory != nil {
		if *f.req.Memory && !manifest.Memory {
			return errdefs.New(errdefs.Conflict, "sandbox %s was paused without its memory", f.rec.ID)
		}
		manifest.Memory = *f.req.Memory
	}
	f.manifest = manifest
	return nil
}

// reserve puts the children into the table, where no sweep takes their traces for
// nobody's: for all others they are not there before they have a claim.
func (f *forking) reserve() error {
	for _, c := range f.req.Children {
		f.records = append(f.records, f.child(c))
	}
	m := f.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rec := range f.records {
		if m.instances[rec.ID] != nil || m.claims[rec.Claim.ClaimID] != nil {
			return errdefs.New(errdefs.Conflict, "fork: sandbox %s or its claim exists", rec.ID)
		}
	}
	for _, rec := range f.records {
		rec.Claim = nil
		inst := newInstance(rec)
		inst.tryTurn()
		m.instances[rec.ID] = inst
		f.children = append(f.children, inst)
	}
	return nil
}

// child is a child's record. It has the source's generation, for a procd that is in the
// image heeds only later ones, and the source's policy without its credentials: whoever
// keeps those tells the node of them anew, for each sandbox, or they would outlive that.
func (f *forking) child(c Child) journal.Record {
	claim := *f.rec.Claim
	claim.ClaimID, claim.User, claim.Time = c.ClaimID, f.req.User, time.Now().UTC()
	if n := claim.Network; n != nil {
		claim.Network = &journal.Network{Policy: n.Policy}
	}
	return journal.Record{
		ID: c.ID, Generation: f.rec.Generation, State: journal.Paused, Image: f.rec.Generation,
		PoolKey: f.rec.PoolKey, Spec: f.rec.Spec, Created: claim.Time, Claim: &claim,
	}
}

// dir is the place of a child's image.
func (f *forking) dir(i int) string { return f.m.imageDir(f.records[i]) }

// describe makes the first child's place, with what will be in it.
func (f *forking) describe(ctx context.Context, memory bool) error {
	var err error
	if f.manifest, err = f.m.manifestOf(ctx, f.source, f.rec, memory); err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir(0), 0o700); err != nil {
		return err
	}
	return snapshots.Write(f.dir(0), f.manifest)
}

// intend says, durably, that the source may stand still: the next noded thaws it.
func (f *forking) intend(ctx context.Context) error {
	f.rec.Frozen = true
	return f.m.commit(ctx, f.source, f.rec)
}

// quiesce has the source's procd hang up, for what is open in an image stays open in its
// children for ever. Whoever wants the source's procd meanwhile waits.
func (f *forking) quiesce(ctx context.Context) error {
	f.m.change(f.source, func() { f.source.back = make(chan struct{}) })
	return f.m.quiesce(ctx, f.source)
}

func (f *forking) freeze(ctx context.Context) error {
	f.frozenAt = time.Now()
	return f.m.cfg.Runtime.Freeze(ctx, f.rec.ID)
}

func (f *forking) save(ctx context.Context) error {
	return f.m.cfg.Runtime.SaveFrozen(ctx, f.rec.ID, f.dir(0))
}

// seal makes the first child's image durable: the source need not stand still for that.
func (f *forking) seal(context.Context) error { return f.m.cfg.Runtime.Seal(f.dir(0)) }

// thaw lets the source go on. Its procd, which dials, finds us listening.
func (f *forking) thaw(ctx context.Context) error {
	if err := f.m.listen(f.source); err != nil {
		return err
	}
	if err := f.m.cfg.Runtime.Thaw(ctx, f.rec.ID); err != nil {
		return err
	}
	f.stopped = time.Since(f.frozenAt)
	f.m.change(f.source, func() { f.source.back = opened(f.source.back) })
	f.m.background(func(ctx context.Context) { f.m.awaitProcd(ctx, f.source) })
	return nil
}

// opened ends the wait for a channel.
func opened(back chan struct{}) chan struct{} {
	if back != nil {
		close(back)
	}
	return nil
}

// returning is the way to a procd that a fork has had hang up and that dials again when
// its sandbox goes on.
type returning struct {
	m    *Manager
	inst *instance
	back <-chan struct{}
}

// RoundTrip implements http.RoundTripper.
func (r returning) RoundTrip(req *http.Request) (*http.Response, error) {
	select {
	case <-r.back:
	case <-time.After(stopWait):
	case <-req.Context().Done():
	}
	ch, err := r.m.channelOf(r.inst)
	if err != nil {
		return nil, err
	}
	return ch.RoundTrip(req)
}

// clone makes the other children's images of the one in src, from that child on, and the way
// to all of them durable. It makes them side by side: the disk takes many syncs as one.
func (f *forking) clone(src string, from int) error {
	parts := []string{snapshots.FilesPart}
	if f.manifest.Memory {
		parts = append(parts, snapshots.MemoryPart)
	}
	var all errgroup.Group
	for i, rec := range f.records {
		all.Go(func() error {
			if i < from {
				return syncDir(f.m.imagesDir(rec.ID))
			}
			if err := os.MkdirAll(f.m.imagesDir(rec.ID), 0o700); err != nil {
				return err
			}
			return snapshots.Clone(src, f.dir(i), f.manifest, parts...)
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	return syncDir(f.m.cfg.ImageDir)
}

// commit makes all children sandboxes at once, and the source one that does not stand still.
func (f *forking) commit(ctx context.Context) error {
	all := f.records
	if f.rec.Frozen {
		f.rec.Frozen = false
		all = append(all[:len(all):len(all)], f.rec)
	}
	return f.m.cfg.Journal.Put(ctx, all...)
}

// done lets everybody know of what has become of the fork.
func (f *forking) done() {
	m := f.m
	m.change(f.source, func() { f.source.rec.Frozen = false })
	for i, child := range f.children {
		known := &claimed{done: make(chan struct{}), id: child.id}
		close(known.done)
		m.change(child, func() {
			child.rec = f.records[i]
			m.claims[child.rec.Claim.ClaimID] = known
			child.endTurn()
		})
	}
}

// undo lets the source go on and removes what there is of children.
func (f *forking) undo(ctx context.Context) {
	for _, child := range f.children {
		f.m.abandon(ctx, child, "fork failed")
		child.endTurn()
	}
	if !f.m.record(f.source).Frozen {
		return
	}
	if f.stopped == 0 {
		f.m.change(f.source, func() { f.source.unseen, f.source.back = true, opened(f.source.back) })
		f.m.background(func(ctx context.Context) { f.m.adoptFrozen(ctx, f.source) })
		return
	}
	rec := f.m.record(f.source)
	rec.Frozen = false
	f.m.putAnyway(ctx, rec)
	f.m.change(f.source, func() { f.source.rec = rec })
}

// adoptFrozen takes up a sandbox again that may stand still since nobody knows when.
func (m *Manager) adoptFrozen(ctx context.Context, inst *instance) {
	life := m.lifeOf(inst)
	tick := time.NewTicker(adoptRetry)
	defer tick.Stop()
	for begin := time.Now(); !m.thawAgain(ctx, inst); {
		if time.Since(begin) > m.adoptGrace && !m.listed(ctx, inst.id) {
			m.end(ctx, inst, life, "not running after the node's restart")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// thawAgain makes one attempt, with the turn, so that it ends nothing that has begun since;
// a Delete interrupts it. It reports whether that was the last one.
func (m *Manager) thawAgain(ctx context.Context, inst *instance) (done bool) {
	if inst.takeTurn(ctx) != nil {
		return true // the node stops; the next one thaws it again
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if !rec.Frozen || atRest(rec) {
		return true
	}
	thawing, cancel := m.interruptible(ctx, inst, startTimeout)
	defer cancel()
	if err := m.cfg.Runtime.Thaw(thawing, inst.id); err != nil {
		if ctx.Err() == nil {
			m.log(rec).Warn("a sandbox that may be frozen could not be thawed yet", "error", err)
		}
		return false
	}
	rec.Frozen = false
	m.putAnyway(ctx, rec)
	m.change(inst, func() { inst.rec = rec })
	m.background(func(ctx context.Context) { m.adoptLive(ctx, inst) })
	return true
}
