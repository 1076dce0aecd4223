package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"s0.run/internal/errdefs"
)

// Keep keeps a version under a name. A snapshot of that name stays what it is.
func (s *Store) Keep(id, snapshot string, v Version) (Version, error) {
	if err := errors.Join(CheckID("volume", id), CheckID("snapshot", snapshot)); err != nil {
		return Version{}, err
	}
	if err := s.publish(id, s.snapshot(id, snapshot), v); err != nil && !errors.Is(err, fs.ErrExist) {
		return Version{}, err
	}
	return s.Snapshot(id, snapshot)
}

// Snapshot is a version that was kept.
func (s *Store) Snapshot(id, snapshot string) (Version, error) {
	if err := errors.Join(CheckID("volume", id), CheckID("snapshot", snapshot)); err != nil {
		return Version{}, err
	}
	v, err := s.read(s.snapshot(id, snapshot))
	if errors.Is(err, fs.ErrNotExist) {
		return Version{}, errdefs.New(errdefs.NotFound, "snapshot %s of volume %s not found", snapshot, id)
	}
	return v, err
}

// Drop forgets a snapshot; one that is not there is dropped already.
func (s *Store) Drop(id, snapshot string) error {
	if err := errors.Join(CheckID("volume", id), CheckID("snapshot", snapshot)); err != nil {
		return err
	}
	if err := os.Remove(s.snapshot(id, snapshot)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Hold keeps the layers of a version, under a name of whoever has them mounted, until
// Unhold.
func (s *Store) Hold(id, holder string, v Version) error {
	if err := errors.Join(CheckID("volume", id), CheckID("holder", holder)); err != nil {
		return err
	}
	if err := s.Unhold(id, holder); err != nil {
		return err
	}
	if err := os.Mkdir(s.holds(id), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.publish(id, filepath.Join(s.holds(id), holder), v)
}

// Held is what a holder holds.
func (s *Store) Held(id, holder string) (Version, error) {
	if err := errors.Join(CheckID("volume", id), CheckID("holder", holder)); err != nil {
		return Version{}, err
	}
	v, err := s.read(filepath.Join(s.holds(id), holder))
	if errors.Is(err, fs.ErrNotExist) {
		return Version{}, errdefs.New(errdefs.NotFound, "nothing of volume %s is held", id)
	}
	return v, err
}

// Unhold ends a Hold; what is not held is no error.
func (s *Store) Unhold(id, holder string) error {
	if err := os.Remove(filepath.Join(s.holds(id), holder)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Volumes lists the volumes.
func (s *Store) Volumes() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "volumes"))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if ids.MatchString(e.Name()) {
			all = append(all, e.Name())
		}
	}
	return all, nil
}

// Collect removes volumes that were removed, then the layers that no version names and
// that are older than a commit takes. Layers are listed before versions are read: what is
// made meanwhile is not in the list. If anything can't be read, nothing is removed. held
// are layers that are mounted.
func (s *Store) Collect(held func(layer string) bool) (removed int, err error) {
	gone, err := os.ReadDir(filepath.Join(s.dir, "removed"))
	if err != nil {
		return 0, err
	}
	for _, e := range gone {
		if err := os.RemoveAll(filepath.Join(s.dir, "removed", e.Name())); err != nil {
			return 0, err
		}
	}
	layers, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return 0, err
	}
	named, err := s.named()
	if err != nil {
		return 0, err
	}
	for _, e := range layers {
		info, err := e.Info()
		if err != nil || named[e.Name()] || held(e.Name()) || time.Since(info.ModTime()) < layerGrace {
			continue
		}
		if err := os.Remove(s.LayerPath(e.Name())); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// named are the layers that any version names.
func (s *Store) named() (map[string]bool, error) {
	all := map[string]bool{}
	volumes, err := s.Volumes()
	if err != nil {
		return nil, err
	}
	for _, id := range volumes {
		for _, dir := range []string{s.log(id), s.snapshots(id), s.holds(id)} {
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			for _, e := range entries {
				v, err := s.read(filepath.Join(dir, e.Name()))
				if errors.Is(err, fs.ErrNotExist) {
					continue // cut meanwhile
				}
				if err != nil {
					return nil, err
				}
				for _, l := range v.Layers {
					all[l.ID] = true
				}
			}
		}
	}
	return all, nil
}

// readFull reads all that there is, which must fit.
func readFull(f *os.File, b []byte) (int, error) {
	n, err := io.ReadFull(f, b)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return n, nil
	case err == nil:
		return n, errors.New("a version that is too long")
	}
	return n, err
}
