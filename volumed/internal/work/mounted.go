package work

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
)

// mounted are the layers that are mounted, each once for all volumes that have it.
type mounted struct {
	dir   string
	store *store.Store

	mu   sync.Mutex
	refs map[string]int
}

func (m *mounted) path(id string) string { return filepath.Join(m.dir, id) }

// take mounts layers, or finds them mounted, until give.
func (m *mounted) take(all []store.Layer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, l := range all {
		if err := m.takeOne(l.ID); err != nil {
			m.giveLocked(all[:i])
			return err
		}
	}
	return nil
}

// takeOne is called with mu held: that nobody mounts one twice is the lock's purpose.
func (m *mounted) takeOne(id string) error {
	if m.refs[id] == 0 {
		if err := store.CheckID("layer", id); err != nil {
			return err
		}
		if err := os.Mkdir(m.path(id), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if there, err := isMount(m.path(id)); err != nil {
			return err
		} else if !there {
			if err := layers.Image(m.store.LayerPath(id), m.path(id)); err != nil {
				return fmt.Errorf("layer %s: %w", id, err)
			}
		}
	}
	m.refs[id]++
	return nil
}

// give ends a take.
func (m *mounted) give(all []store.Layer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.giveLocked(all)
}

func (m *mounted) giveLocked(all []store.Layer) {
	for _, l := range all {
		if m.refs[l.ID]--; m.refs[l.ID] > 0 {
			continue
		}
		delete(m.refs, l.ID)
		if layers.Unmount(m.path(l.ID), true) == nil { // an overlay that is on its way out may still have it
			_ = os.Remove(m.path(l.ID))
		}
	}
}

func (m *mounted) held(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refs[id] > 0
}

// isMount compares a directory's file system with its parent's.
func isMount(dir string) (bool, error) {
	mounts, err := layers.Mounts(filepath.Dir(dir))
	if err != nil {
		return false, err
	}
	for _, at := range mounts {
		if at == dir {
			return true, nil
		}
	}
	return false, nil
}
