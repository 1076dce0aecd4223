package work

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/store"
)

// Snapshot keeps what a volume is, or was when it was captured.
func (m *Manager) Snapshot(ctx context.Context, spec Volume, snapshot, captured string) (kept store.Version, err error) {
	if kept, err := m.cfg.Store.Snapshot(spec.ID, snapshot); err == nil || !errdefs.Is(err, errdefs.NotFound) {
		return kept, err // it is repeated
	}
	head, err := m.moment(ctx, spec, captured)
	if err != nil {
		return store.Version{}, err
	}
	if kept, err = m.cfg.Store.Keep(spec.ID, snapshot, head); err != nil {
		return store.Version{}, err
	}
	return kept, m.cfg.Sync()
}

// Fork makes a volume of what another is, or was when it was captured.
func (m *Manager) Fork(ctx context.Context, source, spec Volume, captured string) (store.Version, error) {
	head, err := m.moment(ctx, source, captured)
	if err != nil {
		return store.Version{}, err
	}
	return m.Create(ctx, spec, &head)
}

// moment is momentOf for who does not have the turn.
func (m *Manager) moment(ctx context.Context, spec Volume, captured string) (store.Version, error) {
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return store.Version{}, err
	}
	defer done()
	return m.momentOf(ctx, v, spec.Epoch, captured)
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
	head, err := m.cfg.Store.Head(spec.ID)
	if err != nil {
		return store.Version{}, err
	}
	if latest := max(head.Epoch, m.latest(v)); latest > spec.Epoch {
		return store.Version{}, stale(spec, latest)
	}
	kept.ID, kept.Epoch = rand.Text(), spec.Epoch
	if head, err = m.cfg.Store.Advance(spec.ID, head.Seq, kept); err == nil {
		err = m.cfg.Sync()
	}
	if err != nil {
		return store.Version{}, errors.Join(err, m.shut(v))
	}
	return head, m.discard(v)
}

// shut closes a volume whose version may be another by now: who wants it next takes its tree
// up, and finds out.
func (m *Manager) shut(v *volume) error {
	m.layers.land(v.pending...)
	v.pending = nil
	return m.unmount(v)
}

// latest is the latest epoch that this node alone may know of, also where its tree is not
// taken up. A record that can't be read knows of none.
func (m *Manager) latest(v *volume) uint64 {
	if v.open {
		return v.epoch()
	}
	rec, err := m.readRecord(v.id)
	if err != nil {
		return 0
	}
	return rec.Spec.Epoch
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

// otherWriter tells whether somebody else than use writes: the channel is closed when a use
// has ended, and nil where nobody does.
func (v *volume) otherWriter(use string) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	for other, writes := range v.uses {
		if !writes || other == use {
			continue
		}
		if v.left == nil {
			v.left = make(chan struct{})
		}
		return v.left
	}
	return nil
}

// Release commits and unmounts: another node may have the volume. That what is here is
// lost is told once: it was put aside, and nothing is here any more.
func (m *Manager) Release(ctx context.Context, id string, epoch uint64) error {
	v, done, err := m.take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if v.writers() {
		return errdefs.New(errdefs.Conflict, "volume %s is mounted", id)
	}
	v.takeBack() // what was answered by then is committed
	clean, err := m.commitHere(ctx, v, epoch)
	switch {
	case err != nil && v.lost != nil && !m.hasTree(id):
		return errors.Join(err, m.found(v))
	case err != nil:
		return err
	case v.open && !clean:
		return errdefs.New(errdefs.Unavailable, "volume %s is being written to", id)
	}
	if v.open {
		err = m.letGo(v)
	} else {
		err = m.clear(v)
	}
	if err == nil {
		v.released = max(v.released, epoch)
	}
	return err
}

// Remove removes a volume for good, whoever has it mounted, and what was put aside of it.
func (m *Manager) Remove(ctx context.Context, spec Volume) error {
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return err
	}
	defer done()
	head, err := m.cfg.Store.Head(spec.ID)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	if err == nil && head.Team != spec.Team {
		return nil // nobody's of whom we are told
	}
	if latest := max(head.Epoch, m.latest(v)); err == nil && latest > spec.Epoch {
		return stale(spec, latest)
	}
	if err := m.cfg.Store.Remove(spec.ID); err != nil {
		return err
	}
	if err := m.cfg.Sync(); err != nil {
		return err
	}
	for use := range v.users() {
		if err := m.endUse(v, use); err != nil {
			return err
		}
	}
	if err := m.discard(v); err != nil {
		return err
	}
	v.lost = nil
	return m.forgetAside(v.id)
}
