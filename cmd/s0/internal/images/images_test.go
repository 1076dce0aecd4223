package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func newImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(1<<10, 2)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digest(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func writeLayout(t *testing.T, dir string, imgs ...v1.Image) {
	t.Helper()
	p, err := layout.Write(dir, empty.Index)
	for n, img := range imgs {
		arch := runtime.GOARCH
		if n > 0 {
			arch = "s390x"
		}
		err = errors.Join(err, p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: arch})))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// archiveLayout puts a layout, and files that do not belong there, into a tar archive.
func archiveLayout(t *testing.T, dir, file string) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, odd := range []string{"../escaped", "/tmp/s0-escaped", "blobs/sha256/../../../escaped"} {
		if err := w.WriteHeader(&tar.Header{Name: odd, Typeflag: tar.TypeReg, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), os.WriteFile(file, buf.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dir, img := t.TempDir(), newImage(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	writeLayout(t, path("layout"), img)
	writeLayout(t, path("many"), img, newImage(t))
	writeLayout(t, path("none"))
	writeLayout(t, path(fileName("app")), img)
	archiveLayout(t, path("layout"), path("oci.tar"))
	tag, _ := name.NewTag("app:latest")
	if err := tarball.WriteToFile(path("docker.tar"), tag, img); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("junk"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{path("layout"), path("many"), path("oci.tar"), path("docker.tar"), "app", "app:latest"} {
		found, err := Find(t.Context(), source, dir)
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if digest(t, found.Image) != digest(t, img) {
			t.Errorf("%s is another image", source)
		}
		held := found.dirs
		if err := found.Close(); err != nil {
			t.Error(err)
		}
		for _, d := range held {
			if _, err := os.Stat(d); err == nil {
				t.Errorf("%s: %s is left", source, d)
			}
		}
	}
	for source, says := range map[string]string{
		path("none"): "holds 0 images", path("junk"): "no archive of an image", dir: "no file oci-layout", "app:v2": "apt install buildah", "../x": "apt install buildah",
	} {
		if _, err := Find(t.Context(), source, dir); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", source, err, says)
		}
	}
	for _, escaped := range []string{"/tmp/s0-escaped", filepath.Join(os.TempDir(), "escaped")} {
		if _, err := os.Stat(escaped); err == nil {
			t.Errorf("an archive wrote %s", escaped)
		}
	}
}

// A builder is driven as its manual says; the first that works is taken.
func TestBuild(t *testing.T) {
	bin, store, img := t.TempDir(), t.TempDir(), newImage(t)
	tag, _ := name.NewTag("s0-build/app:v1")
	built := filepath.Join(bin, "built.tar")
	if err := tarball.WriteToFile(built, tag, img); err != nil {
		t.Fatal(err)
	}
	calls := filepath.Join(bin, "calls")
	script := func(name, body string) {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho \"$0 $*\" >> "+calls+"\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("docker", "echo no daemon >&2; exit 1\n")
	script("buildah", fmt.Sprintf("case $1 in push) cp %s ${3#oci-archive:};; esac\n", built))
	t.Setenv("PATH", bin+":/bin:/usr/bin")
	if _, err := os.Stat("/usr/bin/podman"); err == nil {
		script("podman", "exit 1\n")
	}
	b, err := FindBuilder(t.Context())
	if err != nil || b.Name != "buildah" {
		t.Fatalf("%+v, %v", b, err)
	}
	for range 2 { // the second replaces the first
		dir, err := Build(t.Context(), b, store, BuildOptions{Context: "ctx", Name: "team/app:v1", File: "F", Platform: "linux/amd64", Pull: true, NoCache: true, Out: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		found, err := Find(t.Context(), "team/app:v1", store)
		if err != nil || digest(t, found.Image) != digest(t, img) || filepath.Dir(dir) != store {
			t.Errorf("built into %s: %v", dir, err)
		}
	}
	raw, _ := os.ReadFile(calls)
	for _, want := range []string{"buildah build --format oci -t s0-build/team-app:v1", "--file F", "--platform linux/amd64", "--pull", "--no-cache", " ctx\n"} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%q was not said: %s", want, raw)
		}
	}
	script("buildah", "[ $1 = info ] || { echo the reason >&2; exit 3; }\n")
	if _, err := Build(t.Context(), b, store, BuildOptions{Name: "x", Out: io.Discard}); err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("a build that fails: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(store, ".build-*")); len(left) != 0 {
		t.Errorf("left in the store: %v", left)
	}
}

func TestPush(t *testing.T) {
	t.Parallel()
	var asked atomic.Value
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		asked.Store(user + ":" + password)
		inner.ServeHTTP(w, r)
	}))
	defer s.Close()
	img := mutate.MediaType(newImage(t), "application/vnd.oci.image.manifest.v1+json")
	var done, total int64
	to := Target{Reference: strings.TrimPrefix(s.URL, "http://") + "/t-00000000/app:v1", User: "u", Password: "p"}
	got, err := Push(t.Context(), img, to, func(d, n int64) { done, total = d, n })
	want, _ := img.Digest()
	if err != nil || got != want.String() || asked.Load() != "u:p" || done == 0 || done != total {
		t.Errorf("pushed %s as %v, %d of %d: %v", got, asked.Load(), done, total, err)
	}
	s.Close()
	if _, err := Push(t.Context(), img, Target{Reference: "bad reference"}, func(int64, int64) {}); err == nil {
		t.Error("pushed to nowhere")
	}
}
