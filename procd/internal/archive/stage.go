package archive

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/procd/internal/files"
	"s0.run/procd/internal/walk"
)

// stage is the hidden directory that an archive is unpacked into: beside a target
// that does not exist, within one that does.
type stage struct {
	target string
	path   string
	root   *os.Root
	within bool
}

func newStage(target string) (_ *stage, err error) {
	s := &stage{target: target}
	in := filepath.Dir(target)
	switch info, err := os.Stat(target); {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(target); err == nil {
			return nil, conflict("path_exists", "the path is a symlink to a missing directory")
		}
		if err := os.MkdirAll(in, dirMode); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, conflict("path_not_directory", "the path is no directory")
	default:
		s.within, in = true, target
	}
	if s.path, err = os.MkdirTemp(in, files.StagedTree); err != nil {
		return nil, err
	}
	if s.root, err = os.OpenRoot(s.path); err != nil {
		os.RemoveAll(s.path)
		return nil, err
	}
	return s, nil
}

// discard removes what was not published.
func (s *stage) discard() {
	s.root.Close()
	os.RemoveAll(s.path)
}

// publish puts the tree in its place.
func (s *stage) publish() error {
	if s.within {
		return s.merge(s.target)
	}
	if err := s.root.Chmod(".", dirMode); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, s.path, unix.AT_FDCWD, s.target, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) { // somebody was quicker
		return s.merge(filepath.Dir(s.target))
	}
	return err
}

// merge moves the tree's files into the target. base is the directory that the
// stage is in: every step is taken below it, whatever is a symlink there.
func (s *stage) merge(base string) error {
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close()
	m := merger{root: root, from: filepath.Base(s.path), to: "."}
	if base != s.target {
		m.to = filepath.Base(s.target)
	}
	if err := walk.Walk(s.path, m.check); err != nil {
		return err
	}
	return walk.Walk(s.path, m.move)
}

type merger struct {
	root     *os.Root
	from, to string // below root
	dev      uint64 // of the staged tree
}

// check finds what would not fit, before anything is changed.
func (m *merger) check(e *walk.Entry) error {
	if e.Path == "." {
		m.dev = e.Stat.Dev
	}
	to := filepath.Join(m.to, e.Path)
	if !e.IsDir() {
		info, err := m.root.Lstat(to)
		if err == nil && info.IsDir() {
			return conflict("path_not_file", "a file of the archive would replace a directory")
		}
		return missing(err)
	}
	info, err := m.root.Stat(to) // a symlink to a directory of the target is one
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := m.root.Lstat(to); err == nil {
			return conflict("path_not_directory", "a directory of the archive would replace a symlink")
		}
		return nil
	case err != nil, !info.IsDir():
		return conflict("path_not_directory", "a directory of the archive would replace something else")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Dev != m.dev {
		return errdefs.WithCode(errdefs.InvalidArgument, "invalid_paths", "another file system is mounted below the path; unpack there by itself")
	}
	return nil
}

func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (m *merger) move(e *walk.Entry) error {
	to := filepath.Join(m.to, e.Path)
	switch {
	case e.Path == ".":
		return nil
	case !e.IsDir():
		return m.root.Rename(filepath.Join(m.from, e.Path), to)
	}
	err := m.root.Mkdir(to, fs.FileMode(e.Stat.Mode&0o777))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func conflict(code, message string) error {
	return errdefs.WithCode(errdefs.Conflict, code, "%s", message)
}
