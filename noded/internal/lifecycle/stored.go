package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/archive"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/snapshots"
)

// Archive fetches what is in the object store; package archive has the contract.
type Archive interface {
	// Fetch brings an image to dir, which does not exist, whole or not at all, and
	// returns what was stored about it.
	Fetch(ctx context.Context, ref archive.Ref, dir string) (about []byte, err error)
	// FetchFile returns one file of an image, of at most limit bytes.
	FetchFile(ctx context.Context, ref archive.Ref, name string, limit int64) ([]byte, error)
}

var _ archive.Sandboxes = (*Manager)(nil)

// Stored says where the state of a sandbox is that this node may not have.
type Stored struct {
	archive.Ref
	ClaimID string
	After   sandbox.Generation // every instance that there may have been since has at most this one
}

// about is what of a paused sandbox's record holds on every node.
func about(rec journal.Record) []byte {
	rec.NetIndex, rec.IP, rec.Stored = 0, netip.Addr{}, 0
	b, err := json.Marshal(rec)
	if err != nil {
		panic(err) // the journal has written it in the same way
	}
	return b
}

func storedImage(m *Manager, rec journal.Record) archive.Image {
	return archive.Image{
		Ref: archive.Ref{Team: rec.Claim.Team, Sandbox: rec.ID, Generation: rec.Image},
		Dir: m.imageDir(rec), About: about(rec),
	}
}

// isStored reports whether the state of a paused sandbox is in the object store.
func isStored(rec journal.Record) bool {
	return rec.State == journal.Paused && rec.Stored != 0 && rec.Stored == rec.Image
}

// Unstored implements [archive.Sandboxes].
func (m *Manager) Unstored() []archive.Image {
	var list []archive.Image
	for _, inst := range m.snapshot() {
		if rec := m.record(inst); rec.State == journal.Paused && !isStored(rec) {
			list = append(list, storedImage(m, rec))
		}
	}
	slices.SortFunc(list, func(a, b archive.Image) int { return strings.Compare(string(a.Sandbox), string(b.Sandbox)) })
	return append(list, m.unstoredSnapshots()...)
}

// unstoredSnapshots come after the sandboxes: what they were made of is still there.
func (m *Manager) unstoredSnapshots() (list []archive.Image) {
	kept, err := m.cfg.Snapshots.Unstored()
	if err != nil {
		m.cfg.Log.Warn("looking for snapshots to store", "error", err)
	}
	for _, snap := range kept {
		list = append(list, archive.Image{Ref: archive.Ref{Team: snap.Team, Snapshot: snap.Name}, Dir: snap.Dir})
	}
	return list
}

// Hold implements [archive.Sandboxes]. A sandbox's image may go at any time, and what is
// stored of it goes later by its row; a snapshot's end waits for whoever stores it.
func (m *Manager) Hold(img archive.Image) (release func(), ok bool) {
	if img.Snapshot == "" {
		return func() {}, true
	}
	return m.cfg.Snapshots.Hold(img.Snapshot)
}

// ImagesChanged implements [archive.Sandboxes].
func (m *Manager) ImagesChanged() <-chan struct{} { return m.images }

// imagesChanged is called with mu held.
func (m *Manager) imagesChanged() {
	select {
	case m.images <- struct{}{}:
	default: // a look is due anyway
	}
}

// SetStored implements [archive.Sandboxes].
func (m *Manager) SetStored(ctx context.Context, img archive.Image) (bool, error) {
	if img.Snapshot != "" {
		return m.cfg.Snapshots.SetStored(img.Snapshot)
	}
	inst := m.find(img.Sandbox)
	if inst == nil {
		return false, nil
	}
	if err := inst.takeTurn(ctx); err != nil {
		return false, err
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if rec.State != journal.Paused || rec.Image != img.Generation || !bytes.Equal(about(rec), img.About) {
		return false, nil
	}
	rec.Stored = rec.Image
	return true, m.commit(ctx, inst, rec)
}

// DropStored implements [archive.Sandboxes]. The sandbox stays what it is: paused, and
// resumed with an image that is fetched.
func (m *Manager) DropStored(ctx context.Context) (bool, error) {
	for _, inst := range m.byImageAge() {
		if !inst.tryTurn() {
			continue // it is about to be resumed
		}
		dropped, err := m.drop(ctx, m.record(inst))
		inst.endTurn()
		if dropped || err != nil {
			return dropped, err
		}
	}
	return false, nil
}

// drop removes the image of a sandbox whose turn the caller has, if it is still stored. It
// finishes what an attempt before has begun; an image that is gone was to go.
func (m *Manager) drop(ctx context.Context, rec journal.Record) (bool, error) {
	if !isStored(rec) {
		return false, nil
	}
	err := m.moveAside(rec)
	if err == nil {
		err = failpoint.Hit("drop.after-aside")
	}
	if err == nil {
		err = m.removeImages(ctx, rec.ID)
	}
	if err != nil {
		return false, fmt.Errorf("dropping the image of %s: %w", rec.ID, err)
	}
	m.log(rec).Info("dropped an image that is in the object store")
	return true, nil
}

// moveAside takes an image away from its place as a whole: half of one is never taken for it.
func (m *Manager) moveAside(rec journal.Record) error {
	if err := os.RemoveAll(m.asideDir(rec)); err != nil {
		return err
	}
	err := os.Rename(m.imageDir(rec), m.asideDir(rec))
	if err == nil || errors.Is(err, fs.ErrNotExist) { // an attempt before may have got as far
		err = syncDir(m.imagesDir(rec.ID))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // or to its end
	}
	return err
}

func (m *Manager) asideDir(rec journal.Record) string { return m.imageDir(rec) + ".dropped" }

// byImageAge is every sandbox with an image that could be dropped, the one first that
// has been paused for longest.
func (m *Manager) byImageAge() []*instance {
	var list []*instance
	saved := map[*instance]time.Time{}
	for _, inst := range m.snapshot() {
		rec := m.record(inst)
		if !isStored(rec) {
			continue
		}
		st, err := os.Stat(m.imageDir(rec))
		if err != nil {
			st, err = os.Stat(m.asideDir(rec)) // half of it may be left
		}
		if err == nil {
			saved[inst] = st.ModTime()
			list = append(list, inst)
		}
	}
	slices.SortFunc(list, func(a, b *instance) int { return saved[a].Compare(saved[b]) })
	return list
}

// outdated reports whether rec is of an instance that the stored state came after.
func (s *Stored) outdated(rec journal.Record) bool {
	if s == nil || rec.State == journal.Terminating || rec.State == journal.Paused && rec.Image == s.Generation {
		return false
	}
	return known(rec) <= s.After
}

// endOutdated ends an instance whose sandbox went on elsewhere. The caller has its turn,
// and is told to come back when nothing of it is left.
func (m *Manager) endOutdated(ctx context.Context, inst *instance, rec journal.Record) error {
	rec.State, rec.Reason = journal.Terminating, "a later instance was saved elsewhere"
	if err := m.commit(ctx, inst, rec); err != nil {
		return err
	}
	m.log(rec).Warn("ending an outdated instance", "reason", rec.Reason)
	m.dispose(inst, rec)
	return busy(rec.ID, errors.New("an outdated instance of it ends"))
}

// takeIn makes a paused sandbox of this node of what is in the object store. Until its
// record is durable nobody is told, and a node that stops in between leaves nothing that
// its sweep does not find.
func (m *Manager) takeIn(ctx context.Context, s Stored) error {
	if m.cfg.Archive == nil {
		return errdefs.New(errdefs.Conflict, "sandbox %s can't be resumed on this node", s.Sandbox)
	}
	if err := m.cfg.Disk.Room(); err != nil {
		return err
	}
	// It is nobody's until it is whole, like one that is ending.
	inst := newInstance(journal.Record{ID: s.Sandbox, Generation: s.Generation, Image: s.Generation, State: journal.Terminating})
	inst.tryTurn()
	defer inst.endTurn()
	if !m.admit(inst) {
		return nil // somebody else takes it in
	}
	ctx, cancel := m.interruptible(ctx, inst, imageTimeout)
	defer cancel()
	rec, err := m.fetchRecord(ctx, s, m.imageDir(inst.rec))
	if err == nil {
		err = m.cfg.Journal.Put(ctx, rec)
	}
	if err != nil {
		err = errors.Join(because(ctx, err), m.removeImages(ctx, s.Sandbox))
		m.forget(inst)
		m.log(inst.rec).Warn("a sandbox could not be taken in", "error", err)
		return fetchError(s.Sandbox, err)
	}
	m.change(inst, func() {
		inst.rec, inst.specHash = rec, rec.Spec.Hash()
		done := make(chan struct{})
		close(done)
		m.claims[rec.Claim.ClaimID] = &claimed{done: done, id: rec.ID}
	})
	m.log(rec).Info("sandbox is taken in from the object store", "team", rec.Claim.Team)
	return nil
}

// admit takes an instance into the table unless there is one of its id.
func (m *Manager) admit(inst *instance) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.instances[inst.id] != nil {
		return false
	}
	m.instances[inst.id] = inst
	return true
}

// fetchRecord fetches an image and what another node knew of its sandbox. That it opens
// means that one of ours has stored it as this sandbox's of this team.
func (m *Manager) fetchRecord(ctx context.Context, s Stored, dir string) (journal.Record, error) {
	b, err := m.cfg.Archive.Fetch(ctx, s.Ref, dir)
	if err != nil {
		return journal.Record{}, err
	}
	var rec journal.Record
	if err := json.Unmarshal(b, &rec); err != nil {
		return journal.Record{}, fmt.Errorf("what was stored about it: %w", err)
	}
	if rec.ID != s.Sandbox || rec.Image != s.Generation || rec.State != journal.Paused || rec.Claim == nil || rec.Claim.Team != s.Team || rec.Claim.ClaimID != s.ClaimID {
		return journal.Record{}, fmt.Errorf("%w: what is known about it is of another sandbox (%s, image %d)", archive.ErrDamaged, rec.ID, rec.Image)
	}
	if err := rec.Spec.Validate(); err != nil {
		return journal.Record{}, err
	}
	saved, err := m.cfg.Runtime.Saved(dir)
	if err != nil || !saved {
		return journal.Record{}, errors.Join(errors.New("what was stored is not a whole image"), err)
	}
	rec.Stored, rec.Generation = rec.Image, max(rec.Generation, s.After)
	return rec, nil
}

// bringImage fetches the image of a paused sandbox that was dropped from this node.
func (m *Manager) bringImage(ctx context.Context, rec journal.Record) error {
	_, err := os.Stat(m.imageDir(rec))
	if !errors.Is(err, fs.ErrNotExist) || !isStored(rec) || m.cfg.Archive == nil {
		return err
	}
	if err := m.cfg.Disk.Room(); err != nil {
		return err
	}
	if err := failpoint.Hit("fetch.begin"); err != nil {
		return err
	}
	if _, err := m.cfg.Archive.Fetch(ctx, storedImage(m, rec).Ref, m.imageDir(rec)); err != nil {
		return fetchError(rec.ID, because(ctx, err))
	}
	if err := failpoint.Hit("fetch.after-image"); err != nil {
		return err
	}
	m.log(rec).Info("fetched a dropped image from the object store")
	return nil
}

// keptOf is which contexts a paused sandbox's next life has again, also of one whose image
// was dropped: it is not worth fetching for that.
func (m *Manager) keptOf(ctx context.Context, rec journal.Record) ([]procapi.KeptContext, error) {
	manifest, err := m.manifest(rec, m.imageDir(rec))
	if !errors.Is(err, snapshots.ErrNone) {
		return manifest.Kept, err
	}
	if _, err := os.Stat(m.imageDir(rec)); !errors.Is(err, fs.ErrNotExist) || !isStored(rec) || m.cfg.Archive == nil {
		return nil, err // it is of a time without manifests
	}
	b, err := m.cfg.Archive.FetchFile(ctx, storedImage(m, rec).Ref, snapshots.FileName, snapshots.MaxFileBytes)
	if err == nil {
		manifest, err = snapshots.Parse(b)
	}
	if err != nil && !errors.Is(err, archive.ErrNoFile) {
		return nil, fetchError(rec.ID, because(ctx, err))
	}
	return manifest.Kept, nil
}

// fetchError is what a caller may know of a fetch that failed.
func fetchError(id sandbox.ID, err error) error {
	switch {
	case errdefs.Is(err, errdefs.Exhausted):
		return err // there is no room for it here
	case errors.Is(err, archive.ErrDamaged), errors.Is(err, archive.ErrNotFound):
		return errdefs.New(errdefs.Conflict, "the saved state of sandbox %s can't be used", id).WithCause(err)
	}
	return errdefs.New(errdefs.Unavailable, "the saved state of sandbox %s can't be fetched at the moment", id).WithRetryAfter(fetchRetryAfter).WithCause(err)
}

// fetchRetryAfter is what somebody is told to wait whose sandbox is in a store that does
// not answer.
const fetchRetryAfter = 5 * time.Second
