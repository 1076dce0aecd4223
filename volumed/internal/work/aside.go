package work

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/room"
	"s0.run/volumed/internal/store"
)

const (
	// asideDir holds what must not be committed any more and is never removed but with
	// its volume: "<volume>.<time>", and "<volume>" with the reason.
	asideDir = ".aside"
	// goneDir holds what is committed, or not wanted any more, and goes.
	goneDir = ".gone"
)

func (m *Manager) aside(name string) string { return filepath.Join(m.cfg.DataDir, asideDir, name) }

// lose takes note that the volume is somebody else's: what is on this node alone is put
// aside, and nothing of it is committed any more, by no later process either. Who still
// writes does so beside the volume, and hears of it when he wants it committed.
func (m *Manager) lose(v *volume, err error) error {
	v.lost = err
	if aerr := m.putAside(v, err); aerr != nil {
		m.cfg.Log.Error("a volume was taken over; what was not committed could not be put aside", "volume", v.id, "error", aerr)
		rec := v.record
		rec.Lost = errdefs.From(err).Message
		return errors.Join(err, m.writeRecord(v, rec))
	}
	return err
}

func lostError(message string) error {
	return errdefs.WithCode(errdefs.Conflict, store.CodeFenced, "%s", message)
}

// lostNote says beside what was put aside that the volume is lost, since when and why.
type lostNote struct {
	Epoch uint64 `json:"epoch"` // of the tree that was put aside
	Why   string `json:"why"`
}

// wasLost answers why what a node had of a volume was put aside, until a later owner comes.
func (m *Manager) wasLost(id string) (note lostNote, err error) {
	b, err := os.ReadFile(m.aside(id))
	if err != nil {
		return note, err
	}
	return note, json.Unmarshal(b, &note)
}

// stillLost is the error of a volume that is lost for callers at an epoch.
func (m *Manager) stillLost(v *volume, epoch uint64) error {
	note, err := m.wasLost(v.id)
	if errors.Is(err, fs.ErrNotExist) {
		v.lost = nil
		return nil
	}
	if err != nil {
		return err
	}
	if epoch > note.Epoch {
		return m.found(v)
	}
	v.lost = lostError(note.Why)
	return v.lost
}

// found ends that a volume is lost. What was put aside stays.
func (m *Manager) found(v *volume) error {
	if err := os.Remove(m.aside(v.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	v.lost = nil
	return nil
}

// putAside keeps a working tree that must not be committed any more, for a person to look
// at, out of everybody's way.
func (m *Manager) putAside(v *volume, why error) error {
	if err := m.unmount(v); err != nil {
		return err
	}
	to := m.aside(fmt.Sprintf("%s.%d", v.id, time.Now().UnixNano()))
	m.cfg.Log.Error("what was not committed of a volume is put aside", "volume", v.id, "epoch", v.record.Spec.Epoch, "error", why, "directory", to)
	err := writeDurably(m.aside(v.id), func(f *os.File) error {
		return json.NewEncoder(f).Encode(lostNote{Epoch: max(v.record.Spec.Epoch, v.head.Epoch), Why: errdefs.From(why).Message})
	})
	if err != nil {
		return err
	}
	if err := os.Rename(m.dir(v.id), to); err != nil {
		return err
	}
	m.forget(v)
	return syncDir(m.cfg.DataDir)
}

// letGo discards a volume that is committed. What its epochs here were is in the store then:
// nothing else refuses those who are late.
func (m *Manager) letGo(v *volume) error {
	if v.head.Epoch < v.epoch() {
		if err := m.advance(v, v.next()); err != nil {
			return err
		}
	}
	return m.discard(v)
}

// discard closes a volume and removes its working tree, which is committed, or not wanted
// any more. The caller has the turn.
func (m *Manager) discard(v *volume) error {
	if err := m.unmount(v); err != nil {
		return err
	}
	err := os.Rename(m.dir(v.id), filepath.Join(m.cfg.DataDir, goneDir, rand.Text()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.forget(v)
	return syncDir(m.cfg.DataDir)
}

// forget ends what a volume that is not mounted any more has had.
func (m *Manager) forget(v *volume) {
	m.layers.land(v.pending...)
	v.moments = nil
	v.record, v.pending, v.seen, v.hidden, v.refused = record{}, nil, nil, nil, nil
	v.head, v.under = store.Version{}, nil
	v.mu.Lock()
	v.dirty = false
	v.mu.Unlock()
	if err := m.cfg.Store.Unhold(v.id, m.cfg.Node); err != nil {
		m.cfg.Log.Warn("a hold stays", "volume", v.id, "error", err)
	}
}

// unmount takes away the volume's views, of every mounting of the store, and its room.
func (m *Manager) unmount(v *volume) error {
	v.takeBack()
	for _, dir := range []string{m.mergedDir(), m.belowDir()} {
		if err := unmountViews(dir, v.id, ""); err != nil {
			return err
		}
	}
	m.dropCapture(v)
	m.layers.give(v.base)
	v.open, v.at, v.base = false, "", stack{}
	return room.Close(m.dir(v.id))
}

// clear makes room for a new working tree. What is there without a record was being begun,
// and is empty; else nobody can tell what it is.
func (m *Manager) clear(v *volume) error {
	if _, err := os.Lstat(m.dir(v.id)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := room.Open(m.dir(v.id)); err != nil {
		return err
	}
	names, err := os.ReadDir(m.upperDir(v.id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(names) > 0 {
		return m.putAside(v, errors.New("a working tree without a record"))
	}
	return m.discard(v)
}

// sweep removes what is gone.
func (m *Manager) sweep() {
	dir := filepath.Join(m.cfg.DataDir, goneDir)
	all, err := os.ReadDir(dir)
	for _, e := range all {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err != nil {
		m.cfg.Log.Warn("removing what is committed will be tried again", "error", err)
	}
}

// forgetAside removes what was put aside of a volume that is removed for good.
func (m *Manager) forgetAside(id string) error {
	all, err := filepath.Glob(m.aside(id) + ".*")
	if err != nil {
		return err
	}
	for _, dir := range append(all, m.aside(id)) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
