package work

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/tree"
)

// commit makes what was written a version. Rounds of looking and copying go on until one
// finds that nothing was written since the one before, or there were enough. The caller
// has the turn.
func (m *Manager) commit(ctx context.Context, v *volume) (clean bool, err error) {
	return m.commitIn(ctx, v, maxRounds)
}

func (m *Manager) commitIn(ctx context.Context, v *volume, rounds int) (clean bool, err error) {
	if v.lost != nil {
		return false, v.lost
	}
	if err := m.settle(v); err != nil {
		return false, err
	}
	if err := m.land(ctx, v); err != nil {
		return false, err
	}
	for round := 0; round < rounds && !clean; round++ {
		if err := wait(ctx, tree.Racy); err != nil { // what was written just now can be told from what will be
			return false, err
		}
		if clean, err = m.round(ctx, v); err != nil {
			return false, err
		}
	}
	if len(v.pending) > 0 {
		if err := m.advance(v, v.next()); err != nil {
			return false, err
		}
	}
	if len(v.head.Layers) >= 2*mergeFrom { // more would not fit into a mount
		if err := m.mergeSome(ctx, v); err != nil {
			return false, err
		}
	}
	v.mu.Lock()
	v.dirty = !clean || len(v.refused) > 0
	v.mu.Unlock()
	return clean, nil
}

// round makes a layer of what was written since the last one; done says that it was
// nothing.
func (m *Manager) round(ctx context.Context, v *volume) (done bool, err error) {
	root, err := os.Open(m.upperDir(v.id))
	if err != nil {
		return false, err
	}
	defer root.Close()
	begin := time.Now()
	now, err := tree.Scan(ctx, root, maxEntries)
	v.looked, v.took = time.Now(), time.Since(begin)
	if err != nil {
		return false, err
	}
	changes := tree.Diff(v.seen, now)
	if !matters(v.seen, changes) {
		v.seen = now
		return true, nil
	}
	v.mu.Lock()
	v.dirty = true
	v.mu.Unlock()
	layer, refused, err := m.makeLayer(ctx, v, root, changes, now)
	if err != nil {
		return false, err
	}
	v.pending = append([]store.Layer{layer}, v.pending...)
	v.seen = now
	v.refuse(changes, refused)
	return false, m.count(v, changes)
}

// refuse remembers which files are in no version as they are now.
func (v *volume) refuse(changes []tree.Change, refused map[string]error) {
	for _, c := range changes {
		delete(v.refused, c.Path)
	}
	for path := range v.refused { // it went with its directory
		if _, ok := v.seen[path]; !ok {
			delete(v.refused, path)
		}
	}
	maps.Copy(v.refused, refused)
}

// matters tells whether changes are more than a root that was looked at.
func matters(old tree.Tree, changes []tree.Change) bool {
	if len(changes) > 1 {
		return true
	}
	was, is := old["."], changes[0].Entry
	return was.Mode != is.Mode || was.UID != is.UID || was.GID != is.GID
}

// makeLayer writes a layer to the durable tier. What it missed, the next round looks at;
// what it refused is looked at when it has changed.
func (m *Manager) makeLayer(ctx context.Context, v *volume, root *os.File, changes []tree.Change, now tree.Tree) (store.Layer, map[string]error, error) {
	var skipped layers.Skipped
	layer, err := m.newLayer(func(f *os.File) (info layers.Info, err error) {
		info, skipped, err = layers.Build(ctx, f, root, changes)
		return info, err
	})
	if err != nil {
		return store.Layer{}, nil, fmt.Errorf("committing volume %s: %w", v.id, err)
	}
	for _, path := range skipped.Missed {
		now[path] = unseen(now[path])
	}
	for path, why := range skipped.Refused {
		m.cfg.Log.Error("a file of a volume can't be kept: it is on this node alone", "volume", v.id, "path", path, "error", why)
	}
	return layer, skipped.Refused, nil
}

// newLayer makes a layer of the durable tier, which is held until it lands, or leaves
// nothing.
func (m *Manager) newLayer(write func(*os.File) (layers.Info, error)) (layer store.Layer, err error) {
	layer.ID = store.NewLayerID()
	m.layers.fly(layer.ID)
	defer func() {
		if err != nil {
			m.layers.land(layer)
		}
	}()
	f, err := m.cfg.Store.NewLayer(layer.ID)
	if err != nil {
		return layer, err
	}
	info, err := write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = m.cfg.Store.RemoveLayer(layer.ID) // or a collection does
		return layer, err
	}
	layer.Size, layer.Bytes, layer.Files = info.Size, info.Bytes, info.Files
	return layer, failpoint.Hit("volume.after-layer")
}

// next is the version that has what was made of the volume and is in none yet.
func (v *volume) next() store.Version {
	next := v.head
	next.Epoch = v.epoch()
	if len(v.pending) > 0 {
		next.Layers = slices.Concat(v.pending, v.under)
		next.Bytes, next.Files = v.size()
	}
	return next
}

// advance makes next the volume's version. It is in the record first, so that whatever
// becomes of the attempt, or of us, its outcome can be found.
func (m *Manager) advance(v *volume, next store.Version) error {
	if err := m.intend(v, v.record.Spec, next); err != nil {
		return err
	}
	return m.settle(v)
}

// intend comes when no earlier intent is left. With it what the volume is to be is known.
func (m *Manager) intend(v *volume, spec Volume, next store.Version) error {
	if v.record.Intent != nil {
		return fmt.Errorf("volume %s: version %d is not settled", v.id, v.record.Intent.Seq)
	}
	next.ID, next.Seq = rand.Text(), v.head.Seq+1
	rec := v.record
	rec.Spec, rec.Intent = spec, &next
	return m.writeRecord(v, rec)
}

// settle carries an intent out, once or again, until its outcome is known and durable.
// Nothing else is committed before.
func (m *Manager) settle(v *volume) error {
	intent := v.record.Intent
	if intent == nil {
		return nil
	}
	if err := m.try(v, intent); err != nil {
		return err
	}
	// The record must not be ahead of the store when the power fails.
	if err := m.cfg.Sync(); err != nil {
		return fmt.Errorf("committing volume %s: %w", v.id, err)
	}
	rec := v.record
	rec.Seq, rec.Spec.Epoch, rec.Intent = intent.Seq, intent.Epoch, nil
	// What fails from here on costs the next start a commit of everything, no data.
	return errors.Join(m.writeRecord(v, rec), m.writeSeen(v))
}

// try carries an intent out, which may have been already.
func (m *Manager) try(v *volume, intent *store.Version) error {
	if !slices.Equal(intent.Layers, v.head.Layers) { // what it names is durable first
		if err := m.cfg.Sync(); err != nil {
			return fmt.Errorf("committing volume %s: %w", v.id, err)
		}
	}
	if err := failpoint.Hit("volume.after-intent"); err != nil {
		return err
	}
	if err := m.cfg.Store.Touch(v.pending); errors.Is(err, fs.ErrNotExist) {
		return m.remake(v)
	} else if err != nil {
		return err
	}
	head, err := m.cfg.Store.Advance(v.id, intent.Seq-1, *intent)
	if errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotFound) {
		return m.lose(v, err)
	}
	if err != nil {
		return err
	}
	if len(v.pending) > 0 || !v.whole {
		v.under, v.whole = head.Layers, false
	}
	m.layers.land(v.pending...)
	v.head, v.pending = head, nil
	return failpoint.Hit("volume.after-version")
}

// remake has the whole upper layer made anew, where a layer of it is gone: it waited for
// its version longer than anything does.
func (m *Manager) remake(v *volume) error {
	head, err := m.outcome(v.id, v.record)
	if errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotFound) {
		return m.lose(v, err)
	}
	if err != nil {
		return err
	}
	m.layers.land(v.pending...)
	m.dropCapture(v) // it knows what was committed, which nobody does any more
	v.head, v.pending, v.under, v.whole = head, nil, v.record.Base.Layers, true
	v.seen, v.hidden, v.refused = tree.Tree{}, map[string]hiddenSize{}, map[string]error{}
	rec := v.record
	rec.Seq, rec.Intent = head.Seq, nil
	if err := errors.Join(m.writeSeen(v), m.writeRecord(v, rec)); err != nil {
		return err
	}
	return errdefs.New(errdefs.Unavailable, "volume %s has to be committed anew", v.id)
}
