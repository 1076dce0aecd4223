// Package mirror tells what a tree of files holds, and changes single paths of it, for who
// keeps copies of it elsewhere.
//
// Somebody else may be writing to the tree at any time. So each change names what it
// expects to find, and is refused where that is not so; a file's stamp says that it is what
// was seen. Between the look and the rename that follows it lie microseconds in which a
// change may be missed, as with every editor. No symlink is followed anywhere, and nothing
// but files and directories is touched. The package keeps no state.
package mirror

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/files/walk"
	"s0.run/internal/procapi"
)

const (
	copyBuffer = 256 << 10
	// settleTime is more than the grain of the kernel's clock of files: what was changed
	// longer ago has another stamp when it is changed again.
	settleTime = 100 * time.Millisecond
	// dirtyTime is more than a page stays unwritten: a file that was changed since may be
	// mapped by somebody whose next store to that page changes no time, unless its writing
	// has begun. That is all that is waited for: a sync of each file takes as long as a disk.
	dirtyTime = 2 * time.Minute
	// digestTries bounds the reads of a file that is written to meanwhile.
	digestTries = 2

	permissions = 0o777
)

// Mirror is a tree.
type Mirror struct{ tree files.Tree }

// New makes one of the tree below its base.
func New(tree files.Tree) Mirror { return Mirror{tree} }

// errEnough ends a walk.
var errEnough = errors.New("enough was seen")

// Walk tells everything in the tree.
func (m Mirror) Walk(ctx context.Context, tell func(procapi.TreeEntry) error) (sum procapi.TreeSummary, err error) {
	entries := 0
	err = walk.Walk(m.tree.Base, func(e *walk.Entry) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case e.Path == ".":
			return nil
		case files.Staged(path.Base(e.Path)):
			return walk.SkipDir
		case !utf8.ValidString(e.Path) || len(e.Path) > procapi.MaxMirrorPath:
			sum.LeftOut++
			return walk.SkipDir
		case entries == procapi.MaxMirrorEntries:
			sum.Stopped = procapi.TreeEntries
			return errEnough
		}
		entries++
		return tell(describe(e.Path, &e.Stat))
	})
	switch {
	case errors.Is(err, errEnough):
		err = nil
	case errors.Is(err, walk.ErrTooDeep):
		sum.Stopped, err = procapi.TreeDepth, nil
	}
	return sum, files.Failure(err, "reading the tree")
}

func describe(path string, st *unix.Stat_t) procapi.TreeEntry {
	e := procapi.TreeEntry{Path: path, Type: procapi.TreeOther}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type, e.Mode = procapi.TreeDir, st.Mode&permissions
	case unix.S_IFREG:
		if st.Size <= procapi.MaxMirrorFile {
			e.Type, e.Mode, e.Size, e.Stamp = procapi.TreeFile, st.Mode&permissions, st.Size, stamp(st)
		}
	}
	return e
}

func stamp(st *unix.Stat_t) string {
	return fmt.Sprintf("%x.%x.%x", st.Size, st.Mtim.Nano(), st.Ctim.Nano())
}

// Digest reads a file. One that is none any more is fs.ErrNotExist.
func (m Mirror) Digest(ctx context.Context, name string) (procapi.TreeEntry, error) {
	dir, base, err := m.parent(name)
	if err != nil {
		return procapi.TreeEntry{}, gone(err)
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return procapi.TreeEntry{}, gone(err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	var e procapi.TreeEntry
	for range digestTries {
		if e, err = digest(ctx, f, name); err != nil || e.SHA256 != "" {
			break
		}
	}
	return e, err
}

// digest reads an open file once.
func digest(ctx context.Context, f *os.File, name string) (procapi.TreeEntry, error) {
	before, began, err := settled(f)
	if err != nil {
		return procapi.TreeEntry{}, err
	}
	e := describe(name, &before)
	if e.Type != procapi.TreeFile {
		return e, fs.ErrNotExist
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return e, err
	}
	sum := sha256.New()
	in := io.LimitReader(whileRuns{ctx, f}, procapi.MaxMirrorFile+1)
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{in}, make([]byte, min(copyBuffer, before.Size+1)))
	if err != nil {
		return e, err
	}
	var after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return e, err
	}
	if n == e.Size && stamp(&after) == e.Stamp {
		e.SHA256 = hex.EncodeToString(sum.Sum(nil))
		e.Settled = began.Sub(changed(&before)) > settleTime
	}
	return e, nil
}

// settled is what a file is before it is read. What was written to it lately is on its way
// to the disk then, so that the next store to a page of it is noted.
func settled(f *os.File) (st unix.Stat_t, at time.Time, err error) {
	at = time.Now()
	if err = unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || at.Sub(changed(&st)) > dirtyTime {
		return st, at, err
	}
	err = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE)
	if err != nil { // this file system has its own ways
		err = f.Sync()
	}
	if err == nil {
		at = time.Now()
		err = unix.Fstat(int(f.Fd()), &st)
	}
	return st, at, err
}

// changed is when a file was written to, or anything else of it was changed: a time that
// nobody can set, unlike that of its content.
func changed(st *unix.Stat_t) time.Time { return time.Unix(0, st.Ctim.Nano()) }

// whileRuns reads until its context ends.
type whileRuns struct {
	ctx context.Context
	r   io.Reader
}

func (w whileRuns) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(p)
}

// gone makes one error of all that say that there is no such file.
func gone(err error) error {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENXIO} {
		if errors.Is(err, e) {
			return fs.ErrNotExist
		}
	}
	return err
}

// parent opens the directory that a path is in. It reads no symlink on its way.
func (m Mirror) parent(name string) (dir *os.File, base string, err error) {
	if !Local(name) {
		return nil, "", errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", "path %.200q is none of a tree's", name)
	}
	root, err := os.Open(m.tree.Base)
	if err != nil {
		return nil, "", err
	}
	defer root.Close()
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path.Dir(name), &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) { // something was renamed meanwhile
			continue
		}
		if err != nil {
			return nil, "", err
		}
		return os.NewFile(uintptr(fd), path.Dir(name)), path.Base(name), nil
	}
}

// Local reports whether a name is the one plain form of a path in a tree.
func Local(name string) bool {
	return name != "." && len(name) <= procapi.MaxMirrorPath && utf8.ValidString(name) && !strings.ContainsRune(name, 0) &&
		filepath.IsLocal(name) && path.Clean(name) == name
}

// moved refuses a change of what is not what it was.
func moved(name string) error {
	return errdefs.WithCode(errdefs.Conflict, "path_exists", "%.200q is not what it was", name)
}

// expect looks at a path and reports whether it is what it shall be.
func expect(dir *os.File, base, name, want string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	absent := errors.Is(err, unix.ENOENT)
	if err != nil && !absent {
		return st, err
	}
	kind := st.Mode & unix.S_IFMT
	var is bool
	switch want {
	case procapi.ExpectAbsent:
		is = absent
	case procapi.ExpectDir:
		is = !absent && kind == unix.S_IFDIR
	default:
		is = !absent && kind == unix.S_IFREG && stamp(&st) == want
	}
	if !is {
		return st, moved(name)
	}
	return st, nil
}

// Put makes what r holds, at most limit bytes, the content of a file that is as expected.
func (m Mirror) Put(name string, mode uint32, want string, r io.Reader, limit int64) (procapi.TreeEntry, error) {
	if want == procapi.ExpectDir {
		return procapi.TreeEntry{}, moved(name)
	}
	dir, base, err := m.parent(name)
	if err != nil {
		return procapi.TreeEntry{}, changedAbove(err, name)
	}
	defer dir.Close()
	if _, err := expect(dir, base, name, want); err != nil { // before anything is read
		return procapi.TreeEntry{}, files.Failure(err, "writing")
	}
	staged := files.StagedChange
	if want == procapi.ExpectAbsent {
		staged = files.StagedNew
	}
	staged += rand.Text()
	if err := m.stage(dir, staged, mode, r, limit); err != nil {
		return procapi.TreeEntry{}, files.Failure(err, "writing")
	}
	e, err := m.publish(dir, staged, base, name, want)
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), staged, 0) // who finds it left over may delete it
	}
	return e, files.Failure(err, "writing")
}

func (m Mirror) stage(dir *os.File, staged string, mode uint32, r io.Reader, limit int64) error {
	fd, err := unix.Openat(int(dir.Fd()), staged, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), staged)
	n, err := files.Copy(f, io.LimitReader(r, limit+1), make([]byte, copyBuffer))
	if err == nil && n > limit {
		err = files.TooLarge(limit)
	}
	if err == nil {
		err = f.Chmod(fs.FileMode(mode & permissions))
	}
	if err == nil && m.tree.Durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), staged, 0)
	}
	return err
}

func (m Mirror) publish(dir *os.File, staged, base, name, want string) (procapi.TreeEntry, error) {
	fd := int(dir.Fd())
	if _, err := expect(dir, base, name, want); err != nil {
		return procapi.TreeEntry{}, err
	}
	flags := uint(0)
	if want == procapi.ExpectAbsent {
		flags = unix.RENAME_NOREPLACE
	}
	err := unix.Renameat2(fd, staged, fd, base, flags)
	if errors.Is(err, unix.EEXIST) {
		err = moved(name)
	}
	if err == nil && m.tree.Durable {
		err = dir.Sync()
	}
	if err != nil {
		return procapi.TreeEntry{}, err
	}
	return at(dir, base, name)
}

// at is what a path is now.
func at(dir *os.File, base, name string) (procapi.TreeEntry, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return procapi.TreeEntry{}, err
	}
	return describe(name, &st), nil
}

// changedAbove words the error of a directory that is none any more.
func changedAbove(err error, name string) error {
	if errors.Is(gone(err), fs.ErrNotExist) {
		return moved(name)
	}
	return files.Failure(err, "changing")
}
