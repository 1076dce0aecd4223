package bucketfs

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"s0.run/volumed/internal/s3"
)

const (
	// emptyPages bounds how often a list may go on with nothing in it.
	emptyPages = 100
	// maxSeek bounds how many pages who seeks has read.
	maxSeek = 1000
)

// dir is a directory: what begins with a prefix.
type dir struct {
	fs.Inode
	tree   *tree
	prefix string // "" or ends with a slash
}

// entry is what a name is: a directory, or an object.
type entry struct {
	isDir  bool
	object s3.Object
}

var (
	_ fs.NodeLookuper       = (*dir)(nil)
	_ fs.NodeOpendirHandler = (*dir)(nil)
	_ fs.NodeGetattrer      = (*dir)(nil)
	_ fs.NodeStatfser       = (*dir)(nil)
)

// Getattr implements [fs.NodeGetattrer].
func (d *dir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.tree.attrs(&out.Attr, dirMode, 0, d.tree.begun)
	return 0
}

// Statfs implements [fs.NodeStatfser]: how much a bucket has, nobody knows.
func (d *dir) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, maxName
	return 0
}

// Lookup implements [fs.NodeLookuper].
func (d *dir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx, cancel := ownTime(ctx)
	defer cancel()
	e, err := d.find(ctx, name)
	if err != nil {
		return nil, d.tree.errno("looking up", d.prefix+name, err)
	}
	return d.child(ctx, name, e, out), 0
}

// child is the inode of an entry.
func (d *dir) child(ctx context.Context, name string, e entry, out *fuse.EntryOut) *fs.Inode {
	t := d.tree
	if e.isDir {
		t.attrs(&out.Attr, dirMode, 0, t.begun)
		return d.NewInode(ctx, &dir{tree: t, prefix: d.prefix + name + "/"}, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: d.inode(name, e)})
	}
	t.attrs(&out.Attr, fileMode, e.object.Size, e.object.Modified)
	return d.NewInode(ctx, &file{tree: t, object: e.object}, fs.StableAttr{Mode: syscall.S_IFREG, Ino: d.inode(name, e)})
}

func (d *dir) inode(name string, e entry) uint64 {
	if e.isDir {
		return inode("directory", d.prefix+name)
	}
	return inode("object", d.prefix+name, e.object.ETag, strconv.FormatInt(e.object.Size, 10))
}

// find says what a name is.
func (d *dir) find(ctx context.Context, name string) (entry, error) {
	if !shown(name) {
		return entry{}, s3.ErrNotFound
	}
	if e, known, there := d.tree.lists.find(d.prefix, name); known {
		if !there {
			return entry{}, s3.ErrNotFound
		}
		return e, nil
	}
	type answer struct {
		there bool
		err   error
	}
	below := make(chan answer, 1)
	go func() { // ends with ctx
		page, err := d.tree.cfg.Store.List(ctx, d.prefix+name+"/", "", 1)
		below <- answer{len(page.Objects)+len(page.Prefixes) > 0, err}
	}()
	object, err := d.tree.cfg.Store.Head(ctx, d.prefix+name)
	asDir := <-below
	if asDir.err != nil || asDir.there {
		return entry{isDir: true}, asDir.err
	}
	return entry{object: object}, err
}

// OpendirHandle implements [fs.NodeOpendirHandler].
func (d *dir) OpendirHandle(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return &stream{dir: d}, 0, 0
}

// stream reads a directory page by page. The bridge calls it once at a time.
//
// What is an object and a directory is shown as a directory, and once, if a page has both.
// Keys between the two may put them on different pages: then the name comes twice, for
// nobody keeps all names of a directory.
type stream struct {
	dir   *dir
	ready []fuse.DirEntry
	next  string
	pages int // that were read
	ended bool
}

var (
	_ fs.FileReaddirenter = (*stream)(nil)
	_ fs.FileSeekdirer    = (*stream)(nil)
)

// Readdirent implements [fs.FileReaddirenter].
func (s *stream) Readdirent(ctx context.Context) (*fuse.DirEntry, syscall.Errno) {
	ctx, cancel := ownTime(ctx)
	defer cancel()
	return s.read(ctx)
}

// read takes the next name; ctx bounds how long.
func (s *stream) read(ctx context.Context) (*fuse.DirEntry, syscall.Errno) {
	for empty := 0; len(s.ready) == 0 && !s.ended; empty++ {
		if err := s.fetch(ctx, empty); err != nil {
			return nil, s.dir.tree.errno("listing", s.dir.prefix, err)
		}
	}
	if len(s.ready) == 0 {
		return nil, 0
	}
	e := s.ready[0]
	s.ready = s.ready[1:]
	return &e, 0
}

// Seekdir implements [fs.FileSeekdirer]: it counts from the begin.
func (s *stream) Seekdir(ctx context.Context, off uint64) syscall.Errno {
	ctx, cancel := ownTime(ctx)
	defer cancel()
	*s = stream{dir: s.dir}
	for range off {
		if s.pages > maxSeek {
			return s.dir.tree.errno("seeking in", s.dir.prefix, errors.New("it is too far"))
		}
		if e, errno := s.read(ctx); e == nil {
			return errno
		}
	}
	return 0
}

// fetch reads one more page.
func (s *stream) fetch(ctx context.Context, empty int) error {
	if empty == emptyPages {
		return errors.New("a list that goes on with nothing in it")
	}
	page, err := s.dir.tree.cfg.Store.List(ctx, s.dir.prefix, s.next, s3.MaxKeys)
	if err != nil {
		return err
	}
	if s.next == page.Next && page.Next != "" {
		return errors.New("a list that goes on where it was")
	}
	s.ready = s.dir.remember(page, s.pages == 0 && page.Next == "")
	s.next, s.ended = page.Next, page.Next == ""
	s.pages++
	return nil
}

// remember takes over a page of the list of this directory.
func (d *dir) remember(page s3.Page, whole bool) (all []fuse.DirEntry) {
	entries := make(map[string]entry, len(page.Objects)+len(page.Prefixes))
	for _, o := range page.Objects {
		if name := strings.TrimPrefix(o.Key, d.prefix); shown(name) {
			entries[name] = entry{object: o}
		}
	}
	for _, p := range page.Prefixes {
		if name := strings.TrimSuffix(strings.TrimPrefix(p, d.prefix), "/"); shown(name) {
			entries[name] = entry{isDir: true}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) { // the same each time, for Seekdir
		e := entries[name]
		mode := uint32(syscall.S_IFREG)
		if e.isDir {
			mode = syscall.S_IFDIR
		}
		all = append(all, fuse.DirEntry{Name: name, Mode: mode, Ino: d.inode(name, e)})
	}
	d.tree.lists.put(listing{d.prefix, entries, whole, time.Now().Add(fresh)})
	return all
}

// shown reports whether a part of a key can be a file's name.
func shown(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}
