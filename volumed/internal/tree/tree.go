// Package tree looks at the working layer of a volume: what has been written since the
// last commit.
//
// The layer belongs to the sandbox, which may change it while it is read, and means no
// good. So a walk goes from descriptor to descriptor, follows no symlink, opens nothing
// but directories and regular files, and is bounded in depth, entries and names. What it
// finds is data: a [Tree] of what there is, and [Diff] of two of them. The package
// changes nothing.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
)

const (
	// maxDepth bounds directories in directories, and with them open descriptors.
	maxDepth = 512
	// maxPath is what one system call takes.
	maxPath = unix.PathMax - 256
	// Racy is the kernel's coarsest clock tick and a bit: a file that changed this shortly
	// before it was looked at may change again without its time telling.
	Racy = 12 * time.Millisecond
	// opaque marks a directory that hides everything below it.
	opaqueXattr = "trusted.overlay.opaque"
)

// Kind is what an entry is.
type Kind uint8

// What an overlay's upper layer has. A whiteout hides what is below; sockets and devices
// hide it, too, and are nothing themselves.
const (
	Whiteout Kind = iota
	Dir
	File
	Symlink
	Fifo
)

// Entry is what was seen at a path.
type Entry struct {
	Kind   Kind
	Opaque bool // of a directory
	Mode   uint32
	UID    uint32
	GID    uint32
	Links  uint32
	Ino    uint64
	Size   int64
	Mtime  int64 // ns
	Ctime  int64 // ns; 0: it may have changed since
}

// Tree is what was seen, by path; the root is ".".
type Tree map[string]Entry

// Bytes is what the files of a tree hold.
func (t Tree) Bytes() (n int64) {
	for _, e := range t {
		if e.Kind == File {
			n += e.Size
		}
	}
	return n
}

// ErrTooMuch is a tree beyond what a volume may have.
var ErrTooMuch = errdefs.New(errdefs.Exhausted, "the volume has more files or deeper directories than a volume may have")

type scan struct {
	ctx   context.Context // of one call
	tree  Tree
	limit int
	until int64 // times from here on are racy
	root  int
}

// Scan walks the layer that is open as root, which has at most limit entries. What comes
// or goes meanwhile may be in the tree or not.
func Scan(ctx context.Context, root *os.File, limit int) (Tree, error) {
	s := scan{ctx: ctx, tree: Tree{}, limit: limit, until: time.Now().Add(-Racy).UnixNano(), root: int(root.Fd())}
	var st unix.Stat_t
	if err := unix.Fstat(s.root, &st); err != nil {
		return nil, err
	}
	s.tree["."] = s.entry(&st)
	return s.tree, s.dir(s.root, ".", ".", 0)
}

// dir walks one directory, which is name in the one that is open as parent.
func (s *scan) dir(parent int, name, at string, depth int) error {
	if depth > maxDepth || len(at) > maxPath {
		return ErrTooMuch
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening a directory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	e := s.tree[at]
	e.Opaque = isOpaque(fd)
	s.tree[at] = e
	for {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		names, err := f.Readdirnames(1024)
		for _, child := range names {
			if err := s.child(fd, child, join(at, child), depth); err != nil {
				return err
			}
		}
		if err != nil {
			return ignoreEnd(err)
		}
	}
}

// join is path.Join of what is clean.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || gone(err) {
		return nil
	}
	return err
}

func (s *scan) child(dir int, name, at string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at an entry: %w", err)
	}
	if len(s.tree) >= s.limit || len(at) > maxPath {
		return ErrTooMuch
	}
	e := s.entry(&st)
	s.tree[at] = e
	if e.Kind == Dir {
		return s.dir(dir, name, at, depth+1)
	}
	return nil
}

// gone: it was there a moment ago, or is something else by now.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE)
}

func (s *scan) entry(st *unix.Stat_t) Entry {
	e := EntryOf(st)
	if e.Ctime >= s.until {
		e.Ctime = 0
	}
	return e
}

// EntryOf is what stat says of a path.
func EntryOf(st *unix.Stat_t) Entry {
	e := Entry{
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Links: uint32(st.Nlink), Ino: st.Ino,
		Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Kind = Dir
	case unix.S_IFREG:
		e.Kind, e.Size = File, st.Size
	case unix.S_IFLNK:
		e.Kind, e.Size = Symlink, st.Size
	case unix.S_IFIFO:
		e.Kind = Fifo
	default: // a whiteout, or what no volume keeps
		e = Entry{Ino: st.Ino, Ctime: e.Ctime}
	}
	return e
}

func isOpaque(fd int) bool {
	var value [2]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// Change is what a commit has to write of one path.
type Change struct {
	Path  string
	Entry Entry // of kind Whiteout: the path is gone
}

// Diff is what leads from the tree that the last commit saw to the one of now: parents
// before what is in them, unchanged directories where something in them has changed. A
// directory that is another one than before is opaque.
func Diff(old, now Tree) []Change { return diff(old, now, candidates(old, now)) }

// diff is Diff for who knows which paths may have changed.
func diff(old, now Tree, changed []string) []Change {
	d := differ{old: old, now: now, fresh: map[string]bool{}, out: map[string]Entry{".": now["."]}}
	for _, p := range changed {
		d.present(p)
	}
	for p, e := range old {
		if _, ok := now[p]; !ok && e.Kind != Whiteout {
			d.absent(p)
		}
	}
	all := make([]Change, 0, len(d.out))
	for _, p := range slices.SortedFunc(maps.Keys(d.out), comparePaths) {
		all = append(all, Change{Path: p, Entry: d.out[p]})
	}
	return all
}

// comparePaths puts the root first, and parents before what is in them.
func comparePaths(a, b string) int {
	if a == b {
		return 0
	}
	if a == "." {
		return -1
	}
	if b == "." {
		return 1
	}
	return strings.Compare(a, b)
}

type differ struct {
	old, now Tree
	fresh    map[string]bool // directories that are not those of before
	out      map[string]Entry
}

// candidates are the paths that may have changed, parents before what is in them. As a rule
// they are few of many, and nobody sorts the rest.
func candidates(old, now Tree) []string {
	var all []string
	for p, is := range now {
		was, had := old[p]
		same := had && isSame(was, is)
		if !same && is.Kind == Dir && (had || is.Opaque) { // whatever is in it is new
			return inOrder(now)
		}
		if !same || was.Ctime != is.Ctime || is.Ctime == 0 {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, comparePaths)
	return all
}

func inOrder(t Tree) []string { return slices.SortedFunc(maps.Keys(t), comparePaths) }

// isSame: the kernel gives inode numbers out again. One that hides now what it did not hide
// then is another.
func isSame(old, now Entry) bool {
	return old.Kind == now.Kind && old.Ino == now.Ino && (old.Opaque || !now.Opaque)
}

// present looks at a path that is there; its parent was looked at before.
func (d *differ) present(p string) {
	if p == "." {
		return
	}
	now := d.now[p]
	old, had := d.old[p]
	inFresh := d.fresh[path.Dir(p)]
	same := had && !inFresh && isSame(old, now)
	if now.Kind == Dir {
		replaced := !same && (had || inFresh)
		d.fresh[p] = replaced || !had && now.Opaque
		now.Opaque = now.Opaque || replaced
	}
	if same && old.Ctime == now.Ctime && now.Ctime != 0 {
		return
	}
	if now.Kind == Dir && same {
		now.Opaque = false // what was committed of it stays
	}
	d.emit(p, now)
}

// absent looks at a path that was there. Where its directory is gone or another one,
// that says it.
func (d *differ) absent(p string) {
	parent := path.Dir(p)
	if e, ok := d.now[parent]; ok && e.Kind == Dir && !d.fresh[parent] {
		d.emit(p, Entry{})
	}
}

func (d *differ) emit(p string, e Entry) {
	d.out[p] = e
	for parent := path.Dir(p); parent != "."; parent = path.Dir(parent) {
		if _, ok := d.out[parent]; ok {
			return
		}
		e := d.now[parent]
		e.Opaque = false
		d.out[parent] = e
	}
}
