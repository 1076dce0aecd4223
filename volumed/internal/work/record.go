package work

import (
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/tree"
)

// record is what is durable of a working tree. With it an upper layer means something.
type record struct {
	Spec Volume        `json:"spec"` // its epoch may be a later one: see saveEpoch
	Base store.Version `json:"base"` // on which the upper layer lies
	Seq  uint64        `json:"seq"`  // the version that was committed last
	// Intent is the version that may have been written after that: it is here before it
	// is tried, so that what is found at its number is known as ours, or as another's.
	Intent *store.Version `json:"intent,omitempty"`
	Lost   string         `json:"lost,omitempty"` // why nothing of the tree is committed any more
}

// seenFile is what a look saw, with the version that it was committed as.
type seenFile struct {
	Seq  uint64
	Tree tree.Tree
}

func (m *Manager) recordFile(id string) string { return filepath.Join(m.dir(id), "record.json") }

// hasTree tells whether this node has something of a volume that may not be committed.
func (m *Manager) hasTree(id string) bool {
	_, err := os.Lstat(m.recordFile(id))
	return !errors.Is(err, fs.ErrNotExist)
}

func (m *Manager) readRecord(id string) (rec record, err error) {
	b, err := os.ReadFile(m.recordFile(id))
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil || rec.Spec.ID != id {
		return rec, fmt.Errorf("record of volume %s: %w", id, errors.Join(err, errors.New("it is damaged")))
	}
	saved, err := m.readEpoch(id)
	rec.Spec.Epoch = max(rec.Spec.Epoch, saved)
	return rec, err
}

// writeRecord makes rec the volume's.
func (m *Manager) writeRecord(v *volume, rec record) error {
	err := m.saveRecord(rec)
	if err == nil {
		v.record = rec
	}
	return err
}

// saveRecord is writeRecord beside who has the turn and waits.
func (m *Manager) saveRecord(rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return writeDurably(m.recordFile(rec.Spec.ID), func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

func (m *Manager) seenFile(id string) string { return filepath.Join(m.dir(id), "seen") }

// writeSeen makes the last look durable, as of the version that is committed. What was not
// committed has not been seen.
func (m *Manager) writeSeen(v *volume) error {
	if v.whole || len(v.pending) > 0 {
		if err := os.Remove(m.seenFile(v.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	seen := v.seen
	if len(v.refused) > 0 {
		seen = maps.Clone(seen)
		for path := range v.refused {
			seen[path] = unseen(seen[path])
		}
	}
	return writeDurably(m.seenFile(v.id), func(f *os.File) error {
		return gob.NewEncoder(f).Encode(seenFile{Seq: v.head.Seq, Tree: seen})
	})
}

// unseen is an entry that has to be looked at again.
func unseen(e tree.Entry) tree.Entry {
	e.Ctime = 0
	return e
}

func (m *Manager) readSeen(id string) (s seenFile, err error) {
	f, err := os.Open(m.seenFile(id))
	if err != nil {
		return s, err
	}
	defer f.Close()
	return s, gob.NewDecoder(f).Decode(&s)
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
