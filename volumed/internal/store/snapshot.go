package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"s0.run/internal/errdefs"
)

// Keep keeps a version under a name. A snapshot of that name stays what it is.
func (s *Store) Keep(id, snapshot string, v Version) (kept Version, err error) {
	if err := errors.Join(CheckID("volume", id), CheckID("snapshot", snapshot)); err != nil {
		return Version{}, err
	}
	err = s.in(func(t *tier) error {
		err := t.publish(id, snapshotFile(id, snapshot), v, t.Link)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		kept, err = t.snapshot(id, snapshot)
		return err
	})
	return kept, err
}

// Snapshot is a version that was kept.
func (s *Store) Snapshot(id, snapshot string) (v Version, err error) {
	if err := errors.Join(CheckID("volume", id), CheckID("snapshot", snapshot)); err != nil {
		return Version{}, err
	}
	err = s.in(func(t *tier) error {
		v, err = t.snapshot(id, snapshot)
		return err
	})
	return v, err
}

func (t *tier) snapshot(id, snapshot string) (Version, error) {
	v, err := t.read(snapshotFile(id, snapshot))
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
	return s.remove(snapshotFile(id, snapshot))
}

// remove removes a file; one that is not there is removed already.
func (s *Store) remove(name string) error {
	return s.in(func(t *tier) error {
		if err := t.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// Hold keeps the layers of a version, under a name of whoever has them mounted, until
// Unhold. What the holder held before is held until then.
func (s *Store) Hold(id, holder string, v Version) error {
	if err := errors.Join(CheckID("volume", id), CheckID("holder", holder)); err != nil {
		return err
	}
	return s.in(func(t *tier) error {
		if err := t.Mkdir(holdsDir(id), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return t.publish(id, path.Join(holdsDir(id), holder), v, t.Rename)
	})
}

// Held is what a holder holds.
func (s *Store) Held(id, holder string) (v Version, err error) {
	if err := errors.Join(CheckID("volume", id), CheckID("holder", holder)); err != nil {
		return Version{}, err
	}
	err = s.in(func(t *tier) error {
		v, err = t.read(path.Join(holdsDir(id), holder))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return Version{}, errdefs.New(errdefs.NotFound, "nothing of volume %s is held", id)
	}
	return v, err
}

// Unhold ends a Hold; what is not held is no error.
func (s *Store) Unhold(id, holder string) error {
	return s.remove(path.Join(holdsDir(id), holder))
}

// Volumes lists the volumes.
func (s *Store) Volumes() (all []string, err error) {
	err = s.in(func(t *tier) error {
		all, err = t.volumes()
		return err
	})
	return all, err
}

func (t *tier) volumes() (all []string, err error) {
	names, err := t.names("volumes")
	for _, name := range names {
		if ids.MatchString(name) {
			all = append(all, name)
		}
	}
	return all, err
}

// readFull reads all that there is, which must fit.
func readFull(f *os.File, b []byte) (int, error) {
	n, err := io.ReadFull(f, b)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return n, nil
	case err == nil:
		return n, errors.New("a file that is too long")
	}
	return n, err
}
