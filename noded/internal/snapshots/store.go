package snapshots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The parts of an image, each a directory of the shim's that says by itself whether it is
// complete: what was written to the root filesystem, and everything, processes and memory
// included. An image of files alone has no second one.
const (
	FilesPart  = "files"
	MemoryPart = "memory"
)

const (
	draftSuffix = ".draft" // of a snapshot that is being made
	goneSuffix  = ".gone"  // of one that is being removed
	storedFile  = "stored" // in one that is in the object store, too
)

// Store is a directory of snapshots: images of files alone, by a name that their owner
// gave them. A snapshot is there whole or not at all; what was being made or removed when
// the process died is swept.
type Store struct {
	dir  string
	sync func(dir string) error // syncDir, but in tests

	mu     sync.Mutex
	drafts map[string]bool // names that are being made
	held   map[string]*hold
	stored map[string]bool // of those that were looked at, the ones that are stored
}

// hold is somebody's who reads a snapshot, or removes it.
type hold struct {
	released chan struct{} // closed when he has ended
	unwanted bool          // it shall go
}

// NewStore makes the Store of a directory, which is made when it is needed.
func NewStore(dir string) *Store {
	return &Store{dir: dir, sync: syncDir, drafts: map[string]bool{}, held: map[string]*hold{}, stored: map[string]bool{}}
}

// ErrBusy is returned for a name that is being made or removed, or held.
var ErrBusy = errors.New("the snapshot is being made, stored or removed")

// ErrName is returned for what can't be a snapshot's name.
var ErrName = errors.New("no name of a snapshot")

// CheckName lets UUIDs pass, as they are printed: nothing else becomes a path.
func CheckName(name string) error {
	if len(name) != 36 || strings.Trim(name, "0123456789abcdef-") != "" {
		return fmt.Errorf("%w: %.40q", ErrName, name)
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Begin gives the caller the right to make the snapshot of that name, and the place, at
// which nothing is: [Store.Commit] or [Store.Abort] ends it.
func (s *Store) Begin(name string) (draft string, err error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	s.mu.Lock()
	busy := s.drafts[name]
	s.drafts[name] = true
	s.mu.Unlock()
	if busy {
		return "", ErrBusy
	}
	draft = s.path(name) + draftSuffix
	if err := errors.Join(os.MkdirAll(s.dir, 0o700), os.RemoveAll(draft)); err != nil {
		s.end(name)
		return "", err
	}
	return draft, nil
}

func (s *Store) end(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.drafts, name)
}

// Commit makes the draft, which is complete and durable, the snapshot.
func (s *Store) Commit(name string) error {
	return errors.Join(
		unix.Renameat2(unix.AT_FDCWD, s.path(name)+draftSuffix, unix.AT_FDCWD, s.path(name), unix.RENAME_NOREPLACE),
		s.sync(s.dir), s.sync(filepath.Dir(s.dir)))
}

// Abort removes the draft, if there is one still, and ends what Begin began. If it can't,
// the sweep does.
func (s *Store) Abort(name string) error {
	defer s.end(name)
	return os.RemoveAll(s.path(name) + draftSuffix)
}

// Open is where a snapshot lies and what it is. Of one that is removed meanwhile the place
// becomes empty at once. [ErrNone]: there is none.
func (s *Store) Open(name string) (dir string, m Manifest, err error) {
	if err := CheckName(name); err != nil {
		return "", Manifest{}, err
	}
	m, err = Read(s.path(name))
	return s.path(name), m, err
}

// Delete removes a snapshot; what is not there is removed already. One that is held stays,
// and is told to be no longer wanted.
func (s *Store) Delete(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if !s.condemn(name) {
		return ErrBusy
	}
	defer s.release(name)
	gone := s.path(name) + goneSuffix
	err := os.RemoveAll(gone)
	if err == nil {
		err = os.Rename(s.path(name), gone) // who reads it now finds nothing, not half of it
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = s.sync(s.dir) // also of an earlier removal: who hears that it is gone forgets it
	}
	if errors.Is(err, fs.ErrNotExist) { // there has never been one
		err = nil
	}
	return errors.Join(err, os.RemoveAll(gone))
}

// condemn makes a snapshot an unwanted one, which its remover holds until release: nobody
// begins to read what goes. It reports false where somebody makes or holds it.
func (s *Store) condemn(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.stored, name)
	if h := s.held[name]; h != nil {
		h.unwanted = true
		return false
	}
	if s.drafts[name] {
		return false
	}
	s.held[name] = &hold{released: make(chan struct{}), unwanted: true}
	return true
}

func (s *Store) release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.held[name].released)
	delete(s.held, name)
}

// Hold keeps a snapshot that is there, and that nobody else holds, until release.
func (s *Store) Hold(name string) (release func(), ok bool) {
	s.mu.Lock()
	if ok = s.held[name] == nil; ok {
		s.held[name] = &hold{released: make(chan struct{})}
	}
	s.mu.Unlock()
	if !ok {
		return nil, false
	}
	release = func() { s.release(name) }
	if _, _, err := s.Open(name); err != nil { // looked for behind the hold: from here on it stays
		release()
		return nil, false
	}
	return release, true
}

// Released is closed when nobody holds a snapshot any more.
func (s *Store) Released(name string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[name]; h != nil {
		return h.released
	}
	none := make(chan struct{})
	close(none)
	return none
}

// Kept is a snapshot that is there.
type Kept struct {
	Name, Dir string
	Manifest
}

// Unstored lists the snapshots that are wanted and of which nobody has said that they are in
// the object store.
func (s *Store) Unstored() ([]Kept, error) {
	entries, err := s.entries()
	var list []Kept
	for _, name := range entries {
		if CheckName(name) != nil || s.isStored(name) {
			continue
		}
		if dir, m, err := s.Open(name); err == nil {
			list = append(list, Kept{name, dir, m})
		}
	}
	return list, err
}

// isStored reports whether a snapshot need not be stored, from memory where it was looked up.
func (s *Store) isStored(name string) bool {
	s.mu.Lock()
	h := s.held[name]
	known := s.stored[name] || h != nil && h.unwanted
	s.mu.Unlock()
	if known {
		return true
	}
	if _, err := os.Lstat(filepath.Join(s.path(name), storedFile)); err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored[name] = true
	return true
}

// SetStored records, durably, that a snapshot, which the caller holds, is in the object
// store. It reports false when it is not wanted any more.
func (s *Store) SetStored(name string) (bool, error) {
	s.mu.Lock()
	h := s.held[name]
	unwanted := h == nil || h.unwanted
	s.mu.Unlock()
	if unwanted {
		return false, nil
	}
	if err := writeSynced(filepath.Join(s.path(name), storedFile), nil); err != nil {
		return false, err
	}
	return true, s.sync(s.path(name))
}

// Sweep removes what was being made or removed and is not any more.
func (s *Store) Sweep() error {
	entries, err := s.entries()
	var failed []error
	for _, e := range entries {
		name, making := strings.CutSuffix(strings.TrimSuffix(e, aside), draftSuffix)
		s.mu.Lock()
		busy := s.drafts[name]
		s.mu.Unlock()
		if making && !busy || strings.HasSuffix(e, goneSuffix) {
			failed = append(failed, os.RemoveAll(s.path(e)))
		}
	}
	return errors.Join(append(failed, err)...)
}

// All reads the manifest of every snapshot that has one.
func (s *Store) All() ([]Manifest, error) {
	entries, err := s.entries()
	var all []Manifest
	for _, e := range entries {
		if CheckName(e) != nil {
			continue
		}
		if m, err := Read(s.path(e)); err == nil {
			all = append(all, m)
		}
	}
	return all, err
}

func (s *Store) entries() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Bytes is what an image's files take on the disk. What it shares with others counts, too.
func Bytes(dir string) (int64, error) {
	entries, err := os.ReadDir(filepath.Join(dir, FilesPart))
	total := int64(0)
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, FilesPart, e.Name()), &st); err != nil {
			return 0, err
		}
		total += st.Blocks * 512
	}
	return total, err
}
