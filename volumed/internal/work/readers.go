package work

import (
	"fmt"
	"os"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
)

// reader is a read-only view of one version, on one mounting of the store.
type reader struct {
	path string
	seq  uint64
	uses map[string]bool
	base stack
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
	r, err := m.readerOf(v, head.Seq, func() (store.Version, error) { return head, m.cfg.Store.Hold(v.id, m.holder(head.Seq), head) })
	if err != nil {
		return "", err
	}
	r.uses[use] = true
	return r.path, m.addUse(v, use, head.Seq)
}

func (m *Manager) holder(seq uint64) string { return fmt.Sprintf("%s-%d", m.cfg.Node, seq) }

func (m *Manager) readerPath(id string, seq uint64, mounting string) string {
	return view(m.readersDir(), mounting, fmt.Sprint(id, ".", seq))
}

// readerOf finds or mounts a version that hold holds.
func (m *Manager) readerOf(v *volume, seq uint64, hold func() (store.Version, error)) (*reader, error) {
	mounting, err := m.cfg.Store.Mounted()
	if err != nil {
		return nil, err
	}
	if r := v.readers[m.readerPath(v.id, seq, mounting)]; r != nil {
		return r, nil
	}
	held, err := hold()
	if err != nil {
		return nil, err
	}
	base, err := m.layers.take(held.Layers)
	if err != nil {
		return nil, err
	}
	r := &reader{path: m.readerPath(v.id, seq, base.store), seq: seq, uses: map[string]bool{}, base: base}
	if err := m.mountAt(r.path, base, "", ""); err != nil {
		m.layers.give(base)
		return nil, err
	}
	v.readers[r.path] = r
	return r, nil
}

func (m *Manager) recoverReader(v *volume, use string, seq uint64) error {
	r, err := m.readerOf(v, seq, func() (store.Version, error) { return m.cfg.Store.Held(v.id, m.holder(seq)) })
	if errdefs.Is(err, errdefs.NotFound) {
		return nil // it was removed
	}
	if err != nil {
		return err
	}
	r.uses[use] = true
	return nil
}

// leaveReader ends a use of a view, and unmounts what nobody reads.
func (m *Manager) leaveReader(v *volume, r *reader, use string) {
	delete(r.uses, use)
	if len(r.uses) > 0 {
		return
	}
	delete(v.readers, r.path)
	if err := layers.Unmount(r.path, true); err != nil {
		m.cfg.Log.Warn("unmounting a reader", "volume", v.id, "error", err)
	}
	_ = os.Remove(r.path)
	m.layers.give(r.base)
}

// endVersion takes away what is left of a version that nobody reads: also what an earlier
// process has mounted, on an earlier mounting of the store.
func (m *Manager) endVersion(v *volume, seq uint64) {
	if err := unmountViews(m.readersDir(), fmt.Sprint(v.id, ".", seq), ""); err != nil {
		m.cfg.Log.Warn("unmounting a reader", "volume", v.id, "error", err)
	}
	_ = m.cfg.Store.Unhold(v.id, m.holder(seq)) // or its layers stay
}
