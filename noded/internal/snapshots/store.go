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
)

// Store is a directory of snapshots: images of files alone, by a name that their owner
// gave them. A snapshot is there whole or not at all; what was being made or removed when
// the process died is swept.
type Store struct {
	dir  string
	sync func(dir string) error // syncDir, but in tests

	mu     sync.Mutex
	drafts map[string]bool // names that are being made
}

// NewStore makes the Store of a directory, which is made when it is needed.
func NewStore(dir string) *Store { return &Store{dir: dir, sync: syncDir, drafts: map[string]bool{}} }

// ErrBusy is returned for a name that is being made.
var ErrBusy = errors.New("the snapshot is being made")

// ErrName is returned for what can't be a snapshot's name.
var ErrName = errors.New("no name of a snapshot")

// checkName lets UUIDs pass, as they are printed: nothing else becomes a path.
func checkName(name string) error {
	if len(name) != 36 || strings.Trim(name, "0123456789abcdef-") != "" {
		return fmt.Errorf("%w: %.40q", ErrName, name)
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Begin gives the caller the right to make the snapshot of that name, and the place, at
// which nothing is: [Store.Commit] or [Store.Abort] ends it.
func (s *Store) Begin(name string) (draft string, err error) {
	if err := checkName(name); err != nil {
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
	if err := checkName(name); err != nil {
		return "", Manifest{}, err
	}
	m, err = Read(s.path(name))
	return s.path(name), m, err
}

// Delete removes a snapshot; what is not there is removed already.
func (s *Store) Delete(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	busy := s.drafts[name]
	s.mu.Unlock()
	if busy {
		return ErrBusy
	}
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
		if checkName(e) != nil {
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
