package volumes

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
)

// fake is a volumed whose volumes are directories.
type fake struct {
	volumeapi.Server // what is not asked here
	dir              string

	mu      sync.Mutex
	uses    map[string]string
	commits []string
	failed  error // of commits
}

func (f *fake) Use(_ context.Context, req volumeapi.Use) (volumeapi.Mounted, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uses[req.Use] = req.Volume.ID
	return volumeapi.Mounted{Path: filepath.Join(f.dir, req.Volume.ID)}, nil
}

func (f *fake) Leave(_ context.Context, req volumeapi.Leave) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.uses, req.Use)
	return f.failed
}

func (f *fake) Commit(_ context.Context, id string) (volumeapi.Committed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed != nil {
		return volumeapi.Committed{}, f.failed
	}
	f.commits = append(f.commits, id)
	return volumeapi.Committed{Clean: true}, nil
}

func (f *fake) used() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.uses)
}

type bench struct {
	*Agent
	t      *testing.T
	fake   *fake
	socket string
	stop   func()
	id     sandbox.ID
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if testing.Short() {
		t.Skip("mounts, which needs root")
	}
	dir, err := os.MkdirTemp("", "s0p") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	id, err := sandbox.NewID("test")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, socket: filepath.Join(dir, "sock"), id: id, fake: &fake{dir: filepath.Join(dir, "volumes"), uses: map[string]string{}}}
	for _, v := range []string{"v1", "v2"} {
		if err := os.MkdirAll(filepath.Join(b.fake.dir, v), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.fake.dir, v, "name"), []byte(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.serve()
	portals := filepath.Join(dir, "portals")
	if b.Agent, err = Open(portals, b.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.stop()
		mounts, err := mountsAt(portals)
		slices.Reverse(mounts)
		for _, at := range mounts {
			err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
		}
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := b.Prepare(b.id); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) serve() {
	b.t.Helper()
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		b.t.Fatal(err)
	}
	srv := &http.Server{Handler: volumeapi.Handler(b.fake, func(string, error) {})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	b.stop = func() { _ = srv.Close(); <-done }
}

func mount(id, volume string, readOnly bool) Mount {
	return Mount{ID: id, ReadOnly: readOnly, Volume: volumeapi.Volume{ID: volume, Team: "t", Epoch: 1}}
}

// nobody has to look, for no sandbox remembers anything.
func nobody(context.Context) error { return nil }

func (b *bench) attach(m Mount) {
	b.t.Helper()
	if err := b.Attach(b.t.Context(), b.id, m); err != nil {
		b.t.Fatal(err)
	}
}

func TestPortalShowsVolumes(t *testing.T) {
	b := newBench(t)
	one, two := mount("m1", "v1", false), mount("m2", "v2", true)
	b.attach(one)
	b.attach(one) // repeated
	b.attach(two)
	at := func(m Mount, name string) string { return filepath.Join(b.Dir(b.id), m.Name(), name) }
	for m, want := range map[Mount]string{one: "v1", two: "v2"} {
		if got, err := os.ReadFile(at(m, "name")); err != nil || string(got) != want {
			t.Errorf("%s shows %q, %v", m.Name(), got, err)
		}
	}
	if err := os.WriteFile(at(one, "new"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(at(two, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a read-only mount: %v", err)
	}
	if err := b.Detach(t.Context(), b.id, one, nobody); err != nil {
		t.Error(err)
	}
	if all, err := os.ReadDir(b.Dir(b.id)); err != nil || len(all) != 1 || b.fake.used() != 1 {
		t.Errorf("after a detach: %v, %v, %d uses", all, err, b.fake.used())
	}
}

// C15: a volume that may not enter is mounted and in no portal, and what is in the portal says
// so: a teardown lets it go.
func TestC15_AVolumeThatMayNotEnter(t *testing.T) {
	b := newBench(t)
	m, refused := mount("m1", "v1", false), errors.New("refused on purpose")
	if b.Has(b.id) {
		t.Error("a new portal has something")
	}
	err := b.AttachWhen(t.Context(), b.id, m, func() error {
		there, err := mountsAt(filepath.Join(b.base(b.id), m.Name()))
		if err != nil || len(there) != 0 || b.fake.used() != 1 || !b.Has(b.id) {
			t.Errorf("before it may enter: %v, %v, %d uses, there is something: %t", there, err, b.fake.used(), b.Has(b.id))
		}
		return refused
	})
	if !errors.Is(err, refused) {
		t.Errorf("it was refused, and the answer is %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.Dir(b.id), m.Name(), "name")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a file of the volume: %v", err)
	}
	if err := b.DetachAll(t.Context(), b.id); err != nil || b.fake.used() != 0 || b.Has(b.id) {
		t.Errorf("a teardown: %v, %d uses", err, b.fake.used())
	}
}

// A portal is read-only on the host, whoever looks at it and with whatever rights; what is
// mounted there later is what it is.
func TestC06_PortalsAreNotWrittenTo(t *testing.T) {
	b := newBench(t)
	for range 2 {
		if err := b.Prepare(b.id); err != nil { // repeated
			t.Fatal(err)
		}
		b.attach(mount("m1", "v1", false))
		in := b.Dir(b.id)
		for what, err := range map[string]error{
			"a directory": os.Mkdir(filepath.Join(in, "new"), 0o700),
			"a file":      os.WriteFile(filepath.Join(in, "new"), nil, 0o600),
			"a symlink":   os.Symlink("/", filepath.Join(in, "new")),
			"a mode":      os.Chmod(in, 0o777),
			"a removal":   os.Remove(filepath.Join(in, "v1~m1")),
		} {
			if !errors.Is(err, unix.EROFS) && !(what == "a removal" && errors.Is(err, unix.EBUSY)) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := os.WriteFile(filepath.Join(in, "v1~m1", "new"), nil, 0o600); err != nil {
			t.Errorf("writing to the volume: %v", err)
		}
	}
}

// R7: a detach is answered behind a commit, and none while somebody can write. What failed
// can be repeated, and undone.
func TestX43_DetachAnswersBehindTheCommit(t *testing.T) {
	b := newBench(t)
	m := mount("m1", "v1", false)
	b.attach(m)
	held, err := os.Create(filepath.Join(b.Dir(b.id), m.Name(), "held"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Detach(t.Context(), b.id, m, nobody); !errors.Is(err, ErrBusy) || len(b.fake.commits) > 0 || b.fake.used() != 1 {
			t.Errorf("with an open file: %v, %v, %d uses", err, b.fake.commits, b.fake.used())
		}
		if _, err := os.Stat(held.Name()); err != nil {
			t.Errorf("the volume is not there any more: %v", err)
		}
	}
	held.Close()
	if err := b.Detach(t.Context(), b.id, m, func(context.Context) error { return errors.ErrUnsupported }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("when nobody has looked: %v", err)
	}
	b.fake.failed = errdefs.New(errdefs.Unavailable, "the store is down")
	for range 2 {
		if err := b.Detach(t.Context(), b.id, m, nobody); !errdefs.Is(err, errdefs.Unavailable) || b.fake.used() != 1 {
			t.Errorf("without a store: %v, %d uses", err, b.fake.used())
		}
	}
	b.attach(m)
	if _, err := os.Stat(held.Name()); err != nil {
		t.Errorf("what failed is not undone: %v", err)
	}
	b.fake.failed = nil
	if err := b.Detach(t.Context(), b.id, m, nobody); err != nil || !slices.Equal(b.fake.commits, []string{"v1"}) || b.fake.used() != 0 {
		t.Errorf("at last: %v, %v, %d uses", err, b.fake.commits, b.fake.used())
	}
}

// What is mounted and was put aside since is not taken for the volume (R7).
func TestX47_WhatWasPutAsideIsNoVolume(t *testing.T) {
	b := newBench(t)
	one, two := mount("m1", "v1", false), mount("m2", "v2", true)
	b.attach(one)
	b.attach(two)
	for _, m := range []Mount{one, two} {
		at := filepath.Join(b.fake.dir, m.Volume.ID)
		if err := unix.Mount("new", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
	}
	if err := b.Attach(t.Context(), b.id, one); errdefs.From(err).Code != volumeapi.CodeFenced {
		t.Errorf("attached again: %v", err)
	}
	b.attach(two) // to which nobody writes
	if err := b.DetachAll(t.Context(), b.id); err != nil {
		t.Fatal(err)
	}
	if err := b.Prepare(b.id); err != nil {
		t.Fatal(err)
	}
	b.attach(one)
	if _, err := os.Stat(filepath.Join(b.Dir(b.id), one.Name(), "name")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mounted anew it is what it was: %v", err)
	}
	if err := b.DetachAll(t.Context(), b.id); err != nil {
		t.Error(err)
	}
}

// What a noded that died has covered shows again, or goes.
func TestG12_ACoverIsNoVolume(t *testing.T) {
	b := newBench(t)
	one, two := mount("m1", "v1", false), mount("m2", "v2", false)
	b.attach(one)
	b.attach(two)
	in, err := b.open(b.id)
	if err != nil {
		t.Fatal(err)
	}
	defer in.close()
	if err := errors.Join(in.cover(one.Name(), b.empty()), in.cover(two.Name(), b.empty())); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(b.Dir(b.id), one.Name(), "name")
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a cover covers nothing: %v", err)
	}
	if err := os.WriteFile(name, nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a cover, which is every sandbox's: %v", err)
	}
	b.attach(one)
	if _, err := os.Stat(name); err != nil {
		t.Errorf("the volume: %v", err)
	}
	if err := b.DetachAll(t.Context(), b.id); err != nil {
		t.Error(err)
	}
	if there, err := mountsAt(b.base(b.id)); err != nil || len(there) > 0 || b.fake.used() != 0 {
		t.Errorf("left: %v, %v, %d uses", there, err, b.fake.used())
	}
}

// The teardown goes by what is in the portal, whoever put it there; while volumed is away
// what it has to be told stays.
func TestG12_TeardownGoesByThePortal(t *testing.T) {
	b := newBench(t)
	b.attach(mount("m1", "v1", false))
	b.attach(mount("m2", "v2", false))
	b.stop()
	another, err := Open(b.dir, b.socket) // a noded that has restarted
	if err != nil {
		t.Fatal(err)
	}
	if err := another.DetachAll(t.Context(), b.id); !errors.Is(err, volumeapi.ErrDown) {
		t.Errorf("without volumed: %v", err)
	}
	if ids, err := another.List(); err != nil || !slices.Contains(ids, b.id) {
		t.Errorf("the sandbox is not listed any more: %v, %v", ids, err)
	}
	b.serve()
	b.fake.failed = errdefs.New(errdefs.Exhausted, "the disk is full") // X41: nobody waits for it
	if err := another.DetachAll(t.Context(), b.id); err != nil {
		t.Errorf("a commit that fails: %v", err)
	}
	if ids, err := b.List(); err != nil || len(ids) > 0 || b.fake.used() != 0 {
		t.Errorf("there is still something: %v, %v, %d uses", ids, err, b.fake.used())
	}
	if data, err := os.ReadFile(filepath.Join(b.fake.dir, "v1", "name")); err != nil || string(data) != "v1" {
		t.Errorf("the volume's own file: %q, %v", data, err)
	}
	if err := another.DetachAll(t.Context(), b.id); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestC06_SymlinksAreNotFollowed(t *testing.T) {
	b := newBench(t)
	if err := os.Symlink("/etc", filepath.Join(b.fake.dir, "v3")); err != nil {
		t.Fatal(err)
	}
	m := mount("m3", "v3", false)
	if err := b.Attach(t.Context(), b.id, m); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a volume that is a symlink: %v", err)
	}
	for _, m := range []Mount{mount("../m", "v1", false), mount("m", "../v1", false), mount("m~x", "v1", false), mount("", "v1", false)} {
		if err := b.Attach(t.Context(), b.id, m); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("mount %q of %q: %v", m.ID, m.Volume.ID, err)
		}
	}
}
