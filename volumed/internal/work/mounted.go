package work

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
)

// maxMounting is what a mounting of the store adds to a path.
const maxMounting = 14

// mounted are the layers that are mounted, each once for all volumes that have it, below a
// directory for each mounting of the store: an image in one that is gone answers EIO for
// ever, and is never taken again.
type mounted struct {
	dir   string
	store *store.Store

	mu     sync.Mutex
	refs   map[string]*layerRef // by place
	flight map[string]int       // layers that are made and that no version names yet
}

// layerRef is one layer's mount. Who finds it waits until it is ready.
type layerRef struct {
	n     int
	ready chan struct{}
	err   error // when it is ready
}

// A stack are the layers of a version where they are mounted, the topmost first.
type stack struct {
	store string // the mounting of the store
	dirs  []string
}

// take mounts layers, or finds them mounted, until give.
func (m *mounted) take(all []store.Layer) (s stack, err error) {
	if s.store, err = m.store.Mounted(); err != nil {
		return s, err
	}
	if err := os.MkdirAll(filepath.Join(m.dir, s.store), 0o700); err != nil {
		return s, err
	}
	for _, l := range all {
		at := filepath.Join(m.dir, s.store, l.ID)
		if err := m.takeOne(l.ID, s.store, at); err != nil {
			m.give(s)
			return stack{}, err
		}
		s.dirs = append(s.dirs, at)
	}
	return s, nil
}

// takeOne mounts a layer outside the lock: whoever wants the same one waits, and nobody else.
func (m *mounted) takeOne(id, mounting, at string) error {
	m.mu.Lock()
	ref := m.refs[at]
	first := ref == nil
	if first {
		ref = &layerRef{ready: make(chan struct{})}
		m.refs[at] = ref
	}
	ref.n++
	m.mu.Unlock()
	if first {
		ref.err = m.mount(id, mounting, at)
		close(ref.ready)
	}
	<-ref.ready
	if ref.err != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.giveLocked(at, ref)
	}
	return ref.err
}

func (m *mounted) mount(id, mounting, at string) error {
	image, now, err := m.store.Layer(id)
	if err != nil {
		return fmt.Errorf("layer %.64q: %w", id, err)
	}
	defer image.Close()
	if now != mounting {
		return errors.New("the store was mounted anew")
	}
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if there, err := isMount(at); err != nil || there {
		return err
	}
	if err := layers.Image(image, at); err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	return nil
}

// give ends a take.
func (m *mounted) give(s stack) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range s.dirs {
		if ref := m.refs[at]; ref != nil {
			m.giveLocked(at, ref)
		}
	}
}

// giveLocked unmounts lazily, which touches no file.
func (m *mounted) giveLocked(at string, ref *layerRef) {
	if ref.n--; ref.n > 0 {
		return
	}
	if m.refs[at] == ref {
		delete(m.refs, at)
	}
	if ref.err == nil && layers.Unmount(at, true) == nil { // an overlay that is on its way out may still have it
		_ = os.Remove(at)
	}
}

// held tells whether a layer is mounted, or made and about to be named.
func (m *mounted) held(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flight[id] > 0 {
		return true
	}
	for at := range m.refs {
		if filepath.Base(at) == id {
			return true
		}
	}
	return false
}

// fly holds a layer that is made until land.
func (m *mounted) fly(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flight[id]++
}

func (m *mounted) land(all ...store.Layer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range all {
		if m.flight[l.ID]--; m.flight[l.ID] <= 0 {
			delete(m.flight, l.ID)
		}
	}
}

// dropOrphans unmounts layers that an earlier process has mounted and nobody has taken up.
func (m *mounted) dropOrphans() {
	mounts, err := layers.Mounts(m.dir)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range mounts {
		if m.refs[at] == nil && layers.Unmount(at, true) == nil {
			_ = os.Remove(at)
		}
	}
}

func isMount(dir string) (bool, error) {
	mounts, err := layers.Mounts(filepath.Dir(dir))
	return slices.Contains(mounts, dir), err
}

// views finds the mounts of one volume in a directory of "<mounting>.<volume>", whichever
// mounting of the store they are of.
func views(dir, id string) (all []string, err error) {
	mounts, err := layers.Mounts(dir)
	for _, at := range mounts {
		if strings.HasSuffix(at, "."+id) {
			all = append(all, at)
		}
	}
	return all, err
}

// unmountViews takes away the mounts of one volume in a directory, but one.
func unmountViews(dir, id, but string) error {
	all, err := views(dir, id)
	if err != nil {
		return err
	}
	for _, at := range all {
		if at == but {
			continue
		}
		if err := layers.Unmount(at, true); err != nil {
			return fmt.Errorf("unmounting volume %s: %w", id, err)
		}
		_ = os.Remove(at) // an empty directory is nothing
	}
	return nil
}
