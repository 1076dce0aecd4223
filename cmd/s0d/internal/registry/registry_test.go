package registry_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"s0.run/cmd/s0d/internal/registry"
)

func makeLayout(t *testing.T) (dir string, img v1.Image) {
	t.Helper()
	img, err := random.Image(1<<10, 2)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir, img
}

func TestServesALayoutReadOnly(t *testing.T) {
	t.Parallel()
	dir, img := makeLayout(t)
	r, err := registry.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := r.Load(t.Context(), dir, "s0/default", "latest")
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := img.Digest(); digest != want.String() {
		t.Errorf("Load = %s, want %s", digest, want)
	}
	srv := httptest.NewServer(r)
	defer srv.Close()

	ref, err := name.NewDigest(strings.TrimPrefix(srv.URL, "http://")+"/s0/default@"+digest, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := pulled.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		rc, err := l.Compressed() // verifies the digest as it is read
		if err != nil {
			t.Fatal(err)
		}
		rc.Close()
	}

	other, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref.Context().Name()+":latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, other); err == nil {
		t.Error("a write over the network succeeded")
	}
	resp, err := http.Post(srv.URL+"/v2/s0/default/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("upload: status %d, want 405", resp.StatusCode)
	}
}

func TestPruneKeepsWhatIsLoaded(t *testing.T) {
	t.Parallel()
	blobs := t.TempDir()
	old, err := registry.New(blobs)
	if err != nil {
		t.Fatal(err)
	}
	oldLayout, _ := makeLayout(t)
	if _, err := old.Load(t.Context(), oldLayout, "s0/default", "latest"); err != nil {
		t.Fatal(err)
	}

	next, err := registry.New(blobs)
	if err != nil {
		t.Fatal(err)
	}
	newLayout, img := makeLayout(t)
	if _, err := next.Load(t.Context(), newLayout, "s0/default", "latest"); err != nil {
		t.Fatal(err)
	}
	if err := next.Prune(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(blobs, "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	layers, _ := img.Layers()
	if want := len(layers) + 1; len(left) != want {
		t.Errorf("%d blobs are left, want the new image's %d", len(left), want)
	}
}

func TestLoadRefusesWhatIsNoLayout(t *testing.T) {
	t.Parallel()
	r, err := registry.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Load(t.Context(), t.TempDir(), "s0/default", "latest"); err == nil {
		t.Error("Load of an empty directory succeeded")
	}
}
