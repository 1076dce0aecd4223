package work

import (
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/tree"
)

// record is what is durable of a working tree. With it an upper layer means something.
type record struct {
	Spec   Volume        `json:"spec"`
	Base   store.Version `json:"base"`   // on which the upper layer lies
	Seq    uint64        `json:"seq"`    // the version that was committed last
	Making string        `json:"making"` // the topmost layer of the commit under way
}

// seenFile is what a look saw, with the version that it was committed as.
type seenFile struct {
	Seq  uint64
	Tree tree.Tree
}

// ensureOpen has the volume mounted for writing at spec's epoch. The caller has the turn.
func (m *Manager) ensureOpen(v *volume, spec Volume) error {
	if v.open {
		return m.enterEpoch(v, spec)
	}
	if rec, err := m.readRecord(spec.ID); err == nil {
		if err := m.resume(v, rec); err != nil {
			return err
		}
		if v.open {
			return m.enterEpoch(v, spec)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return m.begin(v, spec)
}

// enterEpoch goes on at a later epoch with what is mounted.
func (m *Manager) enterEpoch(v *volume, spec Volume) error {
	if v.lost != nil {
		return v.lost
	}
	switch {
	case spec.Team != v.record.Spec.Team:
		return errdefs.New(errdefs.NotFound, "volume %s not found", spec.ID)
	case spec.Epoch < v.head.Epoch:
		return errdefs.WithCode(errdefs.Conflict, store.CodeFenced, "volume %s is at epoch %d, not %d", spec.ID, v.head.Epoch, spec.Epoch)
	case spec.Epoch == v.head.Epoch && spec.Limit == v.record.Spec.Limit:
		return nil
	}
	head, err := m.cfg.Store.Begin(v.id, spec.Epoch)
	if err != nil {
		return err
	}
	if head.Seq != v.head.Seq && head.Seq != v.head.Seq+1 {
		return m.lose(v, errdefs.WithCode(errdefs.Conflict, store.CodeFenced, "volume %s was written to elsewhere", v.id))
	}
	rec := v.record
	rec.Spec, rec.Seq, rec.Making = spec, head.Seq, ""
	if err := m.writeRecord(rec); err != nil {
		return err
	}
	v.record, v.head = rec, head
	return m.writeSeen(v)
}

// begin mounts the volume with a new upper layer.
func (m *Manager) begin(v *volume, spec Volume) (err error) {
	head, err := m.cfg.Store.Head(spec.ID)
	if err != nil {
		return err
	}
	if head.Team != spec.Team {
		return errdefs.New(errdefs.NotFound, "volume %s not found", spec.ID)
	}
	if head, err = m.cfg.Store.Begin(spec.ID, spec.Epoch); err != nil {
		return err
	}
	if err := m.cfg.Store.Hold(spec.ID, m.cfg.Node, head); err != nil {
		return err
	}
	if err := m.layers.take(head.Layers); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			m.layers.give(head.Layers)
		}
	}()
	for _, dir := range []string{m.upperDir(v.id), m.workDir(v.id)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := m.likeRoot(m.upperDir(v.id), head); err != nil {
		return err
	}
	rec := record{Spec: spec, Base: head, Seq: head.Seq}
	if err := m.writeRecord(rec); err != nil {
		return err
	}
	if err := m.mount(v.id, head.Layers); err != nil {
		return err
	}
	v.started(rec, head)
	return m.look(v)
}

func (v *volume) started(rec record, head store.Version) {
	v.record, v.head, v.under, v.pending, v.whole = rec, head, head.Layers, nil, false
	v.seen, v.hidden, v.lost, v.open = tree.Tree{}, map[string]hiddenSize{}, nil, true
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
	if v.seen, err = tree.Scan(root, maxEntries); err != nil {
		return err
	}
	v.looked = time.Now()
	return m.writeSeen(v)
}

// mount mounts the volume's two views: what it is, and what is below the upper layer. Those
// that an earlier process has mounted are good.
func (m *Manager) mount(id string, base []store.Layer) error {
	for _, view := range []struct{ at, upper, work string }{{m.below(id), "", ""}, {m.merged(id), m.upperDir(id), m.workDir(id)}} {
		if err := os.Mkdir(view.at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		there, err := isMount(view.at)
		if err != nil {
			return err
		}
		if there {
			continue
		}
		if err := m.overlay(view.at, base, view.upper, view.work); err != nil {
			return err
		}
	}
	return nil
}

// likeRoot gives a new upper layer the root of what is below it.
func (m *Manager) likeRoot(upper string, head store.Version) error {
	var st unix.Stat_t
	if err := unix.Stat(m.layers.path(head.Layers[0].ID), &st); err != nil {
		return err
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&0o7777)
}

// close unmounts a volume whose upper layer is committed, or not wanted any more, and
// removes that. The caller has the turn.
func (m *Manager) close(v *volume) error {
	for _, at := range []string{m.merged(v.id), m.below(v.id)} {
		if err := layers.Unmount(at, true); err != nil {
			return fmt.Errorf("unmounting volume %s: %w", v.id, err)
		}
	}
	if v.open {
		m.layers.give(v.record.Base.Layers)
	}
	v.open = false
	if err := m.cfg.Store.Unhold(v.id, m.cfg.Node); err != nil {
		m.cfg.Log.Warn("a hold stays", "volume", v.id, "error", err)
	}
	// Without its record an upper layer is nothing, so that goes first.
	if err := os.Remove(m.recordFile(v.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(filepath.Join(m.cfg.DataDir, v.id))
}

func (m *Manager) recordFile(id string) string {
	return filepath.Join(m.cfg.DataDir, id, "record.json")
}

func (m *Manager) readRecord(id string) (rec record, err error) {
	b, err := os.ReadFile(m.recordFile(id))
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil || rec.Spec.ID != id {
		return rec, fmt.Errorf("record of volume %s: %w", id, errors.Join(err, errors.New("it is damaged")))
	}
	return rec, nil
}

func (m *Manager) writeRecord(rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return writeDurably(m.recordFile(rec.Spec.ID), func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

func (m *Manager) seenFile(id string) string { return filepath.Join(m.cfg.DataDir, id, "seen") }

// writeSeen makes the last look durable, as of the version that is committed.
func (m *Manager) writeSeen(v *volume) error {
	if v.whole {
		if err := os.Remove(m.seenFile(v.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return writeDurably(m.seenFile(v.id), func(f *os.File) error {
		return gob.NewEncoder(f).Encode(seenFile{Seq: v.head.Seq, Tree: v.seen})
	})
}

// writeDurably replaces a file, or leaves it.
func writeDurably(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
