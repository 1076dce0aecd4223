package work

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
)

// Snapshot commits, then keeps the version.
func (m *Manager) Snapshot(ctx context.Context, id, snapshot string) (store.Version, error) {
	if kept, err := m.cfg.Store.Snapshot(id, snapshot); err == nil || !errdefs.Is(err, errdefs.NotFound) {
		return kept, err // it is repeated
	}
	head, _, err := m.Commit(ctx, id)
	if err != nil {
		return store.Version{}, err
	}
	kept, err := m.cfg.Store.Keep(id, snapshot, head)
	if err != nil {
		return store.Version{}, err
	}
	return kept, m.cfg.Sync()
}

// Fork commits, then makes a volume of the version.
func (m *Manager) Fork(ctx context.Context, source string, spec Volume) (store.Version, error) {
	head, _, err := m.Commit(ctx, source)
	if err != nil {
		return store.Version{}, err
	}
	return m.Create(ctx, spec, &head)
}

// Restore makes a snapshot the volume's next version. Nobody may have it mounted for
// writing; what was written and not committed is given up, which the caller wants.
func (m *Manager) Restore(ctx context.Context, spec Volume, snapshot string) (store.Version, error) {
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return store.Version{}, err
	}
	defer done()
	kept, err := m.cfg.Store.Snapshot(spec.ID, snapshot)
	if err != nil {
		return store.Version{}, err
	}
	if kept.Team != spec.Team {
		return store.Version{}, errdefs.New(errdefs.NotFound, "volume %s not found", spec.ID)
	}
	if v.writers() {
		return store.Version{}, errdefs.New(errdefs.Conflict, "volume %s is mounted", spec.ID)
	}
	head, err := m.cfg.Store.Begin(spec.ID, spec.Epoch)
	if err != nil {
		return store.Version{}, err
	}
	kept.Epoch = spec.Epoch
	head, err = m.cfg.Store.Advance(spec.ID, head.Seq, kept)
	if err != nil {
		return store.Version{}, err
	}
	if err := m.cfg.Sync(); err != nil {
		return store.Version{}, err
	}
	return head, m.close(v)
}

func (v *volume) users() map[string]bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.uses)
}

func (v *volume) writers() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, writes := range v.uses {
		if writes {
			return true
		}
	}
	return false
}

// Release commits and unmounts: another node may have the volume.
func (m *Manager) Release(ctx context.Context, id string) error {
	v, done, err := m.take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if v.writers() {
		return errdefs.New(errdefs.Conflict, "volume %s is mounted", id)
	}
	if !v.open {
		return nil
	}
	if v.lost == nil {
		clean, err := m.commit(ctx, v)
		if err != nil {
			return err
		}
		if !clean {
			return errdefs.New(errdefs.Unavailable, "volume %s is being written to", id)
		}
	}
	return m.close(v)
}

// Remove removes a volume for good, whoever has it mounted.
func (m *Manager) Remove(ctx context.Context, spec Volume) error {
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return err
	}
	defer done()
	head, err := m.cfg.Store.Head(spec.ID)
	if err == nil && head.Team != spec.Team {
		return nil // nobody's of whom we are told
	}
	if err == nil && head.Epoch > spec.Epoch {
		return errdefs.WithCode(errdefs.Conflict, store.CodeFenced, "volume %s is at epoch %d, not %d", spec.ID, head.Epoch, spec.Epoch)
	}
	if err := m.cfg.Store.Remove(spec.ID); err != nil {
		return err
	}
	if err := m.cfg.Sync(); err != nil {
		return err
	}
	for seq, r := range v.readers {
		for use := range r.uses {
			if err := m.endUse(v, use, seq); err != nil {
				return err
			}
		}
		m.closeReader(v, seq)
	}
	for use := range v.users() {
		if err := m.endUse(v, use, 0); err != nil {
			return err
		}
	}
	return m.close(v)
}

// read mounts what is committed, without any way to write it. The caller has the turn.
func (m *Manager) read(v *volume, spec Volume, use string) (string, error) {
	for _, r := range v.readers {
		if r.uses[use] {
			return r.path, nil // it is repeated
		}
	}
	head, err := m.cfg.Store.Head(spec.ID)
	if err == nil && head.Team != spec.Team {
		err = errdefs.New(errdefs.NotFound, "volume %s not found", spec.ID)
	}
	if err != nil {
		return "", err
	}
	r := v.readers[head.Seq]
	if r == nil {
		if r, err = m.openReader(v, head); err != nil {
			return "", err
		}
		v.readers[head.Seq] = r
	}
	r.uses[use] = true
	return r.path, m.addUse(v, use, head.Seq)
}

func (m *Manager) holder(seq uint64) string { return fmt.Sprintf("%s-%d", m.cfg.Node, seq) }

func (m *Manager) openReader(v *volume, head store.Version) (*reader, error) {
	if err := m.cfg.Store.Hold(v.id, m.holder(head.Seq), head); err != nil {
		return nil, err
	}
	if err := m.layers.take(head.Layers); err != nil {
		return nil, err
	}
	at := filepath.Join(m.cfg.RunDir, "r", fmt.Sprintf("%s.%d", v.id, head.Seq))
	err := os.Mkdir(at, 0o700)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	there := false
	if err == nil {
		there, err = isMount(at)
	}
	if err == nil && !there {
		err = m.overlay(at, head.Layers, "", "")
	}
	if err != nil {
		m.layers.give(head.Layers)
		return nil, err
	}
	return &reader{path: at, uses: map[string]bool{}, base: head.Layers}, nil
}

func (m *Manager) leaveReader(v *volume, use string) error {
	for seq, r := range v.readers {
		if !r.uses[use] {
			continue
		}
		if err := m.endUse(v, use, seq); err != nil {
			return err
		}
		delete(r.uses, use)
		if len(r.uses) == 0 {
			m.closeReader(v, seq)
		}
	}
	return nil
}

func (m *Manager) closeReader(v *volume, seq uint64) {
	r := v.readers[seq]
	if err := layers.Unmount(r.path, true); err != nil {
		m.cfg.Log.Warn("unmounting a reader", "volume", v.id, "error", err)
	}
	_ = os.Remove(r.path)
	m.layers.give(r.base)
	_ = m.cfg.Store.Unhold(v.id, m.holder(seq))
	delete(v.readers, seq)
}
