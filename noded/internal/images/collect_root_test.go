package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/errdefs"
)

// clock makes the lab's images believe what time it is.
func (l *lab) clock() (forward func(time.Duration)) {
	var ahead atomic.Int64
	l.im.uses.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	return func(d time.Duration) { ahead.Add(int64(d)) }
}

func (l *lab) simple(n int) string {
	return l.push(fmt.Sprintf("used/app%d:1", n), nil, layerOf(l.T, archiveOf(l.T, tar.Header{Name: fmt.Sprint("f", n), Size: 1 << 10}), "gzip"))
}

func (l *lab) mustEnsure(ref string) Image {
	l.Helper()
	img, err := l.ensure(ref)
	if err != nil {
		l.Fatal(err)
	}
	return img
}

func (l *lab) collect(wanted ...string) int {
	l.Helper()
	total := 0
	for { // a look removes a few
		n, err := l.im.Collect(l.Context(), func() ([]string, bool) { return wanted, true })
		if err != nil {
			l.Fatal(err)
		}
		if total += n; n == 0 {
			return total
		}
	}
}

func (l *lab) has(ref string) bool { return l.im.Has(l.Context(), ref) }

// D12: an image that nothing uses goes after a while; one that a pool wants, that a
// container was made from or that was asked for lately never does.
func TestD12_UnusedImagesAreCollected(t *testing.T) {
	l := newLab(t)
	forward := l.clock()
	pool, container, late, unused := l.simple(1), l.simple(2), l.simple(3), l.simple(4)
	for _, ref := range []string{pool, container, late, unused} {
		l.mustEnsure(ref)
	}
	made := l.mustEnsure(container)
	spec, err := typeurl.MarshalAny(&specs.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.client.ContainerService().Create(t.Context(), containers.Container{ID: "c", Image: made.Ref, Spec: spec, Runtime: containers.RuntimeInfo{Name: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	if n := l.collect(pool); n != 0 {
		t.Errorf("%d images went that were asked for just now", n)
	}
	forward(l.im.cfg.KeepFor)
	l.mustEnsure(late)
	if n := l.collect(pool); n != 0 {
		t.Errorf("%d images went at the first look that found them unused", n)
	}
	// Another process goes on where this one was.
	next := New(l.im.cfg)
	next.limits, next.uses.now = l.im.limits, l.im.uses.now
	l.im = next
	forward(l.im.cfg.KeepFor)
	l.mustEnsure(late)
	if n, err := l.im.Collect(t.Context(), func() ([]string, bool) { return nil, false }); n != 0 || err != nil {
		t.Errorf("G09: nobody knows what pools want, and %d images went (%v)", n, err)
	}
	if n := l.collect(pool); n != 2 { // its tag and its digest
		t.Errorf("%d names went, want the unused image's two", n)
	}
	for ref, want := range map[string]bool{pool: true, container: true, made.Ref: true, late: true, unused: false} {
		if l.has(ref) != want {
			t.Errorf("%s: there %v, want %v", ref, !want, want)
		}
	}
	usage, err := l.im.Usage(t.Context())
	if err != nil || usage.GetImages() != 3 || usage.GetContentBytes() == 0 || usage.GetSnapshotBytes() == 0 {
		t.Errorf("usage %v, %v", usage, err)
	}
	l.mustEnsure(unused) // and comes back when it is wanted again
	if err := l.client.ContainerService().Delete(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
}

// Whoever was given an image can start it, also while images are being collected
// and their content with them.
func TestCollectionsRaceStarts(t *testing.T) {
	l := newLab(t)
	forward := l.clock()
	refs := []string{l.simple(1), l.simple(2), l.simple(3)}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var collected atomic.Int64
	wg.Go(func() {
		for ctx.Err() == nil {
			n, err := l.im.Collect(ctx, func() ([]string, bool) { return nil, true })
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			collected.Add(int64(n))
			forward(l.im.cfg.KeepFor / 2)
			lease, err := l.client.LeasesService().Create(ctx, leases.WithRandomID()) // its end has containerd collect
			if err == nil {
				err = l.client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
			}
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	sn := l.client.SnapshotService("overlayfs")
	for n := 0; n < 30 || collected.Load() == 0; n++ {
		if n == 30 {
			refs = refs[:1] // and nobody starts the others, however slow collections are
		}
		held := l.im.uses.now()
		img := l.mustEnsure(refs[n%len(refs)])
		key := fmt.Sprint("start-", n)
		// What package runtime does with it.
		_, err := sn.Prepare(t.Context(), key, img.ChainID)
		if err == nil {
			_, err = Load(t.Context(), l.client, img.Ref)
		}
		if late := l.im.uses.now().Sub(held) >= l.im.cfg.KeepFor; err != nil && !late { // the clock of this test runs
			t.Fatalf("start %d: %v", n, err)
		}
		_ = sn.Remove(t.Context(), key)
	}
	stop()
	wg.Wait()
}

// The name by which an image is given out may be being removed, while its tag is in use:
// who gets the image waits, and names it anew.
func TestAnImageIsNotGivenAwayWithItsName(t *testing.T) {
	l := newLab(t)
	forward := l.clock()
	ref := l.simple(1)
	given := l.mustEnsure(ref)
	named, err := l.client.ImageService().Get(t.Context(), given.Ref)
	if err != nil {
		t.Fatal(err)
	}
	forward(l.im.cfg.KeepFor)
	ensured := make(chan error, 1)
	removed, err := l.im.uses.remove(named.Name, l.im.cfg.KeepFor, func() error {
		go func() {
			_, err := l.ensure(ref)
			ensured <- err
		}()
		select {
		case err := <-ensured: // which it must not be yet
			ensured <- err
		case <-time.After(200 * time.Millisecond):
		}
		return l.im.remove(t.Context(), named)
	})
	if !removed || err != nil {
		t.Fatalf("the name was removed: %v, %v", removed, err)
	}
	if err := <-ensured; err != nil || !l.has(given.Ref) {
		t.Errorf("the image was given out (%v), and is there: %v", err, l.has(given.Ref))
	}
}

// Who waits for a pull is told how far it is, in time, and the pull goes on; X44:
// what is there starts although its registry hangs.
func TestX44_WaitersAreTold(t *testing.T) {
	l := newLab(t)
	there := l.simple(1)
	first := l.mustEnsure(there)
	layer := layerOf(t, archiveOf(t, tar.Header{Name: "a", Size: 3 << 20}), "")
	hash, _ := layer.Digest()
	slow := l.push("slow/app:1", nil, layer)
	release := make(chan struct{})
	inner := l.reg.Config.Handler
	l.reg.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, hash.String()) {
			w.Header().Set("Content-Length", fmt.Sprint(len(layer.raw)))
			_, _ = w.Write(layer.raw[:1<<20])
			w.(http.Flusher).Flush()
			<-release
			_, _ = w.Write(layer.raw[1<<20:])
			return
		}
		inner.ServeHTTP(w, r)
	})
	pulled := make(chan error, 1)
	go func() {
		_, err := l.ensure(slow)
		pulled <- err
	}()
	const far = "pulling image: 2 of 4 MB"
	for l.im.Progress(slow) != far {
		select {
		case err := <-pulled:
			t.Fatalf("pulled from a registry that hangs: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*answerMargin+time.Second)
	defer cancel()
	_, err := l.im.Ensure(ctx, slow)
	told := errdefs.From(err)
	if told.Kind != errdefs.Unavailable || told.RetryAfter == 0 || !strings.Contains(told.Message, far) {
		t.Errorf("%v (%q), want how far it is", err, told.Message)
	}
	again := l.mustEnsure(there)
	if again.Ref != first.Ref || again.ChainID != first.ChainID {
		t.Errorf("what was there: %+v", again)
	}
	close(release)
	if err := <-pulled; err != nil {
		t.Errorf("who waited for it: %v", err)
	}
	if img := l.mustEnsure(slow); img.Ref == "" || l.im.Progress(slow) != "" {
		t.Errorf("when it has come: %+v, progress %q", img, l.im.Progress(slow))
	}
	if _, err := l.im.uses.begin(canceled(), "x"); err != nil {
		t.Errorf("a use of what nobody removes waits for nothing: %v", err)
	}
	l.im.uses.removing["y"] = make(chan struct{})
	if _, err := l.im.uses.begin(canceled(), "y"); !errors.Is(err, context.Canceled) {
		t.Errorf("a use of what is being removed: %v", err)
	}
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
