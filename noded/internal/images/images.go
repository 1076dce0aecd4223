// Package images brings container images to the node.
//
// It pulls what is absent through containerd, unpacks it for the snapshotter and
// says what a sandbox may know of it. An image is somebody else's work: only the
// listed fields of its configuration are read, within bounds, and nothing in it
// chooses a mount, a label or a privilege. containerd keeps the images; the
// package keeps nothing but the pulls under way.
package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/pkg/reference"
	cerrdefs "github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"s0.run/internal/errdefs"
)

const (
	// pullTimeout bounds one pull with its unpacking, however many wait for it.
	pullTimeout = 15 * time.Minute
	// maxPulls is how many images come at a time: each takes network, disk and CPU
	// from the sandboxes that run. queueTimeout bounds the wait for the others.
	maxPulls, queueTimeout = 4, 5 * time.Minute
)

// Bounds of one image, checked before its layers are fetched.
const (
	maxLayers     = 127      // what the kernel's overlayfs and containerd take
	maxImageBytes = 32 << 30 // of all layers, compressed
)

// Config is what Images needs.
type Config struct {
	// Client speaks to containerd in the namespace of the node's sandboxes;
	// whoever made it closes it.
	Client      *containerd.Client
	Snapshotter string
	// PlainHTTPHosts are the registries, host or host:port, that are spoken to
	// without TLS: the one-machine registry on the loopback.
	PlainHTTPHosts []string
	// Room says why there is no room for another image, if there is none.
	Room func() error
	Log  *slog.Logger
}

// Images makes sure of images. Its methods are safe for concurrent use.
type Images struct {
	cfg   Config
	pulls singleflight.Group
	room  chan struct{} // holds a value per pull under way
	stall time.Duration // the constant, but in tests
}

// New makes an Images; it does not speak to containerd yet.
func New(cfg Config) *Images {
	return &Images{cfg: cfg, room: make(chan struct{}, maxPulls), stall: stallTime}
}

// Has tells whether Ensure would return without a pull.
func (i *Images) Has(ctx context.Context, ref string) bool {
	name, err := normalize(ref)
	if err != nil {
		return false
	}
	img, err := i.cfg.Client.GetImage(ctx, name)
	if err != nil {
		return false
	}
	ok, err := img.IsUnpacked(ctx, i.cfg.Snapshotter)
	return err == nil && ok
}

// Ensure returns when the image is on the node and unpacked. A reference that
// was pulled once is not asked for again: a tag stays what it was, and a node
// whose registry is away still starts what it has. Callers for the same image
// share one pull, which goes on when one of them has given up.
func (i *Images) Ensure(ctx context.Context, ref string) (Image, error) {
	name, err := normalize(ref)
	if err != nil {
		return Image{}, err
	}
	done := i.pulls.DoChan(name, func() (any, error) {
		return i.ensure(context.WithoutCancel(ctx), name)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return Image{}, classify(ref, r.Err)
		}
		return r.Val.(Image), nil
	case <-ctx.Done():
		return Image{}, errdefs.New(errdefs.Unavailable, "image %s is still being pulled", ref).WithCause(ctx.Err())
	}
}

func (i *Images) ensure(ctx context.Context, name string) (Image, error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout+queueTimeout)
	defer cancel()
	img, err := i.cfg.Client.GetImage(ctx, name)
	switch {
	case err == nil:
		err = i.unpack(ctx, img) // a crash may have come between pull and unpacking
	case cerrdefs.IsNotFound(err):
		img, err = i.pull(ctx, name)
	}
	if err != nil {
		return Image{}, err
	}
	pinned, err := i.pin(ctx, img)
	if err != nil {
		return Image{}, err
	}
	return Load(ctx, i.cfg.Client, pinned)
}

func (i *Images) unpack(ctx context.Context, img containerd.Image) error {
	ok, err := img.IsUnpacked(ctx, i.cfg.Snapshotter)
	if err != nil || ok {
		return err
	}
	return img.Unpack(ctx, i.cfg.Snapshotter)
}

func (i *Images) pull(ctx context.Context, name string) (containerd.Image, error) {
	select {
	case i.room <- struct{}{}:
		defer func() { <-i.room }()
	case <-time.After(queueTimeout):
		return nil, errdefs.New(errdefs.Unavailable, "too many other images are being pulled")
	}
	if err := i.cfg.Room(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	ctx, p := i.watchProgress(ctx)
	defer p.end()
	img, err := i.fetch(ctx, name, p)
	if err != nil && context.Cause(ctx) != nil {
		err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return img, err
}

func (i *Images) fetch(ctx context.Context, name string, p *progress) (containerd.Image, error) {
	begin := time.Now()
	img, err := i.cfg.Client.Pull(ctx, name,
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(i.cfg.Snapshotter),
		containerd.WithResolver(i.resolver(p)),
		containerd.WithImageHandlerWrapper(bounded),
	)
	if err != nil {
		return nil, err
	}
	i.cfg.Log.Info("image pulled", "image", name, "digest", img.Target().Digest, "seconds", time.Since(begin).Seconds())
	return img, nil
}

func (i *Images) resolver(p *progress) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(host string) ([]docker.RegistryHost, error) {
		return i.registries(host, p)
	}})
}

// bounded refuses a manifest whose layers are too many or too big, before they
// are fetched.
func bounded(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := next.Handle(ctx, desc)
		if err != nil || !images.IsManifestType(desc.MediaType) {
			return children, err
		}
		layers, bytes := 0, int64(0)
		for _, c := range children {
			if images.IsLayerType(c.MediaType) {
				layers++
				bytes += c.Size
			}
		}
		if layers > maxLayers || bytes > maxImageBytes {
			return nil, errTooBig
		}
		return children, nil
	})
}

var errTooBig = errdefs.New(errdefs.Unprocessable, "image has more than %d layers or %d bytes", maxLayers, int64(maxImageBytes))

// pin names the image by its digest, so that what a sandbox was warmed from
// stays on the node when the tag moves on.
func (i *Images) pin(ctx context.Context, img containerd.Image) (string, error) {
	name, err := reference.Parse(img.Name())
	if err != nil {
		return "", err
	}
	ref := name.Locator + "@" + img.Target().Digest.String()
	if ref == img.Name() {
		return ref, nil
	}
	_, err = i.cfg.Client.ImageService().Create(ctx, images.Image{Name: ref, Target: img.Target()})
	if err != nil && !cerrdefs.IsAlreadyExists(err) {
		return "", fmt.Errorf("naming %s: %w", ref, err)
	}
	return ref, nil
}

// classify says what a caller may do about a failed pull. Only the reference,
// which the tenant chose, is in the message.
func classify(ref string, err error) error {
	var known *errdefs.Error
	var status remoteerrors.ErrUnexpectedStatus
	denied := errors.Is(err, docker.ErrInvalidAuthorization) ||
		errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden)
	switch {
	case errors.As(err, &known):
		return known
	case cerrdefs.IsNotFound(err):
		return errdefs.New(errdefs.Unprocessable, "image %s does not exist or does not fit this node", ref).WithCause(err)
	case denied:
		return errdefs.New(errdefs.Unprocessable, "image %s: the registry denies access", ref).WithCause(err)
	case errors.Is(err, errStalled):
		return errdefs.New(errdefs.Timeout, "image %s: its registry sends nothing, or next to nothing", ref).WithCause(err)
	case errors.Is(err, context.DeadlineExceeded):
		return errdefs.New(errdefs.Timeout, "image %s: pulling took longer than %v", ref, pullTimeout).WithCause(err)
	}
	return errdefs.New(errdefs.Unavailable, "image %s can't be pulled now", ref).WithCause(err)
}
