// Package walk visits a tree of files that is being changed, perhaps by
// somebody who wants to lead the visitor astray.
//
// Every step goes through the descriptor of the directory above: a directory that
// becomes a symlink on the way is not entered, and nothing outside the tree is ever
// visited. File systems that the kernel makes up, such as /proc, are passed by. Only
// regular files are opened, without ever waiting. Memory depends on the depth, not
// on the number of files. It keeps no state.
package walk

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// MaxDepth bounds the descriptors that a walk holds.
	MaxDepth = 250

	// batch names of a directory are read at once, and visited in order.
	batch = 4096
)

// ErrTooDeep is returned for a tree with more than MaxDepth levels.
var ErrTooDeep = errors.New("the directory tree is too deep")

// SkipDir, from a visitor, leaves a directory out.
var SkipDir = fs.SkipDir

// Entry is what a visitor sees. It is valid during the visit.
type Entry struct {
	Path  string // below the root; "." is the root itself
	Depth int    // 0 for the root
	Stat  unix.Stat_t

	parent int // the descriptor that name is relative to
	name   string
}

// IsDir reports whether the entry is a directory.
func (e *Entry) IsDir() bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsRegular reports whether the entry is a regular file.
func (e *Entry) IsRegular() bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFREG }

// IsSymlink reports whether the entry is a symlink.
func (e *Entry) IsSymlink() bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFLNK }

// Open opens a regular file and renews Stat. A file that has become something
// else is fs.ErrNotExist.
func (e *Entry) Open() (*os.File, error) {
	if !e.IsRegular() {
		return nil, fs.ErrNotExist
	}
	fd, err := openat(e.parent, e.name, unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	if err = unix.Fstat(fd, &e.Stat); err == nil && !e.IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.name), nil
}

// OpenDir opens a directory. What has become something else is fs.ErrNotExist.
func (e *Entry) OpenDir() (*os.File, error) {
	fd, err := openat(e.parent, e.name, unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.name), nil
}

// Readlink is where a symlink leads.
func (e *Entry) Readlink() (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(e.parent, e.name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Walk calls visit for root, which may be a symlink to a directory, and for
// everything below it: a directory before it is read, and what is in it afterwards.
// What vanishes on the way, or may not be seen, is left out. An error of visit ends the
// walk, and so does one of the file system.
func Walk(root string, visit func(*Entry) error) error {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: root, Err: err}
	}
	return In(os.NewFile(uintptr(fd), root), visit)
}

// In is Walk for a directory that is open. It closes it.
func In(dir *os.File, visit func(*Entry) error) error {
	defer dir.Close()
	fd := int(dir.Fd())
	e := &Entry{Path: ".", parent: fd, name: "."}
	if err := unix.Fstat(fd, &e.Stat); err != nil {
		return err
	}
	if virtual, err := isVirtual(fd); virtual || err != nil {
		return err
	}
	w := walker{visit: visit}
	if err := visit(e); err != nil {
		return skipped(err)
	}
	return w.children(dir, e)
}

type walker struct{ visit func(*Entry) error }

func (w walker) children(dir *os.File, of *Entry) error {
	if of.Depth == MaxDepth {
		return ErrTooDeep
	}
	for {
		names, err := dir.Readdirnames(batch)
		slices.Sort(names)
		for _, name := range names {
			if err := w.child(dir, of, name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w walker) child(dir *os.File, of *Entry, name string) error {
	e := &Entry{Path: path.Join(of.Path, name), Depth: of.Depth + 1, parent: int(dir.Fd()), name: name}
	if err := statat(e.parent, name, &e.Stat); err != nil {
		return passedBy(err)
	}
	if err := w.visit(e); err != nil || !e.IsDir() {
		return skipped(err)
	}
	fd, err := openat(e.parent, name, unix.O_DIRECTORY)
	if err != nil {
		return passedBy(err)
	}
	sub := os.NewFile(uintptr(fd), e.Path)
	defer sub.Close()
	if e.Stat.Dev != of.Stat.Dev {
		if virtual, err := isVirtual(fd); virtual || err != nil {
			return err
		}
	}
	return w.children(sub, e)
}

func skipped(err error) error {
	if errors.Is(err, SkipDir) {
		return nil
	}
	return err
}

// passedBy is nil for what has gone, or is no directory any more, or is not for us. With
// any other error something may be there: who walks must not take it for an end.
func passedBy(err error) error {
	for _, gone := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ESTALE, unix.EACCES} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

func statat(dir int, name string, st *unix.Stat_t) error {
	for {
		if err := unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// virtual are the file systems whose files the kernel makes up while they are
// read: without end some, memory others.
var virtual = []int64{
	unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
	unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC,
}

// IsVirtual reports whether an open file is none that is stored, or may be none.
func IsVirtual(f *os.File) bool {
	virtual, err := isVirtual(int(f.Fd()))
	return virtual || err != nil
}

func isVirtual(fd int) (bool, error) {
	var st unix.Statfs_t
	for {
		if err := unix.Fstatfs(fd, &st); !errors.Is(err, unix.EINTR) {
			return err == nil && slices.Contains(virtual, int64(st.Type)), err
		}
	}
}
