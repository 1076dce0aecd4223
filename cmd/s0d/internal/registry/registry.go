// Package registry serves images that are built on this machine from a local OCI
// registry, so that containerd pulls them like any others.
//
// Blobs lie on disk; the registry is filled from OCI layouts at start and owns
// its directory: what no layout names any more is removed. Over the network it
// is read-only: nobody else on the machine may change what sandboxes start from.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A Registry holds images by repository and tag.
type Registry struct {
	dir     string
	handler http.Handler
	keep    map[string]bool // hex digests of every blob that an image here names
}

// New makes an empty registry over a directory of blobs.
func New(dir string) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	handler := registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
		registry.Logger(log.New(io.Discard, "", 0)),
	)
	return &Registry{dir: dir, handler: handler, keep: map[string]bool{}}, nil
}

// Load adds the one image of an OCI layout as repository:tag and returns its
// digest. Blobs that are on disk already are not copied again.
func (r *Registry) Load(ctx context.Context, layoutDir, repository, tag string) (digest string, err error) {
	img, err := imageOf(layoutDir)
	if err != nil {
		return "", fmt.Errorf("image in %s: %w", layoutDir, err)
	}
	if err := r.takeBlobs(layoutDir, img); err != nil {
		return "", fmt.Errorf("loading %s from %s: %w", repository, layoutDir, err)
	}
	// A listener of its own, for this manifest alone: the one that others reach
	// never accepts a write. Every blob is found in place, and its digest checked.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: r.handler}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()

	ref, err := name.NewTag(l.Addr().String()+"/"+repository+":"+tag, name.Insecure)
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("loading %s from %s: %w", repository, layoutDir, err)
	}
	hash, err := img.Digest()
	return hash.String(), err
}

func imageOf(dir string) (v1.Image, error) {
	path, err := layout.FromPath(dir)
	if err != nil {
		return nil, err
	}
	index, err := path.ImageIndex()
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("the layout holds %d images: want 1", len(manifest.Manifests))
	}
	return path.Image(manifest.Manifests[0].Digest)
}

// takeBlobs copies an image's blobs where the registry looks for them. Uploaded
// instead, each would be held in memory whole.
func (r *Registry) takeBlobs(layoutDir string, img v1.Image) error {
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		r.keep[d.Digest.Hex] = true
		from := filepath.Join(layoutDir, "blobs", d.Digest.Algorithm, d.Digest.Hex)
		to := filepath.Join(r.dir, d.Digest.Algorithm, d.Digest.Hex)
		if info, err := os.Stat(to); err == nil && info.Size() == d.Size {
			continue
		}
		if err := copyWhole(from, to); err != nil {
			return err
		}
	}
	return nil
}

// copyWhole copies a file aside and renames it into place.
func copyWhole(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.CreateTemp(filepath.Dir(to), "copy-")
	if err != nil {
		return err
	}
	defer os.Remove(dst.Name())
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := dst.Close(); err != nil {
		return err
	}
	return os.Rename(dst.Name(), to)
}

// Prune removes the blobs that no loaded image names, and what interrupted loads
// left. It must not run beside Load.
func (r *Registry) Prune() error {
	return filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || r.keep[d.Name()] {
			return err
		}
		return os.Remove(path)
	})
}

// ServeHTTP serves reads.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this registry is read-only", http.StatusMethodNotAllowed)
		return
	}
	r.handler.ServeHTTP(w, req)
}
