package images

import (
	"archive/tar"
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"s0.run/internal/errdefs"
	"s0.run/internal/s0test/nodetest"
)

func TestEnsure(t *testing.T) {
	ctd := nodetest.NewContainerd(t)
	reg := nodetest.NewRegistry(t)
	var manifests atomic.Int64
	inner := reg.Config.Handler
	reg.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && filepath.Base(filepath.Dir(r.URL.Path)) == "manifests" {
			manifests.Add(1)
		}
		inner.ServeHTTP(w, r)
	})
	rootfs := nodetest.Rootfs(t)
	ref := reg.Push(t, "a/b:1", rootfs, v1.Config{Env: []string{"A=1"}})
	client := ctd.Client(t)
	var full error = errdefs.New(errdefs.Exhausted, "full")
	im := New(Config{Client: client, Snapshotter: "overlayfs", PlainHTTPHosts: []string{reg.Host}, Room: func() error { return full }, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	if _, err := im.Ensure(ctx, ref); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("D04: a pull onto a full disk: %v", err)
	}
	full = nil
	manifests.Store(0)
	var wg sync.WaitGroup
	for range 20 { // D12: one pull for all
		wg.Go(func() {
			if _, err := im.Ensure(ctx, ref); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := manifests.Load(); n != 1 {
		t.Errorf("the manifest was fetched %d times, want once", n)
	}
	img, err := im.Ensure(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if img.Ref != reg.Host+"/a/b@"+img.Digest || len(img.Env) != 1 {
		t.Errorf("image %+v", img)
	}
	if _, err := client.SnapshotService("overlayfs").Stat(ctx, img.ChainID); err != nil {
		t.Errorf("the image is not unpacked: %v", err)
	}

	// D12: pulls are few at a time, and what is there waits for none of them.
	for range maxPulls {
		im.turns.node <- struct{}{}
	}
	if !im.Has(ctx, ref) || im.Has(ctx, reg.Host+"/a/b:2") {
		t.Errorf("it has what was pulled: %v, and what was not: %v", im.Has(ctx, ref), im.Has(ctx, reg.Host+"/a/b:2"))
	}
	if _, err := im.Ensure(ctx, ref); err != nil {
		t.Errorf("an image that is there, while others are pulled: %v", err)
	}
	manifests.Store(0)
	waits := make(chan error, 1)
	go func() {
		_, err := im.Ensure(ctx, reg.Host+"/a/b:9")
		waits <- err
	}()
	select {
	case err := <-waits:
		t.Errorf("a pull too many: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	gaveUp, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := im.Ensure(gaveUp, reg.Host+"/a/b:3"); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a caller that gave up: %v", err)
	}
	for range maxPulls {
		<-im.turns.node
	}
	if err := <-waits; !errdefs.Is(err, errdefs.Unprocessable) {
		t.Errorf("the pull that waited: %v", err)
	}

	if _, err := im.Ensure(ctx, reg.Host+"/a/b:2"); !errdefs.Is(err, errdefs.Unprocessable) {
		t.Errorf("an image that does not exist: %v", err)
	}

	// The tag moves on: what was pulled stays what it was, by tag and by digest.
	if err := os.WriteFile(filepath.Join(rootfs, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	reg.Push(t, "a/b:1", rootfs, v1.Config{})
	reg.Close() // X44: and without a registry
	for _, r := range []string{ref, img.Ref} {
		if again, err := im.Ensure(ctx, r); err != nil || again.Digest != img.Digest {
			t.Errorf("%s again: %+v, %v", r, again, err)
		}
	}
	if _, err := im.Ensure(ctx, reg.Host+"/a/c"); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a registry that is away: %v", err)
	}
}

// A01: the files of an image that is on the node are those of who has them, not of
// who knows what they are called.
func TestC02_ToKnowADigestIsNotToHaveIt(t *testing.T) {
	l := newLab(t)
	secret := archiveOf(t, tar.Header{Name: "secret", Size: 1 << 10})
	victim, err := l.ensure(l.push("victim/private:1", nil, layerOf(t, secret, "gzip")))
	if err != nil {
		t.Fatal(err)
	}
	claimed := layerOf(t, archiveOf(t, tar.Header{Name: "mine"}), "gzip")
	claimed.diff = layerOf(t, secret, "").diff
	ref := l.push("thief/claims:1", nil, claimed)
	for range 2 {
		if got, err := l.ensure(ref); !errdefs.Is(err, errdefs.Unprocessable) || !strings.Contains(err.Error(), "not what its configuration says") {
			t.Fatalf("%+v, %v", got, err)
		}
		l.nothingStays(ref)
	}
	for range 2 { // whoever has it, in whatever form, shares it
		got, err := l.ensure(l.push("friend/same:1", nil, layerOf(t, secret, "zstd")))
		if err != nil || got.ChainID != victim.ChainID {
			t.Errorf("%+v, %v: want %s", got, err, victim.ChainID)
		}
	}
}
