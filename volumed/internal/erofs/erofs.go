// Package erofs writes images of the kernel's read-only file system EROFS, in one pass
// and without compression.
//
// A layer of a volume is such an image: one file in the durable tier, however many
// files it holds. A [Writer] is given a tree in any order, each directory before what
// is in it, and streams file data as it comes; what describes the tree follows the data,
// and the superblock, written last, makes the image one. The package knows nothing of
// where the tree comes from, trusts no name and bounds what the format can't hold.
package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"s0.run/internal/errdefs"
)

const (
	blockBits = 12
	blockSize = 1 << blockBits

	superOffset = 1024
	superMagic  = 0xE0F5E1E2
	inodeSize   = 64
	slotSize    = 32 // inodes are numbered by it
	direntSize  = 12
	extended    = 1      // inode version, with the data in plain blocks
	chunked     = 4 << 1 // or with the data in chunks
	hole        = ^uint32(0)

	// MaxName is the longest name, and MaxTarget the longest target of a symlink.
	MaxName, MaxTarget = 255, 4095
	// maxXattrs bounds the extended attributes of one inode, names and values.
	maxXattrs = 64 << 10
)

// Types of inodes, as stat says them.
const (
	TypeMask = 0o170000
	Fifo     = 0o010000
	Char     = 0o020000 // of device 0:0 alone: a whiteout
	Dir      = 0o040000
	Regular  = 0o100000
	Symlink  = 0o120000
)

// Attr is what an inode says beside its data.
type Attr struct {
	Mode     uint32 // type and permissions
	UID, GID uint32
	Seconds  int64 // of its last change of content
	Nanos    uint32
	Xattrs   map[string]string // by full name
}

type inode struct {
	attr   Attr
	xattrs []byte // encoded
	size   uint64
	block  uint32 // where its data begins
	links  uint32
	nid    uint64
	number uint32
	chunk  uint8    // of a file with holes: chunks of 2^chunk blocks,
	chunks []uint32 // and where each begins
	parent *inode
	names  map[string]*inode // of a directory
}

// A Writer writes one image. Its methods may not be called concurrently.
type Writer struct {
	w      io.WriterAt
	offset int64 // of the next data block
	dirs   map[string]*inode
	inodes []*inode // the root first
	buffer []byte
	bytes  int64

	chunked bool // a file is
}

// NewWriter begins an image whose root has attr.
func NewWriter(w io.WriterAt, attr Attr) (*Writer, error) {
	i := &Writer{w: w, offset: blockSize, dirs: map[string]*inode{}, buffer: make([]byte, 1<<20)}
	attr.Mode = attr.Mode&^TypeMask | Dir
	root, err := i.newInode(attr)
	if err != nil {
		return nil, err
	}
	root.names, root.parent = map[string]*inode{}, root
	i.dirs["."] = root
	return i, nil
}

// Files is how many inodes the image has, and Bytes what its regular files hold.
func (w *Writer) Files() int64 { return int64(len(w.inodes)) }

// Bytes: see [Writer.Files].
func (w *Writer) Bytes() int64 { return w.bytes }

// Mkdir adds a directory. path is clean and relative; its parent was added before.
func (w *Writer) Mkdir(path string, attr Attr) error {
	attr.Mode = attr.Mode&^TypeMask | Dir
	n, err := w.add(path, attr)
	if err != nil {
		return err
	}
	n.names = map[string]*inode{}
	n.parent = w.dirs[parentOf(path)]
	w.dirs[path] = n
	return nil
}

// File adds a regular file with everything that data has, at most size bytes.
func (w *Writer) File(path string, attr Attr, data io.Reader, size int64) error {
	attr.Mode = attr.Mode&^TypeMask | Regular
	n, err := w.add(path, attr)
	if err != nil {
		return err
	}
	return w.fill(n, io.LimitReader(data, size))
}

// Symlink adds a symlink.
func (w *Writer) Symlink(path string, attr Attr, target string) error {
	if target == "" || len(target) > MaxTarget || strings.Contains(target, "\x00") {
		return errdefs.New(errdefs.InvalidArgument, "a symlink's target of %d bytes", len(target))
	}
	attr.Mode = attr.Mode&^TypeMask | Symlink
	n, err := w.add(path, attr)
	if err != nil {
		return err
	}
	return w.fill(n, strings.NewReader(target))
}

// Node adds what has no data: a FIFO, or a whiteout.
func (w *Writer) Node(path string, attr Attr) error {
	if t := attr.Mode & TypeMask; t != Fifo && t != Char {
		return fmt.Errorf("inode type %o", t)
	}
	_, err := w.add(path, attr)
	return err
}

// Link gives what was added at old, which is no directory, another name.
func (w *Writer) Link(old, path string) error {
	parent := w.dirs[parentOf(old)]
	if parent == nil || parent.names[nameOf(old)] == nil || parent.names[nameOf(old)].names != nil {
		return fmt.Errorf("link to %q: no such file in the image", old)
	}
	n := parent.names[nameOf(old)]
	if err := w.name(path, n); err != nil {
		return err
	}
	n.links++
	return nil
}

func (w *Writer) newInode(attr Attr) (*inode, error) {
	xattrs, err := encodeXattrs(attr.Xattrs)
	if err != nil {
		return nil, err
	}
	n := &inode{attr: attr, xattrs: xattrs, links: 1, number: uint32(len(w.inodes) + 1)}
	n.attr.Xattrs = nil
	w.inodes = append(w.inodes, n)
	return n, nil
}

func (w *Writer) add(path string, attr Attr) (*inode, error) {
	n, err := w.newInode(attr)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	if err := w.name(path, n); err != nil {
		w.inodes = w.inodes[:len(w.inodes)-1]
		return nil, err
	}
	return n, nil
}

func (w *Writer) name(path string, n *inode) error {
	parent, name := w.dirs[parentOf(path)], nameOf(path)
	switch {
	case parent == nil:
		return fmt.Errorf("%q: its directory is not in the image", path)
	case name == "" || name == "." || name == ".." || len(name) > MaxName || strings.Contains(name, "\x00"):
		return fmt.Errorf("%q: no name", path)
	case parent.names[name] != nil:
		return fmt.Errorf("%q: twice", path)
	}
	parent.names[name] = n
	return nil
}

// fill streams an inode's data into blocks of its own.
func (w *Writer) fill(n *inode, data io.Reader) error {
	n.block = uint32(w.offset >> blockBits)
	for {
		read, err := io.ReadFull(data, w.buffer)
		n.size += uint64(read)
		if n.attr.Mode&TypeMask == Regular {
			w.bytes += int64(read)
		}
		if werr := w.append(w.buffer[:read]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// append writes whole blocks; w.buffer has room for the padding.
func (w *Writer) append(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	padded := (len(b) + blockSize - 1) &^ (blockSize - 1)
	used := len(b)
	b = slices.Grow(b, padded-used)[:padded]
	clear(b[used:]) // or an earlier file's bytes would be in this one's block
	if w.offset+int64(padded) > int64(^uint32(0))<<blockBits {
		return errdefs.New(errdefs.Exhausted, "an image of more than 16 TiB")
	}
	if _, err := w.w.WriteAt(b, w.offset); err != nil {
		return err
	}
	w.offset += int64(padded)
	return nil
}

func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

func nameOf(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

var le = binary.LittleEndian
