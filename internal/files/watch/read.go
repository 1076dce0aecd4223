package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/files"
	"s0.run/internal/procapi"
)

// readBuffer is what one read of events may bring: some hundred.
const readBuffer = 64 << 10

// run reads events until wake, or until the directory has gone: neither is an error.
func (t *tree) run() error {
	buf := make([]byte, readBuffer)
	for {
		n, err := t.read(buf)
		if err == nil {
			err = t.handle(buf[:n])
		}
		switch {
		case t.stopping.Load():
			return nil
		case errors.Is(err, errGone):
			t.tell(procapi.WatchRemove, t.root)
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && t.moved != nil:
			t.settle() // the second half of the rename did not come
		case errors.Is(err, os.ErrDeadlineExceeded):
			if t.gone() {
				t.tell(procapi.WatchRemove, t.root)
				return nil
			}
		case err != nil:
			return err
		}
	}
}

// read waits for events; for the second half of a rename no longer than pairing, and never
// longer than look.
func (t *tree) read(buf []byte) (int, error) {
	n, err := t.poll(buf)
	if !errors.Is(err, unix.EAGAIN) {
		return n, err
	}
	for _, n := range t.told { // whatever the told names wait for has come
		n.told = nil
	}
	t.told = nil
	var deadline time.Time
	switch {
	case t.moved != nil:
		deadline = time.Now().Add(pairing)
	case t.look > 0:
		deadline = time.Now().Add(t.look)
	}
	if err := t.file.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	if t.stopping.Load() { // wake may have come before the deadline was set
		return 0, nil
	}
	n, err = t.file.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) { // what came while nobody was scheduled to read it has come in time
		if late, pollErr := t.poll(buf); !errors.Is(pollErr, unix.EAGAIN) {
			return late, pollErr
		}
	}
	return n, err
}

// poll reads without waiting.
func (t *tree) poll(buf []byte) (n int, err error) {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctl := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) })
	return n, errors.Join(ctl, err)
}

// event is one of the kernel's.
type event struct {
	wd     int32
	mask   uint32
	cookie uint32
	name   string // in the directory; "" for itself
}

func (e event) is(mask uint32) bool { return e.mask&mask != 0 }

func (e event) dir() bool { return e.is(unix.IN_ISDIR) }

func (t *tree) handle(buf []byte) error {
	for len(buf) >= unix.SizeofInotifyEvent {
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		if size > len(buf) {
			return errors.New("malformed event")
		}
		name, _, _ := bytes.Cut(buf[unix.SizeofInotifyEvent:size], []byte{0})
		err := t.event(event{
			wd: int32(binary.NativeEndian.Uint32(buf)), mask: binary.NativeEndian.Uint32(buf[4:]),
			cookie: binary.NativeEndian.Uint32(buf[8:]), name: string(name),
		})
		if err != nil {
			return err
		}
		buf = buf[size:]
	}
	return nil
}

func (t *tree) event(e event) error {
	if e.is(unix.IN_Q_OVERFLOW) {
		return t.renew()
	}
	if t.moved != nil && !(e.is(unix.IN_MOVED_TO) && e.cookie == t.moved.cookie) {
		t.settle()
	}
	n := t.byWD[e.wd]
	switch {
	case n == nil: // dropped since
		return nil
	case n == t.top && e.is(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT|unix.IN_IGNORED):
		return errGone
	case e.is(unix.IN_IGNORED):
		t.drop(n)
		return nil
	case e.name == "": // its own attributes, which the directory above tells of
		return nil
	case files.Staged(e.name) && !e.is(unix.IN_MOVED_FROM|unix.IN_MOVED_TO):
		return nil
	}
	return t.change(n, e)
}

// change is an event of something in a directory.
func (t *tree) change(in *node, e event) error {
	path := filepath.Join(in.path(), e.name)
	switch {
	case e.is(unix.IN_CREATE):
		return t.created(in, e, path)
	case e.is(unix.IN_MODIFY):
		t.tell(procapi.WatchWrite, path)
	case e.is(unix.IN_ATTRIB):
		t.tell(procapi.WatchChmod, path)
	case e.is(unix.IN_DELETE):
		t.removed(in, e.name)
	case e.is(unix.IN_MOVED_FROM):
		t.moved = &move{e.cookie, in, e.name}
	case e.is(unix.IN_MOVED_TO):
		return t.arrived(in, e, path)
	}
	return nil
}

func (t *tree) created(in *node, e event, path string) error {
	if _, ok := in.told[e.name]; ok {
		delete(in.told, e.name) // found before its event came
		return nil
	}
	t.tell(procapi.WatchCreate, path)
	return t.enter(in, e)
}

// enter watches a directory that has appeared.
func (t *tree) enter(in *node, e event) error {
	if !t.recursive || !e.dir() {
		return nil
	}
	return t.addNew(&node{name: e.name, parent: in})
}

func (t *tree) removed(in *node, name string) {
	t.tell(procapi.WatchRemove, filepath.Join(in.path(), name))
	t.leave(in, name)
}

// leave forgets what was known under a name.
func (t *tree) leave(in *node, name string) {
	delete(in.told, name)
	if child := in.children[name]; child != nil {
		t.drop(child)
	}
}

// settle ends the wait for the second half of a rename: the file was moved out.
func (t *tree) settle() {
	m := t.moved
	t.moved = nil
	switch {
	case m == nil:
	case files.Staged(m.name):
		t.leave(m.from, m.name)
	default:
		t.removed(m.from, m.name)
	}
}

// arrived is the second half of a rename, or all that is seen of one from outside.
func (t *tree) arrived(in *node, e event, path string) error {
	m := t.moved
	switch {
	case files.Staged(e.name):
		t.settle()
		return nil
	case m == nil || files.Staged(m.name):
		t.moved = nil
		t.leave(in, e.name)
		if m == nil || !strings.HasPrefix(m.name, files.StagedChange) {
			t.tell(procapi.WatchCreate, path)
		}
		if m != nil && !e.dir() {
			t.tell(procapi.WatchWrite, path)
		}
		return t.enter(in, e)
	}
	t.moved = nil
	t.out.put(t.root, procapi.WatchLine{Event: procapi.WatchRename, Path: path, OldPath: filepath.Join(m.from.path(), m.name)})
	return t.relink(m, in, e)
}

// relink gives a directory's watch its new name.
func (t *tree) relink(m *move, in *node, e event) error {
	child := m.from.children[m.name]
	if child == nil {
		t.leave(in, e.name)
		return t.enter(in, e)
	}
	delete(m.from.children, m.name)
	t.leave(in, e.name)
	child.name, child.parent = e.name, in
	if in.children == nil {
		in.children = map[string]*node{}
	}
	in.children[e.name] = child
	return nil
}
