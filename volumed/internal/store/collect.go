package store

import (
	"errors"
	"io/fs"
	"path"
	"time"
)

const (
	// layerGrace is how long a layer may be nobody's yet: a commit is under way.
	layerGrace = 6 * time.Hour
	// betweenLooks is how far two looks are apart that both must find a layer to be
	// nobody's: what a call had read, and not written elsewhere yet, it has by then.
	betweenLooks = time.Hour
)

// Collect removes volumes that were removed, and layers that are nobody's: older than any
// commit takes, and named by no version, neither now nor at every look since one that was
// made betweenLooks ago by this process. Layers are listed before versions are read: what
// is made meanwhile is not in the list. If anything can't be read, nothing is removed.
// held are layers that this node has mounted or is about to name.
func (s *Store) Collect(held func(layer string) bool) (removed int, err error) {
	return s.collect(held, time.Now())
}

func (s *Store) collect(held func(layer string) bool, now time.Time) (removed int, err error) {
	err = s.in(func(t *tier) error {
		nobodys, err := t.look(held, now)
		if err != nil {
			return err
		}
		for _, id := range s.twice(nobodys, now) {
			// It is looked at again: whoever is about to name an old layer touches it first.
			if info, err := t.Lstat(layerFile(id)); err != nil || held(id) || now.Sub(info.ModTime()) < layerGrace {
				continue
			}
			if err := t.Remove(layerFile(id)); err != nil {
				return err
			}
			removed++
		}
		return nil
	})
	return removed, err
}

// twice answers those that an earlier look has found, too, and remembers the others.
func (s *Store) twice(nobodys []string, now time.Time) (sure []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	suspect := make(map[string]time.Time, len(nobodys))
	for _, id := range nobodys {
		since, ok := s.suspect[id]
		if !ok {
			since = now
		}
		suspect[id] = since
		if now.Sub(since) >= betweenLooks {
			sure = append(sure, id)
		}
	}
	s.suspect = suspect
	return sure
}

// look finds the layers that are old and nobody's.
func (t *tier) look(held func(layer string) bool, now time.Time) (nobodys []string, err error) {
	gone, err := t.names("removed")
	if err != nil {
		return nil, err
	}
	for _, name := range gone {
		if err := t.RemoveAll(path.Join("removed", name)); err != nil {
			return nil, err
		}
	}
	layers, err := t.names("layers")
	if err != nil {
		return nil, err
	}
	named, err := t.named()
	if err != nil {
		return nil, err
	}
	for _, id := range layers {
		if named[id] || held(id) {
			continue
		}
		info, err := t.Lstat(layerFile(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if now.Sub(info.ModTime()) >= layerGrace {
			nobodys = append(nobodys, id)
		}
	}
	return nobodys, nil
}

// named are the layers that any version names, also one that is being written.
func (t *tier) named() (map[string]bool, error) {
	all := map[string]bool{}
	volumes, err := t.volumes()
	if err != nil {
		return nil, err
	}
	for _, id := range volumes {
		for _, dir := range []string{volumeDir(id), logDir(id), snapshotsDir(id), holdsDir(id)} {
			if err := t.namedIn(dir, dir == volumeDir(id), all); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// namedIn adds what the versions in a directory name. One that is being written may be
// cut short, and names what its writer holds.
func (t *tier) namedIn(dir string, writing bool, all map[string]bool) error {
	names, err := t.names(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if hidden(name) != writing {
			continue
		}
		v, err := t.read(path.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || err != nil && writing {
			continue // cut meanwhile
		}
		if err != nil {
			return err
		}
		for _, l := range v.Layers {
			all[l.ID] = true
		}
	}
	return nil
}

// Touch says of layers that somebody is about to name them, and fails where one is gone.
func (s *Store) Touch(layers []Layer) error {
	return s.in(func(t *tier) error {
		now := time.Now()
		for _, l := range layers {
			if err := t.Chtimes(layerFile(l.ID), now, now); err != nil {
				return err
			}
		}
		return nil
	})
}
