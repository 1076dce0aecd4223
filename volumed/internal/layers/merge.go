package layers

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/erofs"
	"s0.run/volumed/internal/tree"
)

// Merge writes one layer that is what several are, the topmost first, where they are
// mounted. With bottom there is nothing below them: what only hides is left out.
func Merge(ctx context.Context, to io.WriterAt, dirs []string, bottom bool) (Info, error) {
	m := &merger{copier: copier{ctx: ctx, slack: math.MaxInt64}, dirs: dirs, bottom: bottom, links: map[linkID]string{}}
	root, err := m.stat(0, ".")
	if err != nil {
		return Info{}, err
	}
	xattrs, err := m.xattrs(0, ".")
	if err != nil {
		return Info{}, err
	}
	delete(xattrs, opaqueXattr)
	if m.w, err = erofs.NewWriter(to, attributes(root, xattrs)); err != nil {
		return Info{}, err
	}
	all := make([]int, len(dirs))
	for i := range all {
		all[i] = i
	}
	if err := m.dir(".", all); err != nil {
		return Info{}, err
	}
	size, err := m.w.Close()
	return Info{Size: size, Bytes: m.w.Bytes(), Files: m.w.Files()}, err
}

type linkID struct {
	layer int
	ino   uint64
}

type merger struct {
	copier
	dirs   []string
	bottom bool
	links  map[linkID]string
}

// merged is what a name is in the layers together.
type merged struct {
	layer  int // where the topmost is
	entry  tree.Entry
	below  []int // the layers that a directory is of, that one first
	closed bool  // nothing further down counts
}

func (m *merger) dir(at string, layers []int) error {
	names := map[string]*merged{}
	for _, l := range layers {
		entries, err := os.ReadDir(filepath.Join(m.dirs[l], at))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := m.see(names, l, at, e.Name()); err != nil {
				return err
			}
		}
	}
	for name, n := range names {
		if err := m.write(path.Join(at, name), n); err != nil {
			return err
		}
	}
	return nil
}

// see takes note of one layer's entry.
func (m *merger) see(names map[string]*merged, layer int, at, name string) error {
	n := names[name]
	if n != nil && n.closed {
		return nil
	}
	entry, err := m.stat(layer, path.Join(at, name))
	if err != nil {
		return err
	}
	switch {
	case n == nil && entry.Kind != tree.Dir:
		names[name] = &merged{layer: layer, entry: entry, closed: true}
	case n == nil:
		names[name] = &merged{layer: layer, entry: entry, below: []int{layer}, closed: entry.Opaque}
	case entry.Kind == tree.Dir:
		n.below, n.closed = append(n.below, layer), entry.Opaque
	default: // it hides what is further down
		n.closed = true
	}
	return nil
}

func (m *merger) write(at string, n *merged) error {
	attr := attributes(n.entry, nil)
	from := filepath.Join(m.dirs[n.layer], at)
	switch n.entry.Kind {
	case tree.Whiteout:
		if m.bottom {
			return nil
		}
		return m.w.Node(at, erofs.Attr{Mode: erofs.Char})
	case tree.Fifo:
		attr.Mode |= erofs.Fifo
		return m.w.Node(at, attr)
	case tree.Symlink:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return m.w.Symlink(at, attr, target)
	case tree.File:
		return m.file(at, from, n)
	case tree.Dir:
	}
	xattrs, err := m.xattrs(n.layer, at)
	if err != nil {
		return err
	}
	delete(xattrs, opaqueXattr)
	if n.closed && !m.bottom {
		xattrs[opaqueXattr] = "y"
	}
	attr.Xattrs = xattrs
	if err := m.w.Mkdir(at, attr); err != nil {
		return err
	}
	return m.dir(at, n.below)
}

func (m *merger) file(at, from string, n *merged) error {
	id := linkID{n.layer, n.entry.Ino}
	if first := m.links[id]; first != "" {
		return m.w.Link(first, at)
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	xattrs, err := readXattrs(int(f.Fd()))
	if err != nil {
		return err
	}
	if n.entry.Links > 1 {
		m.links[id] = at
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	st.Blocks = 0 // which says of an image what there would be without holes
	return m.copier.file(at, attributes(n.entry, xattrs), f, &st)
}

func (m *merger) stat(layer int, at string) (tree.Entry, error) {
	var st unix.Stat_t
	name := filepath.Join(m.dirs[layer], at)
	if err := unix.Lstat(name, &st); err != nil {
		return tree.Entry{}, &os.PathError{Op: "lstat", Path: name, Err: err}
	}
	e := tree.EntryOf(&st)
	if e.Kind == tree.Dir {
		var value [2]byte
		n, err := unix.Lgetxattr(name, opaqueXattr, value[:])
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return tree.Entry{}, err
		}
		e.Opaque = n == 1 && value[0] == 'y'
	}
	return e, nil
}

func (m *merger) xattrs(layer int, at string) (map[string]string, error) {
	f, err := os.OpenFile(filepath.Join(m.dirs[layer], at), os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := readXattrs(int(f.Fd()))
	if all == nil {
		all = map[string]string{}
	}
	return all, err
}
