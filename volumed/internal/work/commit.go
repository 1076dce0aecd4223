package work

import (
	"context"
	"errors"
	"fmt"
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
	for round := 0; round < rounds && !clean; round++ {
		if err := wait(ctx, tree.Racy); err != nil { // what was written just now can be told from what will be
			return false, err
		}
		if clean, err = m.round(v); err != nil {
			return false, err
		}
	}
	if len(v.pending) > 0 {
		if err := m.publish(v); err != nil {
			return false, err
		}
	}
	if len(v.head.Layers) >= 2*mergeFrom { // more would not fit into a mount
		if err := m.mergeSome(v); err != nil {
			return false, err
		}
	}
	v.mu.Lock()
	v.dirty = !clean
	v.mu.Unlock()
	return clean, nil
}

// round makes a layer of what was written since the last one; done says that it was
// nothing.
func (m *Manager) round(v *volume) (done bool, err error) {
	root, err := os.Open(m.upperDir(v.id))
	if err != nil {
		return false, err
	}
	defer root.Close()
	begin := time.Now()
	now, err := tree.Scan(root, maxEntries)
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
	layer, err := m.makeLayer(v, root, changes, now)
	if err != nil {
		return false, err
	}
	v.pending = append([]store.Layer{layer}, v.pending...)
	v.seen = now
	return false, m.count(v, changes)
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// matters tells whether changes are more than a root that was looked at.
func matters(old tree.Tree, changes []tree.Change) bool {
	if len(changes) > 1 {
		return true
	}
	was, is := old["."], changes[0].Entry
	return was.Mode != is.Mode || was.UID != is.UID || was.GID != is.GID
}

// makeLayer writes a layer to the durable tier. What it missed, the next round looks at.
func (m *Manager) makeLayer(v *volume, root *os.File, changes []tree.Change, now tree.Tree) (store.Layer, error) {
	var missed []string
	layer, err := m.newLayer(func(f *os.File) (info layers.Info, err error) {
		info, missed, err = layers.Build(f, root, changes)
		return info, err
	})
	if err != nil {
		return store.Layer{}, fmt.Errorf("committing volume %s: %w", v.id, err)
	}
	for _, path := range missed {
		e := now[path]
		e.Ctime = 0
		now[path] = e
	}
	return layer, nil
}

// newLayer makes a layer of the durable tier, or leaves nothing.
func (m *Manager) newLayer(write func(*os.File) (layers.Info, error)) (store.Layer, error) {
	id := store.NewLayerID()
	path := m.cfg.Store.LayerPath(id)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return store.Layer{}, err
	}
	info, err := write(f)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path) // or a collection does
		return store.Layer{}, err
	}
	return store.Layer{ID: id, Size: info.Size, Bytes: info.Bytes, Files: info.Files}, failpoint.Hit("volume.after-layer")
}

// publish makes the pending layers a version. Its topmost layer is in the record first:
// should we die before the answer, it tells that the version is ours.
func (m *Manager) publish(v *volume) error {
	next := v.head
	next.Layers = slices.Concat(v.pending, v.under)
	next.Bytes, next.Files = v.size()
	rec := v.record
	rec.Making = v.pending[0].ID
	if err := m.writeRecord(rec); err != nil {
		return err
	}
	if err := m.cfg.Sync(); err != nil {
		return fmt.Errorf("committing volume %s: %w", v.id, err)
	}
	if err := failpoint.Hit("volume.after-making"); err != nil {
		return err
	}
	head, err := m.advance(v, next)
	if err != nil {
		return err
	}
	v.pending = nil
	rec.Seq, rec.Making = head.Seq, ""
	v.record = rec
	if err := failpoint.Hit("volume.after-version"); err != nil {
		return err
	}
	// What fails from here on costs the next start a commit of everything, no data.
	return errors.Join(m.writeRecord(rec), m.writeSeen(v), m.cfg.Sync())
}

// advance moves the volume's head.
func (m *Manager) advance(v *volume, next store.Version) (store.Version, error) {
	head, err := m.cfg.Store.Advance(v.id, v.head.Seq, next)
	if errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotFound) {
		return store.Version{}, m.lose(v, err)
	}
	if err != nil {
		return store.Version{}, err
	}
	v.head, v.under, v.whole = head, head.Layers, false
	return head, nil
}

// lose takes note that the volume is somebody else's: what is on this node alone stays
// here, and nothing of it is committed any more.
func (m *Manager) lose(v *volume, err error) error {
	m.cfg.Log.Error("a volume was taken over; what was not committed stays on this node", "volume", v.id, "error", err)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lost = err
	return err
}

// keepCommitting commits what was written, until ctx ends.
func (m *Manager) keepCommitting(ctx context.Context) {
	tick := time.NewTicker(commitInterval / 5)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, v := range m.all() {
			m.attend(ctx, v)
		}
	}
}

// attend does what is due for one volume, unless somebody has its turn.
func (m *Manager) attend(ctx context.Context, v *volume) {
	select {
	case v.turn <- struct{}{}:
	default:
		return
	}
	defer func() { <-v.turn }()
	if !v.open || v.lost != nil || time.Since(v.looked) < max(commitInterval, lookShare*v.took) {
		return
	}
	if _, err := m.commitIn(ctx, v, 2); err != nil { // the next time is soon
		v.looked = time.Now()
		m.cfg.Log.Warn("committing a volume will be tried again", "volume", v.id, "error", err)
		return
	}
	if err := m.mergeSome(v); err != nil {
		m.cfg.Log.Warn("merging layers will be tried again", "volume", v.id, "error", err)
	}
	v.mu.Lock()
	idle := len(v.uses) == 0 && time.Since(v.idle) > idleTime
	v.mu.Unlock()
	if idle {
		if err := m.close(v); err != nil {
			m.cfg.Log.Warn("closing an idle volume", "volume", v.id, "error", err)
		}
	}
}
