// Package images finds, builds and pushes container images on this machine.
//
// An image is an OCI layout, an archive, one that [Build] left in s0's own store,
// or one of a builder's: docker, podman and buildah are driven, the first that
// works. It pushes with credentials that it is given and stores none. What it
// extracts goes to temporary directories of its own.
package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image is one that can be pushed. Close gives back what holds it.
type Image struct {
	v1.Image
	dirs []string
}

// Close removes what the image was extracted to.
func (i *Image) Close() error {
	var errs []error
	for _, d := range i.dirs {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

// Find finds an image: a directory or file of that name, one that was built into
// the store, or a builder's own.
func Find(ctx context.Context, source, store string) (*Image, error) {
	info, err := os.Stat(source)
	switch {
	case err == nil && info.IsDir():
		return fromLayout(source)
	case err == nil:
		return fromArchive(source)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if built := filepath.Join(store, fileName(source)); isLayout(built) {
		return fromLayout(built)
	}
	b, err := FindBuilder(ctx)
	if err != nil {
		return nil, fmt.Errorf("there is no file, directory or built image %q here: %w", source, err)
	}
	dir, err := os.MkdirTemp("", "s0-image-")
	if err != nil {
		return nil, err
	}
	archive := filepath.Join(dir, "image.tar")
	if err := b.export(ctx, source, archive); err != nil {
		return nil, errors.Join(fmt.Errorf("there is no file, directory or built image %q here, and %s has none: %w", source, b.Name, err), os.RemoveAll(dir))
	}
	img, err := fromArchive(archive)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	img.dirs = append(img.dirs, dir)
	return img, nil
}

func isLayout(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "oci-layout"))
	return err == nil
}

func fromLayout(dir string) (*Image, error) {
	if !isLayout(dir) {
		return nil, fmt.Errorf("%s is no OCI image layout: it has no file oci-layout", dir)
	}
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", dir, err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", dir, err)
	}
	img, err := one(index)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Image{Image: img}, nil
}

// one finds the one image of an index, or the one for Linux on a machine like this.
func one(index v1.ImageIndex) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	for _, d := range m.Manifests {
		if len(m.Manifests) == 1 || d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH {
			found = append(found, d)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("it holds %d images, %d of them for linux/%s: want one", len(m.Manifests), len(found), runtime.GOARCH)
	}
	if found[0].MediaType.IsIndex() {
		inner, err := index.ImageIndex(found[0].Digest)
		if err != nil {
			return nil, err
		}
		return one(inner)
	}
	return index.Image(found[0].Digest)
}

// fromArchive reads what `docker save` writes, or an OCI layout in a tar archive.
func fromArchive(file string) (*Image, error) {
	oci, err := holdsLayout(file)
	if err != nil {
		return nil, fmt.Errorf("%s is no archive of an image: %w", file, err)
	}
	if !oci {
		img, err := tarball.ImageFromPath(file, nil)
		if err != nil {
			return nil, fmt.Errorf("%s is no archive of an image: %w", file, err)
		}
		return &Image{Image: img}, nil
	}
	dir, err := os.MkdirTemp("", "s0-image-")
	if err != nil {
		return nil, err
	}
	if err := extract(file, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("extracting %s: %w", file, err), os.RemoveAll(dir))
	}
	img, err := fromLayout(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	img.dirs = append(img.dirs, dir)
	return img, nil
}

// walk calls do for each file of a tar archive.
func walk(file string, do func(h *tar.Header, r io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := do(h, r); err != nil {
			return err
		}
	}
}

func holdsLayout(file string) (oci bool, err error) {
	docker := false
	err = walk(file, func(h *tar.Header, _ io.Reader) error {
		oci = oci || path.Clean(h.Name) == "oci-layout"
		docker = docker || path.Clean(h.Name) == "manifest.json"
		return nil
	})
	return oci && !docker, err // docker writes both; its own says which image a tag means
}

var layoutFile = regexp.MustCompile(`^(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})$`)

// extract takes out of an archive what belongs to a layout.
func extract(file, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return err
	}
	return walk(file, func(h *tar.Header, r io.Reader) error {
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || !layoutFile.MatchString(name) {
			return nil
		}
		out, err := os.OpenFile(filepath.Join(dir, filepath.FromSlash(name)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		return errors.Join(err, out.Close())
	})
}

// fileName is a directory's name for an image's: no part of a name leads anywhere.
func fileName(image string) string {
	if !strings.Contains(image[strings.LastIndexByte(image, '/')+1:], ":") {
		image += ":latest"
	}
	return strings.NewReplacer("/", "%2F", ":", "%3A", `\`, "%5C", "..", "%2E%2E").Replace(image)
}

// Target is where to push, and as whom.
type Target struct {
	Reference      string
	User, Password string
}

// Push pushes an image and returns its digest. Layers that are there already are
// not sent. far is told how many bytes of how many are done.
func Push(ctx context.Context, img v1.Image, to Target, far func(done, total int64)) (digest string, err error) {
	ref, err := name.NewTag(to.Reference)
	if err != nil {
		return "", err
	}
	updates := make(chan v1.Update, 64)
	told := make(chan struct{})
	go func() {
		defer close(told)
		for u := range updates {
			far(u.Complete, u.Total)
		}
	}()
	err = remote.Write(ref, img, remote.WithContext(ctx), remote.WithProgress(updates), // which it closes
		remote.WithAuth(&authn.Basic{Username: to.User, Password: to.Password}))
	<-told
	if err != nil {
		return "", fmt.Errorf("pushing %s: %w", to.Reference, err)
	}
	hash, err := img.Digest()
	return hash.String(), err
}
