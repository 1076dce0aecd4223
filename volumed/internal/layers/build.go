// Package layers makes the layers of volumes and mounts them.
//
// A layer is an EROFS image of what one commit has changed, in the form in which an
// overlay takes it: whiteouts for what is gone, opaque directories. [Build] makes one
// from a working layer, which belongs to a sandbox that may change it meanwhile: it opens
// nothing but regular files, by descriptor and below the layer's root, and says what it
// could not read as it was seen, or can't keep. [Merge] makes one of several. [Image] and [Overlay] are
// the mounts. Which layers make a version is not for this package to know.
package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/erofs"
	"s0.run/volumed/internal/tree"
)

const (
	opaqueXattr = "trusted.overlay.opaque"
	// userXattrs are the only ones that a volume keeps: nothing else in a sandbox's hands
	// means anything to the host's kernel.
	userXattrs = "user."
	xattrBytes = 64 << 10
	// maxXattrs is what an image has room for, of one file.
	maxXattrs = 60 << 10
)

// Info is what a layer is.
type Info struct {
	Size  int64 // of the image
	Bytes int64 // of the files' data in it
	Files int64
}

// Empty writes the first layer of an empty volume: its root.
func Empty(to io.WriterAt, uid, gid uint32) (Info, error) {
	w, err := erofs.NewWriter(to, erofs.Attr{Mode: 0o755, UID: uid, GID: gid, Seconds: time.Now().Unix()})
	if err != nil {
		return Info{}, err
	}
	size, err := w.Close()
	return Info{Size: size, Files: w.Files()}, err
}

// Skipped are paths that a layer does not have as they are.
type Skipped struct {
	Missed  []string         // not what they had been any more: to be looked at again
	Refused map[string]error // what no layer can have: a file, or a directory's attributes
}

type builder struct {
	copier
	still   bool // nobody writes
	root    int
	links   map[uint64]string
	skipped Skipped
}

// Build writes the changes of the layer that is open as root. What somebody writes to a file
// after it, the file's change time tells.
func Build(ctx context.Context, to io.WriterAt, root *os.File, changes []tree.Change) (Info, Skipped, error) {
	return build(ctx, to, root, changes, false)
}

// Capture is Build while nobody writes. It is no slower than reading: files are not written
// back, so that what is mapped may change after it and no change time tell.
func Capture(ctx context.Context, to io.WriterAt, root *os.File, changes []tree.Change) (Info, Skipped, error) {
	return build(ctx, to, root, changes, true)
}

func build(ctx context.Context, to io.WriterAt, root *os.File, changes []tree.Change, still bool) (info Info, skipped Skipped, err error) {
	if len(changes) == 0 || changes[0].Path != "." {
		return Info{}, Skipped{}, errors.New("changes without a root")
	}
	b := &builder{
		copier: copier{ctx: ctx, slack: slack}, still: still, root: int(root.Fd()), links: map[uint64]string{}, skipped: Skipped{Refused: map[string]error{}},
	}
	xattrs, err := b.xattrs(".", b.root)
	if err != nil {
		return Info{}, Skipped{}, err
	}
	if b.w, err = erofs.NewWriter(to, attributes(changes[0].Entry, xattrs)); err != nil {
		return Info{}, Skipped{}, err
	}
	for _, c := range changes[1:] {
		if err := b.addOrRefuse(c); err != nil {
			return Info{}, Skipped{}, fmt.Errorf("%q: %w", c.Path, err)
		}
	}
	size, err := b.w.Close()
	return Info{Size: size, Bytes: b.w.Bytes(), Files: b.w.Files()}, b.skipped, err
}

func (b *builder) addOrRefuse(c tree.Change) error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	err := b.add(c)
	if errors.Is(err, errRefused) {
		b.skipped.Refused[c.Path] = err
		return nil
	}
	return err
}

func (b *builder) miss(path string) { b.skipped.Missed = append(b.skipped.Missed, path) }

// xattrs reads a directory's attributes; without those that nobody can keep, it is kept.
func (b *builder) xattrs(path string, fd int) (map[string]string, error) {
	all, err := readXattrs(fd)
	if errors.Is(err, errRefused) {
		b.skipped.Refused[path] = err
		return nil, nil
	}
	return all, err
}

func (b *builder) add(c tree.Change) error {
	e := c.Entry
	if first := b.links[e.Ino]; first != "" && e.Kind == tree.File {
		return b.w.Link(first, c.Path)
	}
	switch e.Kind {
	case tree.Whiteout:
		return b.w.Node(c.Path, erofs.Attr{Mode: erofs.Char})
	case tree.Fifo:
		return b.w.Node(c.Path, attributes(e, nil, erofs.Fifo))
	case tree.Dir:
		return b.dir(c)
	case tree.Symlink:
		return b.symlink(c)
	case tree.File:
	}
	return b.file(c)
}

// dir adds a directory also when it is gone by now: what is in it is on its way.
func (b *builder) dir(c tree.Change) error {
	var xattrs map[string]string
	fd, err := b.open(c.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case err == nil:
		xattrs, err = b.xattrs(c.Path, fd)
		_ = unix.Close(fd)
	case elsewhere(err):
		err = nil
		b.miss(c.Path)
	}
	if err != nil {
		return err
	}
	if c.Entry.Opaque {
		if xattrs == nil {
			xattrs = map[string]string{}
		}
		xattrs[opaqueXattr] = "y"
	}
	return b.w.Mkdir(c.Path, attributes(c.Entry, xattrs))
}

func (b *builder) symlink(c tree.Change) error {
	fd, err := b.open(c.Path, unix.O_PATH|unix.O_NOFOLLOW)
	if elsewhere(err) {
		b.miss(c.Path)
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	target := make([]byte, erofs.MaxTarget+1)
	n, err := unix.Readlinkat(fd, "", target)
	if err != nil || n == 0 { // it is no symlink any more
		b.miss(c.Path)
		return nil
	}
	return b.w.Symlink(c.Path, attributes(c.Entry, nil), string(target[:n]))
}

func (b *builder) file(c tree.Change) error {
	fd, err := b.open(c.Path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if elsewhere(err) {
		b.miss(c.Path)
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), c.Path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		b.miss(c.Path)
		return nil
	}
	if !b.still {
		if err := writeBack(fd); err != nil {
			return err
		}
	}
	xattrs, err := readXattrs(fd)
	if err != nil {
		return err
	}
	if err := b.copier.file(c.Path, attributes(tree.EntryOf(&st), xattrs), f, &st); err != nil {
		return err
	}
	if c.Entry.Links > 1 {
		b.links[c.Entry.Ino] = c.Path
	}
	return nil
}

// writeBack has a file's next change tell of itself: what a process has mapped is written
// without a word as long as the page is dirty.
func writeBack(fd int) error {
	if err := unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER); err != nil {
		return fmt.Errorf("writing back: %w", err)
	}
	return nil
}

// open never leaves the layer, and follows nothing (B05).
func (b *builder) open(path string, flags uint64) (int, error) {
	return unix.Openat2(b.root, path, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

// elsewhere: the path is not what it was.
func elsewhere(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EXDEV)
}

func attributes(e tree.Entry, xattrs map[string]string, kind ...uint32) erofs.Attr {
	a := erofs.Attr{Mode: e.Mode, UID: e.UID, GID: e.GID, Seconds: e.Mtime / 1e9, Nanos: uint32(e.Mtime % 1e9), Xattrs: xattrs}
	if e.Mtime%1e9 < 0 { // before 1970
		a.Seconds, a.Nanos = a.Seconds-1, uint32(e.Mtime%1e9+1e9)
	}
	for _, k := range kind {
		a.Mode |= k
	}
	return a
}

// readXattrs reads what a tenant may have set.
func readXattrs(fd int) (map[string]string, error) {
	names := make([]byte, xattrBytes)
	n, err := unix.Flistxattr(fd, names)
	if errors.Is(err, unix.ERANGE) {
		return nil, refused("extended attributes of more than %d bytes", maxXattrs)
	}
	if n <= 0 || err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	all, size := map[string]string{}, 0
	value := make([]byte, xattrBytes)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if !strings.HasPrefix(name, userXattrs) {
			continue
		}
		n, err := unix.Fgetxattr(fd, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("extended attribute: %w", err)
		}
		if size += len(name) + n + 8; size > maxXattrs {
			return nil, refused("extended attributes of more than %d bytes", maxXattrs)
		}
		all[name] = string(value[:n])
	}
	return all, nil
}
