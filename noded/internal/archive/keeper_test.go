package archive

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"s0.run/noded/internal/objects"
)

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

// sandboxes is a node's, for a keeper.
type sandboxes struct {
	changed chan struct{}
	stored  chan Ref // what the keeper has recorded
	dropped chan struct{}

	mu     sync.Mutex
	wanted []Image
	drops  int
}

func newSandboxes() *sandboxes {
	return &sandboxes{changed: make(chan struct{}, 1), stored: make(chan Ref, 100), dropped: make(chan struct{}, 100)}
}

func (s *sandboxes) set(list ...Image) {
	s.mu.Lock()
	s.wanted = list
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *sandboxes) Unstored() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.wanted)
}

func (s *sandboxes) ImagesChanged() <-chan struct{} { return s.changed }

func (s *sandboxes) Hold(Image) (release func(), ok bool) { return func() {}, true }

func (s *sandboxes) SetStored(_ context.Context, img Image) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.wanted, func(w Image) bool { return w.Ref == img.Ref && string(w.About) == string(img.About) })
	if i < 0 {
		return false, nil
	}
	s.wanted = slices.Delete(s.wanted, i, i+1)
	s.stored <- img.Ref
	return true, nil
}

func (s *sandboxes) DropStored(context.Context) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops--
	s.dropped <- struct{}{}
	return s.drops >= 0, nil
}

func runKeeper(t *testing.T, a *Archive, s *sandboxes) *Keeper {
	t.Helper()
	k := NewKeeper(KeeperConfig{
		Archive: a, Sandboxes: s, Crowded: func() bool { return false }, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return k
}

func wait[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("no", what)
	}
	return v
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never:", what)
		}
	}
}

// X43: images are stored when the store can take them, in the background.
func TestX43_TheKeeperStoresWhenItCan(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	var down atomic.Bool
	down.Store(true)
	a := newArchive(t, failingStore{store, func(context.Context, string) error {
		if down.Load() {
			return objects.ErrUnavailable
		}
		return nil
	}}, newKeys(t))
	s := newSandboxes()
	k := runKeeper(t, a, s)
	var want []Ref
	var list []Image
	for range 3 {
		img := Image{Ref{Team: "team", Sandbox: newID(t), Generation: 1}, makeImage(t), []byte(`{}`)}
		want, list = append(want, img.Ref), append(list, img)
	}
	s.set(list...)
	eventually(t, "it says what is wrong", func() bool {
		status := k.Status()
		return status.Waiting == 3 && strings.Contains(status.LastError, objects.ErrUnavailable.Error())
	})
	down.Store(false)
	for range want {
		ref := wait(t, "stored image", s.stored)
		want = slices.DeleteFunc(want, func(r Ref) bool { return r == ref })
	}
	if len(want) > 0 {
		t.Errorf("%v are not stored", want)
	}
	eventually(t, "all is well", func() bool { return k.Status() == Status{} })
}

// An upload ends when nobody wants its image any more, and leaves nothing; what has
// changed meanwhile is stored again.
func TestTheKeeperLetsGo(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	begun, cut := make(chan string, 100), make(chan struct{}, 100)
	a := newArchive(t, failingStore{store, func(ctx context.Context, key string) error {
		if !strings.HasSuffix(key, "00000001") {
			return nil
		}
		begun <- key
		<-ctx.Done() // a store that hangs
		cut <- struct{}{}
		return context.Cause(ctx)
	}}, newKeys(t))
	s := newSandboxes()
	k := runKeeper(t, a, s)
	img := Image{Ref{Team: "team", Sandbox: newID(t), Generation: 1}, makeImage(t), []byte(`{}`)}
	s.set(img)
	wait(t, "upload", begun)
	if err := os.RemoveAll(img.Dir); err != nil {
		t.Fatal(err)
	}
	s.set()
	wait(t, "end of the upload", cut)
	eventually(t, "nothing is left", func() bool { return len(keysOf(t, store, "")) == 0 })
	if status := k.Status(); status.LastError != "" {
		t.Errorf("it is called a failure: %s", status.LastError)
	}
}

func TestTheKeeperStoresAgainWhatHasChanged(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	s := newSandboxes()
	ref, dir := Ref{Team: "team", Sandbox: newID(t), Generation: 1}, makeImage(t)
	changed := false
	a := newArchive(t, failingStore{store, func(_ context.Context, key string) error {
		if key == ref.manifestKey() && !changed { // one upload of an image at a time
			changed = true
			s.set(Image{ref, dir, []byte(`"new"`)})
		}
		return nil
	}}, newKeys(t))
	runKeeper(t, a, s)
	s.set(Image{ref, dir, []byte(`"old"`)})
	wait(t, "stored image", s.stored)
	about, err := a.Fetch(t.Context(), ref, t.TempDir()+"/s/1")
	if err != nil || string(about) != `"new"` {
		t.Errorf("stored with %s: %v", about, err)
	}
}

// X41: a crowded disk is emptied of what is in the store, and of no more than it takes.
func TestX41_TheKeeperDropsWhatIsStored(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	s := newSandboxes()
	crowded := 2
	k := NewKeeper(KeeperConfig{
		Archive: newArchive(t, store, newKeys(t)), Sandboxes: s, Crowded: func() bool { crowded--; return crowded >= 0 },
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	s.drops = 5
	k.drop(t.Context())
	if len(s.dropped) != 2 {
		t.Errorf("dropped %d", len(s.dropped))
	}
	crowded, s.drops = 100, 1
	k.drop(t.Context())
	if len(s.dropped) != 4 { // one, and the one that there was not
		t.Errorf("then %d", len(s.dropped))
	}
}

// aged is a store whose objects' dates a test sets.
type aged struct {
	Store
	ages map[string]time.Duration
}

func (s aged) List(ctx context.Context, prefix string) iter.Seq2[objects.Object, error] {
	return func(yield func(objects.Object, error) bool) {
		for o, err := range s.Store.List(ctx, prefix) {
			o.Modified = o.Modified.Add(-s.ages[o.Key])
			if !yield(o, err) {
				return
			}
		}
	}
}

// G09: of uploads that are not whole, those go that are a day old, and few at a time.
func TestG09_Collect(t *testing.T) {
	t.Parallel()
	inner, _ := newDirStore(t)
	store := aged{inner, map[string]time.Duration{}}
	keys := newKeys(t)
	a := newArchive(t, store, keys)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	image := makeImage(t)
	begin := func(age time.Duration) (Ref, upload) { // as a node that died leaves it
		ref, u := Ref{Team: "team", Sandbox: newID(t), Generation: 1}, newUpload()
		if err := errors.Join(inner.Put(t.Context(), u.key(), ref.announce()), inner.Put(t.Context(), ref.chunkKey(u, 0), []byte("x")), inner.Put(t.Context(), ref.chunkKey(u, 1), []byte("y"))); err != nil {
			t.Fatal(err)
		}
		store.ages[u.key()] = age
		return ref, u
	}
	young, _ := begin(abandoned - time.Hour)
	var old []Ref
	for range 3 {
		ref, _ := begin(abandoned + time.Hour)
		old = append(old, ref)
	}
	whole := Ref{Team: "team", Sandbox: newID(t), Generation: 1} // whose note could not be removed
	if err := a.Upload(t.Context(), whole, image, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	u, err := a.wholeUpload(t.Context(), whole)
	if err == nil {
		err = inner.Put(t.Context(), u.key(), whole.announce())
	}
	if err != nil {
		t.Fatal(err)
	}
	store.ages[u.key()] = abandoned + time.Hour
	if c, err := a.Collect(t.Context(), true, log); err != nil || c != (Collection{Unfinished: 5, Abandoned: 4}) || len(keysOf(t, inner, uploadsPrefix)) != 5 {
		t.Errorf("a dry run: %+v, %v", c, err)
	}
	for pass := 4; pass > 0; pass-- {
		if c, err := a.Collect(t.Context(), false, log); err != nil || c.Abandoned != pass || c.Removed != 1 {
			t.Errorf("%d are due: %+v, %v", pass, c, err)
		}
	}
	for _, ref := range old {
		if left := keysOf(t, inner, ref.prefix()); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	if left := keysOf(t, inner, young.prefix()); len(left) != 2 {
		t.Errorf("of the younger one is left: %q", left)
	}
	if left := keysOf(t, inner, clockPrefix); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if _, err := a.Fetch(t.Context(), whole, t.TempDir()+"/s/1"); err != nil {
		t.Errorf("what was whole: %v", err)
	}
}

// G09: one that can't be removed keeps no other from it.
func TestG09_CollectPassesOverWhatItCannotRead(t *testing.T) {
	t.Parallel()
	inner, _ := newDirStore(t)
	store := aged{inner, map[string]time.Duration{}}
	a := newArchive(t, store, newKeys(t))
	for u, note := range map[upload][]byte{
		{}:                            []byte("no note"), // the first of every list
		{0: 0xff, uploadBytes - 1: 1}: Ref{Team: "team", Sandbox: newID(t), Generation: 1}.announce(),
		{0: 0xff, uploadBytes - 1: 2}: Ref{Team: "team", Sandbox: newID(t), Generation: 1}.announce(),
	} {
		if err := inner.Put(t.Context(), u.key(), note); err != nil {
			t.Fatal(err)
		}
		store.ages[u.key()] = abandoned + time.Hour
	}
	log := slog.New(slog.DiscardHandler)
	for due := 3; due > 1; due-- {
		if c, err := a.Collect(t.Context(), false, log); err == nil || c.Abandoned != due || c.Removed != 1 {
			t.Errorf("of %d, the first unreadable: %+v, %v", due, c, err)
		}
	}
	if left := keysOf(t, inner, uploadsPrefix); len(left) != 1 || left[0] != (upload{}).key() {
		t.Errorf("left: %q", left)
	}
}

// BenchmarkImage moves an image of 64 MiB of memory-like data: half zeros in pages, a
// quarter text, a quarter noise.
func BenchmarkImage(b *testing.B) {
	for name, f := range map[string]func(a *Archive, ref Ref, dir string) error{
		"upload": func(a *Archive, ref Ref, dir string) error { return a.Upload(b.Context(), ref, dir, []byte(`{}`)) },
		"fetch": func(a *Archive, ref Ref, _ string) error {
			_, err := a.Fetch(b.Context(), ref, b.TempDir()+"/s/1")
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			store, _ := newDirStore(b)
			a := newArchive(b, store, newKeys(b))
			a.rate.SetLimit(1 << 40)
			ref, dir := Ref{Team: "team", Sandbox: newID(b), Generation: 1}, memoryLike(b, 64<<20)
			if err := a.Upload(b.Context(), ref, dir, []byte(`{}`)); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(64 << 20)
			b.ReportAllocs()
			for b.Loop() {
				if err := f(a, ref, dir); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
