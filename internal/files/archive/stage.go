package archive

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/files/walk"
)

// stage is the hidden directory that an archive is unpacked into: beside a target
// that does not exist, within one that does. Every step goes through base, the
// directory that both are in: whatever takes its name meanwhile, what was begun in
// it ends in it.
type stage struct {
	base *os.Root
	name string // of the stage, below base
	to   string // of the target, below base: "." if that is base
	root *os.Root

	durable bool // what is published is on the disk
}

func newStage(target string) (*stage, error) {
	in, to := filepath.Dir(target), filepath.Base(target)
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
		in, to = target, "."
	}
	base, err := os.OpenRoot(in)
	if err != nil {
		return nil, err
	}
	s := &stage{base: base, name: files.StagedTree + rand.Text(), to: to}
	if err := base.Mkdir(s.name, dirMode); err != nil {
		base.Close()
		return nil, err
	}
	if s.root, err = base.OpenRoot(s.name); err != nil {
		return nil, errors.Join(err, base.Remove(s.name), base.Close())
	}
	return s, nil
}

// discard removes what was not published.
func (s *stage) discard() {
	s.root.Close()
	_ = s.base.RemoveAll(s.name) // who finds it left over may delete it
	s.base.Close()
}

// publish puts the tree in its place. What has one on the disk is whole.
func (s *stage) publish() error {
	dir, err := s.base.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, step := range []func(dir int) error{s.sync, s.place, s.sync} {
		if err := step(int(dir.Fd())); err != nil {
			return err
		}
	}
	return nil
}

// sync is for the whole file system: an archive has more files than there is time to wait
// for one by one.
func (s *stage) sync(dir int) error {
	if !s.durable {
		return nil
	}
	return unix.Syncfs(dir)
}

func (s *stage) place(fd int) error {
	if s.to == "." {
		return s.merge()
	}
	err := unix.Renameat2(fd, s.name, fd, s.to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) { // somebody was quicker
		return s.merge()
	}
	return err
}

// merge moves the tree's files into the target.
func (s *stage) merge() error {
	m := merger{root: s.base, from: s.name, to: s.to}
	for _, step := range []func(*walk.Entry) error{m.check, m.move} {
		dir, err := s.root.Open(".")
		if err == nil {
			err = walk.In(dir, step)
		}
		if err != nil {
			return err
		}
	}
	return nil
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
