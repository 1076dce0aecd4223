package work

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/room"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/tree"
)

// voidSuffix marks a version that was written so that an intent of an earlier process,
// which may be on its way yet, never becomes one.
const voidSuffix = "-void"

// ensureOpen has the volume mounted for writing at spec's epoch. The caller has the turn,
// and nobody else writes.
func (m *Manager) ensureOpen(ctx context.Context, v *volume, spec Volume) error {
	if v.followedBy(spec) {
		return m.goOn(v, spec)
	}
	if err := m.reopen(v, spec.Epoch); err != nil {
		return err
	}
	if v.open {
		// What was lost to an earlier owner than this one is put aside by now.
		if err := m.enterEpoch(v, spec); v.lost == nil || m.hasTree(v.id) || m.stillLost(v, spec.Epoch) != nil {
			return err
		}
	}
	if err := m.clear(v); err != nil {
		return err
	}
	return m.begin(ctx, v, spec)
}

// reopen takes up a working tree that this node has and this process has not opened, and
// mounts anew what lies on a store that was lost. After it the volume is open, or there is
// nothing of it here; else there is an error. That the volume was lost is no matter of a
// caller at a later epoch; epoch 0 is for callers who do not know theirs.
func (m *Manager) reopen(v *volume, epoch uint64) error {
	switch {
	case v.lost != nil && m.hasTree(v.id):
		return m.lose(v, v.lost) // it could not be put aside
	case v.open:
		return m.refresh(v)
	}
	rec, err := m.readRecord(v.id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m.stillLost(v, epoch)
	case err != nil:
		return err
	}
	if err = m.resume(v, rec); v.lost != nil && !m.hasTree(v.id) {
		return m.stillLost(v, epoch)
	}
	return err
}

// epoch is that of who has the volume here. The store may know an earlier one yet, which
// this node began and after which nobody else had any: see enterEpoch.
func (v *volume) epoch() uint64 { return max(v.record.Spec.Epoch, v.head.Epoch) }

// followedBy tells whether spec is at the epoch after that of what is mounted, and nothing
// else is to be done to enter it: see enterEpoch.
func (v *volume) followedBy(spec Volume) bool {
	return v.open && v.lost == nil && v.record.Intent == nil && len(v.pending) == 0 &&
		spec.Team == v.record.Spec.Team && spec.Epoch == v.epoch()+1
}

// goOn has what is mounted at the epoch that follows, which is saved while the store is asked
// whether it is there. If it is not, the epoch has begun all the same: it is
// nobody else's.
func (m *Manager) goOn(v *volume, spec Volume) error {
	rec := v.record
	saved := make(chan error, 1)
	go func() { saved <- m.saveNext(rec, spec) }()
	err := m.refresh(v)
	serr := <-saved
	if serr == nil {
		v.record.Spec = spec
	}
	return errors.Join(err, serr)
}

// enterEpoch goes on at a later epoch with what is mounted. The one that follows this node's
// own fences nobody: whoever wrote before has lost to it already, and each epoch is one
// node's. So it is in the record, and in the store with the next version: a claim waits for
// no store. Any other begins with a version, which has what was made of the volume before
// and is in none. That it is durable is the next commit's matter.
func (m *Manager) enterEpoch(v *volume, spec Volume) error {
	if spec.Team != v.record.Spec.Team {
		return errdefs.New(errdefs.NotFound, "volume %s not found", spec.ID)
	}
	if err := m.settle(v); err != nil {
		return err
	}
	now := v.epoch()
	if spec.Epoch < now {
		return stale(spec, now)
	}
	if spec.Epoch > now+1 || spec.Epoch > now && len(v.pending) > 0 {
		next := v.next()
		next.Epoch = spec.Epoch
		spec.Epoch = v.record.Spec.Epoch // until the version is settled
		if err := m.intend(v, spec, next); err != nil {
			return err
		}
		return m.try(v, v.record.Intent)
	}
	if spec == v.record.Spec {
		return nil
	}
	rec := v.record
	rec.Spec = spec
	return m.writeRecord(v, rec)
}

// begin mounts the volume with a new upper layer.
func (m *Manager) begin(ctx context.Context, v *volume, spec Volume) (err error) {
	head, err := m.cfg.Store.Head(spec.ID)
	if err != nil {
		return err
	}
	if head.Team != spec.Team {
		return errdefs.New(errdefs.NotFound, "volume %s not found", spec.ID)
	}
	if spec.Epoch < head.Epoch {
		return stale(spec, head.Epoch)
	}
	if err := m.cfg.Store.Hold(spec.ID, m.cfg.Node, head); err != nil {
		return err
	}
	if v.base, err = m.layers.take(head.Layers); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = m.unmount(v) // or the next attempt does
		}
	}()
	if err := m.makeRoom(ctx, v, roomFor(spec, head)); err != nil {
		return err
	}
	if err := likeRoot(m.upperDir(v.id), v.base.dirs[0]); err != nil {
		return err
	}
	if head, err = m.beginEpoch(v, spec, head); err != nil {
		return err
	}
	if err := m.mount(v); err != nil {
		return err
	}
	if err := m.found(v); err != nil {
		return err
	}
	v.started(v.record, head)
	return m.look(v)
}

// beginEpoch writes the record of a new upper layer, and the version that begins its epoch:
// as an intent, for the store may forget it when the power fails, and the record does not.
func (m *Manager) beginEpoch(v *volume, spec Volume, head store.Version) (store.Version, error) {
	rec := record{Spec: spec, Base: head, Seq: head.Seq}
	if err := m.makeEpochs(spec.ID); err != nil { // durable with the record
		return head, err
	}
	if spec.Epoch == head.Epoch {
		return head, m.writeRecord(v, rec)
	}
	next := head
	next.ID, next.Seq, next.Epoch = rand.Text(), head.Seq+1, spec.Epoch
	rec.Spec.Epoch, rec.Intent = head.Epoch, &next // until the version is settled
	if err := m.writeRecord(v, rec); err != nil {
		return head, err
	}
	head, err := m.cfg.Store.Advance(v.id, rec.Seq, next)
	if errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotFound) {
		err = errors.Join(err, m.discard(v)) // it is empty
	}
	return head, err
}

// roomFor is how many bytes may be written above a version: what the volume may have beside
// that, and some more, so that a full one can be worked on. 0: any.
func roomFor(spec Volume, head store.Version) int64 {
	if spec.Limit == 0 {
		return 0
	}
	return max(spec.Limit-head.Bytes, 0) + max(spec.Limit/spareRoom, minRoom)
}

// makeRoom makes the place of a new upper layer.
func (m *Manager) makeRoom(ctx context.Context, v *volume, limit int64) error {
	if err := os.MkdirAll(m.dir(v.id), 0o700); err != nil {
		return err
	}
	if err := room.Make(ctx, m.dir(v.id), limit); err != nil {
		return err
	}
	if err := room.Open(m.dir(v.id)); err != nil {
		return err
	}
	for _, dir := range []string{m.upperDir(v.id), m.workDir(v.id)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

func (v *volume) started(rec record, head store.Version) {
	v.record, v.head, v.under, v.pending, v.whole = rec, head, head.Layers, nil, false
	v.seen, v.hidden, v.refused, v.lost, v.open = tree.Tree{}, map[string]hiddenSize{}, map[string]error{}, nil, true
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dirty = false
}

// look remembers a new upper layer as it is, so that its root alone is no change.
func (m *Manager) look(v *volume) error {
	root, err := os.Open(m.upperDir(v.id))
	if err != nil {
		return err
	}
	defer root.Close()
	if v.seen, err = tree.Scan(context.Background(), root, maxEntries); err != nil {
		return err
	}
	v.looked = time.Now()
	return m.writeSeen(v)
}

// mount mounts the volume's two views on what it has taken: what it is, and what is below
// the upper layer. Those that an earlier process has mounted there are good. A view of the
// volume that somebody writes through stays, whatever it lies on: two overlays of one
// upper layer are none.
func (m *Manager) mount(v *volume) error {
	if err := room.Open(m.dir(v.id)); err != nil {
		return err
	}
	if err := unmountViews(m.belowDir(), v.id, m.below(v)); err != nil {
		return err
	}
	if err := m.mountAt(m.below(v), v.base, "", ""); err != nil {
		return err
	}
	v.at = view(m.mergedDir(), v.base.store, v.id)
	old, err := views(m.mergedDir(), v.id)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(old, func(at string) bool { return at != v.at })
	if i >= 0 && v.writers() {
		v.at = old[i]
		return nil
	}
	if i >= 0 {
		v.takeBack()
	}
	if err := unmountViews(m.mergedDir(), v.id, v.at); err != nil {
		return err
	}
	return m.mountAt(v.at, v.base, m.upperDir(v.id), m.workDir(v.id))
}

func (m *Manager) mountAt(at string, base stack, upper, work string) error {
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if there, err := isMount(at); err != nil || there {
		return err
	}
	return m.overlay(at, base, upper, work)
}

// refresh mounts anew what lies on a store that was lost: its layers answer EIO for ever.
// Who writes through the old view keeps it; what he writes is committed.
func (m *Manager) refresh(v *volume) error {
	now, err := m.cfg.Store.Mounted()
	if err != nil {
		return err
	}
	if now == v.base.store && v.at == view(m.mergedDir(), now, v.id) {
		return nil
	}
	old := v.base
	if now != old.store {
		if v.base, err = m.layers.take(v.record.Base.Layers); err != nil {
			v.base = old
			return err
		}
		m.layers.give(old)
	}
	return m.mount(v)
}

// likeRoot gives a new upper layer the root of what is below it.
func likeRoot(upper, below string) error {
	var st unix.Stat_t
	if err := unix.Stat(below, &st); err != nil {
		return err
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&0o7777)
}

// resume takes a working tree up as its record says, if nobody else has written since.
// After it the volume is open, or nothing is left of it but what was put aside, which is
// an error.
func (m *Manager) resume(v *volume, rec record) error {
	v.record = rec
	m.dropCapture(v) // of an earlier process
	if rec.Lost != "" {
		return m.lose(v, lostError(rec.Lost))
	}
	head, err := m.outcome(v.id, rec)
	if errdefs.Is(err, errdefs.NotFound) || errdefs.Is(err, errdefs.Conflict) {
		return m.lose(v, err)
	}
	if err != nil {
		return err
	}
	if v.base, err = m.layers.take(rec.Base.Layers); err != nil {
		return err
	}
	if err := m.mount(v); err != nil {
		m.layers.give(v.base)
		v.base = stack{}
		return err
	}
	committed := rec.Seq // as of which there is a look
	if rec.Intent != nil && head.ID == rec.Intent.ID {
		committed = head.Seq
	}
	rec.Seq, rec.Intent = head.Seq, nil
	v.started(rec, head)
	v.mu.Lock()
	v.dirty, v.idle = true, time.Now()
	v.mu.Unlock()
	if seen, err := m.readSeen(v.id); err == nil && seen.Seq == committed {
		v.seen = seen.Tree
		err = m.recount(v)
		if err == nil && committed != head.Seq {
			err = m.writeSeen(v)
		}
		return errors.Join(err, m.writeRecord(v, rec))
	}
	// What was committed of the upper layer is not known: all of it is, on what it lies on.
	v.under, v.whole = rec.Base.Layers, true
	return m.writeRecord(v, rec)
}

// outcome finds the version that a working tree goes on from, or says that it is another's
// by now. An intent that was not carried out never is: its number is taken.
func (m *Manager) outcome(id string, rec record) (head store.Version, err error) {
	if head, err = m.cfg.Store.Head(id); err != nil {
		return head, err
	}
	if rec.Intent != nil && head.Seq == rec.Seq {
		void := head
		void.ID = rec.Intent.ID + voidSuffix
		if _, err = m.cfg.Store.Advance(id, head.Seq, void); err != nil && !errdefs.Is(err, errdefs.Conflict) {
			return head, err
		}
		if head, err = m.cfg.Store.Head(id); err != nil {
			return head, err
		}
	}
	ours := rec.Intent != nil && head.Seq == rec.Seq+1 && (head.ID == rec.Intent.ID || head.ID == rec.Intent.ID+voidSuffix)
	if head.Seq == rec.Seq || ours {
		return head, nil
	}
	return head, errdefs.WithCode(errdefs.Conflict, store.CodeFenced, "volume %s was written to elsewhere, at epoch %d", id, head.Epoch)
}

// recount counts anew what the upper layer hides.
func (m *Manager) recount(v *volume) error {
	all := make([]tree.Change, 0, len(v.seen))
	for p, e := range v.seen {
		all = append(all, tree.Change{Path: p, Entry: e})
	}
	return m.count(v, all)
}

// wait waits, unless ctx ends first.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting: %w", ctx.Err())
	}
}
