package watch

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/files/walk"
	"s0.run/internal/procapi"
)

const (
	interest = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_EXCL_UNLINK | unix.IN_ONLYDIR

	newDirMode = 0o755

	openTries = 3
)

// tree is the watched directories of a subscription. One goroutine at a time uses
// it: the subscriber until Run, then the reader.
type tree struct {
	root      string
	recursive bool
	look      time.Duration // how often to look whether root is there; 0: never
	out       *queue
	room      room

	file *os.File    // the inotify instance
	was  os.FileInfo // root, as it was opened
	top  *node
	byWD map[int32]*node

	moved    *move   // the first half of a rename
	told     []*node // those with told names
	stopping atomic.Bool
}

// node is a watched directory. Its path is where it is now.
type node struct {
	wd       int32
	name     string
	parent   *node
	children map[string]*node

	// told holds files that were found when the directory was read and whose own
	// events may follow. It is dropped when the kernel has no more.
	told map[string]struct{}
}

type move struct {
	cookie uint32
	from   *node
	name   string
}

// open makes the directory, starts an instance and watches what is there. Whoever deletes
// the directory meanwhile may do so a few times.
func (t *tree) open() (err error) {
	for range openTries {
		err = t.openOnce()
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) { // which MkdirAll says of what was there for a moment
			break
		}
		t.close()
	}
	return failure(err, t.root)
}

func (t *tree) openOnce() error {
	if err := os.MkdirAll(t.root, newDirMode); err != nil {
		return err
	}
	was, err := os.Stat(t.root)
	if err != nil {
		return err
	}
	t.was = was
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	t.file = os.NewFile(uintptr(fd), "inotify")
	t.byWD, t.top = map[int32]*node{}, &node{name: t.root}
	full := false
	if err := t.addAll(t.top, func(string) { full = true }); err != nil {
		return err
	}
	if full {
		return errdefs.WithCode(errdefs.Exhausted, "too_many_watches", "there are more directories below %s than can be watched", t.root)
	}
	return nil
}

// gone looks whether the directory is not there any more.
func (t *tree) gone() bool {
	is, err := os.Stat(t.root)
	return err != nil || !os.SameFile(is, t.was)
}

func (t *tree) close() {
	if t.file != nil {
		t.file.Close()
	}
	t.room.give(len(t.byWD))
	clear(t.byWD)
}

// wake ends run, from another goroutine.
func (t *tree) wake() {
	t.stopping.Store(true)
	_ = t.file.SetReadDeadline(time.Unix(1, 0))
}

// path is where a directory is now.
func (n *node) path() string {
	if n.parent == nil {
		return n.name
	}
	return filepath.Join(n.parent.path(), n.name)
}

// open opens a directory to read it. It may have become a symlink since it was told of;
// only the subscriber's own path may be one.
func (n *node) open() (*os.File, error) {
	flags := unix.O_DIRECTORY | unix.O_NONBLOCK
	if n.parent != nil {
		flags |= unix.O_NOFOLLOW
	}
	return os.OpenFile(n.path(), flags, 0)
}

// add watches one directory.
func (t *tree) add(n *node, path string) error {
	if !t.room.take() {
		return errFull
	}
	flags := uint32(interest)
	if n.parent != nil {
		flags |= unix.IN_DONT_FOLLOW
	}
	wd, err := addWatch(t.file, path, flags)
	if other := t.byWD[wd]; err == nil && other != nil {
		err = errTwice
		if other.path() == n.path() {
			err = errKnown
		}
	}
	if err != nil {
		t.room.give(1)
		return err
	}
	n.wd = wd
	t.byWD[wd] = n
	if n.parent != nil {
		if n.parent.children == nil {
			n.parent.children = map[string]*node{}
		}
		n.parent.children[n.name] = n
	}
	return nil
}

var (
	errFull  = errors.New("too many directories")
	errTwice = errors.New("watched under another path")
	errKnown = errors.New("watched already")
)

func addWatch(f *os.File, path string, mask uint32) (wd int32, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctl := raw.Control(func(fd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(fd), path, mask)
		wd = int32(n)
	})
	return wd, errors.Join(ctl, err)
}

// addAll watches top and, in a recursive tree, what is below. A directory is
// watched before it is read: what appears in it from then on has an event, what was
// there is found. full is told of directories for which there is no room.
func (t *tree) addAll(top *node, full func(path string)) error {
	return t.visit(top, full, func(*node, string) {})
}

// addNew is addAll for a directory that has just appeared: what is found in it is
// told as created, for it came before the watch did.
// What can't be watched has gone again. errTwice says that the directory is known
// under another name: what was renamed has confused us.
func (t *tree) addNew(top *node) error {
	err := t.visit(top, t.full, func(in *node, name string) {
		if in.told == nil {
			in.told = map[string]struct{}{}
			t.told = append(t.told, in)
		}
		in.told[name] = struct{}{}
		t.tell(procapi.WatchCreate, filepath.Join(in.path(), name))
	})
	if errors.Is(err, errTwice) {
		return t.renew()
	}
	return nil
}

// visit walks down from top. An error is one of top itself: what can't be watched
// below has gone, mostly.
func (t *tree) visit(top *node, full func(path string), found func(in *node, name string)) error {
	base := top.path()
	nodes := map[string]*node{}
	var failed error
	dir, err := top.open()
	if err != nil {
		return err
	}
	err = walk.In(dir, func(e *walk.Entry) error {
		n, dir := top, "."
		if e.Path != "." {
			var name string
			dir, name = filepath.Split(e.Path)
			dir = filepath.Clean(dir)
			in := nodes[dir]
			if in == nil || files.Staged(name) { // a directory above has no watch
				return skipDir(e)
			}
			found(in, name)
			n = &node{name: name, parent: in}
		}
		if !e.IsDir() || e.Path != "." && !t.recursive {
			return skipDir(e)
		}
		if e.Depth == walk.MaxDepth {
			full(filepath.Join(base, e.Path))
			return walk.SkipDir
		}
		switch err := t.add(n, filepath.Join(base, e.Path)); {
		case errors.Is(err, errFull):
			full(filepath.Join(base, e.Path))
			return walk.SkipDir
		case err != nil:
			if n == top {
				failed = err
			}
			return walk.SkipDir
		}
		nodes[e.Path] = n
		return nil
	})
	return errors.Join(failed, err)
}

func skipDir(e *walk.Entry) error {
	if e.IsDir() {
		return walk.SkipDir
	}
	return nil
}

// full tells that changes below path are not seen.
func (t *tree) full(path string) {
	t.out.put(t.root, procapi.WatchLine{Event: procapi.WatchInvalidate, Path: path, Reason: procapi.WatchLimit})
}

func (t *tree) tell(event, path string) {
	t.out.put(t.root, procapi.WatchLine{Event: event, Path: path})
}

// drop forgets a directory with all below it.
func (t *tree) drop(n *node) {
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
	for _, child := range n.children {
		t.drop(child)
	}
	if t.byWD[n.wd] != n {
		return
	}
	delete(t.byWD, n.wd)
	t.room.give(1)
	t.unwatch(n.wd)
}

// renew reads the tree again after events were lost: directories that nobody told
// of may be there. The instance stays, and so do the watches that it has.
func (t *tree) renew() error {
	old := t.byWD
	t.room.give(len(old))
	t.moved, t.told = nil, nil
	t.byWD, t.top = map[int32]*node{}, &node{name: t.root}
	if err := t.addAll(t.top, t.full); err != nil {
		return errGone
	}
	for wd := range old {
		if t.byWD[wd] == nil {
			t.unwatch(wd)
		}
	}
	t.out.put(t.root, procapi.WatchLine{Event: procapi.WatchInvalidate, Path: t.root, Reason: procapi.WatchOverflow})
	return nil
}

func (t *tree) unwatch(wd int32) {
	if raw, err := t.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) }) // it may have gone with its directory
	}
}

// errGone ends a watch whose directory is not there any more.
var errGone = errors.New("the directory has gone")
