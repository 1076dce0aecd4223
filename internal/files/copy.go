package files

import (
	"context"
	"crypto/rand"
	"errors"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files/walk"
)

// moveCopy is Move for a directory that its file system does not rename, as no overlay does
// with what lies below it. The copy appears as a whole, with owners, modes and times. What
// is changed in the source meanwhile ends it, as long as that can be seen; what is changed
// while the source is deleted is lost. Files with several names become several.
func (t Tree) moveCopy(ctx context.Context, source, destination string) error {
	in, err := os.OpenRoot(filepath.Dir(destination))
	if err != nil {
		return err
	}
	defer in.Close()
	staged := StagedTree + rand.Text()
	if err := in.Mkdir(staged, 0o700); err != nil {
		return err
	}
	published := false
	defer func() {
		if !published {
			_ = in.RemoveAll(staged) // who finds it left over may delete it
		}
	}()
	seen, err := copyTree(ctx, source, in, staged)
	if err != nil {
		return err
	}
	if err := t.keepStaged(in); err != nil {
		return err
	}
	if is, err := look(ctx, source); err != nil || is != seen {
		return changed(err)
	}
	if err := publish(in, staged, filepath.Base(destination)); err != nil {
		return err
	}
	published = true
	return os.RemoveAll(source)
}

// keepStaged has what is staged whole on the disk, where that is promised.
func (t Tree) keepStaged(in *os.Root) error {
	if !t.Durable {
		return nil
	}
	dir, err := in.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

// publish gives a staged directory its name.
func publish(in *os.Root, staged, name string) error {
	dir, err := in.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	return unix.Renameat2(fd, staged, fd, name, unix.RENAME_NOREPLACE)
}

// copyTree tells what it has seen.
func copyTree(ctx context.Context, source string, in *os.Root, staged string) (seen witness, err error) {
	to, err := in.OpenRoot(staged)
	if err != nil {
		return seen, err
	}
	defer to.Close()
	c := copier{to: to, buf: make([]byte, copyBuffer)}
	err = each(ctx, source, func(e *walk.Entry) error {
		seen.add(e)
		return c.entry(e)
	})
	if err == nil { // directories are like theirs when nothing is made in them any more
		err = each(ctx, source, c.directory)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = changed(err)
	}
	return seen, err
}

func look(ctx context.Context, source string) (seen witness, err error) {
	err = each(ctx, source, func(e *walk.Entry) error {
		seen.add(e)
		return nil
	})
	return seen, err
}

func each(ctx context.Context, source string, step func(*walk.Entry) error) error {
	return walk.Walk(source, func(e *walk.Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return step(e)
	})
}

// changed refuses a move; the cause may be nil.
func changed(cause error) error {
	if cause != nil && !errors.Is(cause, fs.ErrNotExist) {
		return cause
	}
	return errdefs.WithCode(errdefs.Conflict, "path_exists", "the directory can't be moved while it is changed").WithCause(cause)
}

// witness is what a walk saw, in whatever order: two are equal if nothing has changed.
type witness struct {
	entries int
	sum     uint64
}

var seed = maphash.MakeSeed()

func (w *witness) add(e *walk.Entry) {
	s := stamp{path: e.Path, mode: e.Stat.Mode, size: e.Stat.Size, ctime: e.Stat.Ctim}
	if !e.IsDir() { // an overlay makes up directories' numbers, and may forget them
		s.ino = e.Stat.Ino
	}
	w.entries++
	w.sum += maphash.Comparable(seed, s)
}

type stamp struct {
	path  string
	ino   uint64
	mode  uint32
	size  int64
	ctime unix.Timespec
}

type copier struct {
	to  *os.Root
	buf []byte
}

// entry makes what was found.
func (c *copier) entry(e *walk.Entry) error {
	switch {
	case e.Path == ".":
		return nil
	case e.IsDir():
		return c.to.Mkdir(e.Path, 0o700)
	case e.IsRegular():
		return c.file(e)
	case e.IsSymlink():
		target, err := e.Readlink()
		if err != nil {
			return err
		}
		return errors.Join(c.to.Symlink(target, e.Path), c.to.Lchown(e.Path, int(e.Stat.Uid), int(e.Stat.Gid)))
	}
	return errdefs.WithCode(errdefs.Conflict, "path_exists", "%.200q can't be moved: it is no file, directory or symlink", e.Path)
}

func (c *copier) file(e *walk.Entry) error {
	from, err := e.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone since
	}
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := c.to.OpenFile(e.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(c.data(f, from), attributes(f, from))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return c.like(e)
}

// data copies what is stored and leaves the holes.
func (c *copier) data(to, from *os.File) error {
	size, err := from.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for at := int64(0); at < size; {
		start, err := from.Seek(at, unix.SEEK_DATA)
		if err == nil {
			at, err = from.Seek(start, unix.SEEK_HOLE)
		}
		if errors.Is(err, unix.ENXIO) { // there is a hole up to the end
			break
		}
		if err != nil {
			return err
		}
		if _, err := to.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := Copy(to, io.NewSectionReader(from, start, at-start), c.buf); err != nil {
			return err
		}
	}
	return to.Truncate(size)
}

// attributes copies those that users give.
func attributes(to, from *os.File) error {
	n, err := unix.Flistxattr(int(from.Fd()), nil)
	if err == nil && n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil // as with nearly all
	}
	names := make([]byte, maxAttributes)
	if n, err = unix.Flistxattr(int(from.Fd()), names); err != nil {
		return err
	}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, maxAttributes)
		n, err := unix.Fgetxattr(int(from.Fd()), name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxAttributes is the kernel's, of all names and of one value.
const maxAttributes = 64 << 10

func (c *copier) directory(e *walk.Entry) error {
	if !e.IsDir() {
		return nil
	}
	from, err := e.OpenDir()
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := c.to.Open(e.Path)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := attributes(to, from); err != nil {
		return err
	}
	return c.like(e)
}

// like gives the copy its owner, mode and time: the mode after the owner, which changes it.
func (c *copier) like(e *walk.Entry) error {
	if err := c.to.Lchown(e.Path, int(e.Stat.Uid), int(e.Stat.Gid)); err != nil {
		return err
	}
	mode := fs.FileMode(e.Stat.Mode & 0o777)
	for bit, m := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if e.Stat.Mode&bit != 0 {
			mode |= m
		}
	}
	if err := c.to.Chmod(e.Path, mode); err != nil {
		return err
	}
	when := time.Unix(e.Stat.Mtim.Unix())
	return c.to.Chtimes(e.Path, when, when)
}
