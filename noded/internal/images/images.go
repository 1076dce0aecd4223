// Package images brings container images to the node, and takes them away again.
//
// It pulls what is absent through containerd, unpacks it for the snapshotter and
// says what a sandbox may know of it. An image is somebody else's work: only the
// listed fields of its configuration are read, within bounds, its layers are
// unpacked by this package, within bounds, and nothing in it chooses a mount, a
// label or a privilege. containerd keeps the images; the package keeps the pulls
// under way and when which image was last asked for. What nothing has used for a
// while [Images.Run] removes, never what is in use or in a pull.
package images

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	cerrdefs "github.com/containerd/errdefs"
	"golang.org/x/sync/singleflight"

	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
)

const (
	// pullTimeout bounds one pull with its unpacking, however many wait for it.
	pullTimeout = 15 * time.Minute
	// maxPulls is how many images come at a time: each takes network, disk and CPU
	// from the sandboxes that run. queueTimeout bounds the wait for the others.
	maxPulls, queueTimeout = 4, 5 * time.Minute
	// answerMargin is how long before its deadline a caller that waits for a pull is
	// told how far it is: later there would be nobody to tell.
	answerMargin = 2 * time.Second
	// pullRetryAfter is what such a caller is told to wait.
	pullRetryAfter = 5 * time.Second
	// resolveTimeout bounds the question what a tag is now.
	resolveTimeout = 15 * time.Second
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
	// Registries are those that images may come from, beside PlainHTTPHosts.
	Registries imageref.Registries
	// Credentials are the node's own for a registry, if it has any.
	Credentials func(registry string) (user, password string)
	// Room says why there is no room for another image, if there is none.
	Room func() error
	// KeepFor is how long an image stays that nothing uses.
	KeepFor time.Duration
	Log     *slog.Logger
}

// Images makes sure of images. Its methods are safe for concurrent use.
type Images struct {
	cfg    Config
	pulls  singleflight.Group
	turns  turns
	stall  time.Duration // the constant, but in tests
	limits limits        // the constants, but in tests
	uses   uses

	mu       sync.Mutex
	progress map[string]*progress // by the name that is pulled
}

// New makes an Images; it does not speak to containerd yet.
func New(cfg Config) *Images {
	return &Images{
		cfg: cfg, turns: newTurns(), stall: stallTime, limits: defaultLimits,
		uses: newUses(), progress: map[string]*progress{},
	}
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
// share one pull, which goes on when one of them has given up. What it returned
// stays on the node for [Config.KeepFor] at least.
func (i *Images) Ensure(ctx context.Context, ref string) (Image, error) {
	name, err := normalize(ref)
	if err != nil {
		return Image{}, err
	}
	done := i.pulls.DoChan(name, func() (any, error) {
		return i.ensure(context.WithoutCancel(ctx), name)
	})
	waiting, cancel := untilAnswer(ctx)
	defer cancel()
	select {
	case r := <-done:
		if r.Err != nil {
			return Image{}, classify(ref, r.Err)
		}
		return r.Val.(Image), nil
	case <-waiting.Done():
		return Image{}, refusal(errdefs.Unavailable, "image %s is not there yet: %s", ref, i.Progress(ref)).
			WithRetryAfter(pullRetryAfter).WithCause(waiting.Err())
	}
}

// untilAnswer ends a little before its caller's deadline.
func untilAnswer(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) > 2*answerMargin {
		return context.WithDeadline(ctx, deadline.Add(-answerMargin))
	}
	return context.WithCancel(ctx)
}

func (i *Images) ensure(ctx context.Context, name string) (Image, error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout+queueTimeout)
	defer cancel()
	done, err := i.uses.begin(ctx, name)
	if err != nil {
		return Image{}, err
	}
	defer done()
	img, err := i.cfg.Client.GetImage(ctx, name)
	if err == nil {
		var ok bool
		if ok, err = img.IsUnpacked(ctx, i.cfg.Snapshotter); err == nil && !ok { // a crash may have come between
			err = i.inTurn(ctx, name, func(ctx context.Context, p *progress) error { return i.unpack(ctx, img, p) })
		}
	} else if cerrdefs.IsNotFound(err) {
		err = i.inTurn(ctx, name, func(ctx context.Context, p *progress) error {
			img, err = i.fetch(ctx, name, p)
			return err
		})
	}
	if err != nil {
		return Image{}, err
	}
	return i.pin(ctx, img)
}

// inTurn does the work of a pull when it is its turn, and has others see how far it is.
func (i *Images) inTurn(ctx context.Context, name string, pull func(context.Context, *progress) error) error {
	p := newProgress(i.limits)
	p.room = i.cfg.Room
	i.mu.Lock()
	i.progress[name] = p
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		delete(i.progress, name)
		i.mu.Unlock()
	}()
	queued, cancel := context.WithTimeout(ctx, queueTimeout)
	defer cancel()
	leave, err := i.turns.take(queued)
	if err != nil {
		return refusal(errdefs.Unavailable, "too many other images are being pulled").WithRetryAfter(pullRetryAfter).WithCause(err)
	}
	defer leave()
	if err := i.cfg.Room(); err != nil {
		return err
	}
	ctx, cancel = context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	ctx, end := p.watched(ctx, i.stall)
	defer end()
	err = pull(ctx, p)
	if err != nil && context.Cause(ctx) != nil {
		err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

// Progress says how far the pull of an image is; empty: there is none.
func (i *Images) Progress(ref string) string {
	name, err := normalize(ref)
	if err != nil {
		return ""
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if p := i.progress[name]; p != nil {
		return p.text()
	}
	return ""
}

// fetch gets an image and unpacks it. One that can't be unpacked does not stay:
// the next caller would find it, and nobody looks for it.
func (i *Images) fetch(ctx context.Context, name string, p *progress) (containerd.Image, error) {
	begin := time.Now()
	img, err := i.cfg.Client.Pull(ctx, name,
		containerd.WithResolver(i.resolver(p)),
		containerd.WithImageHandlerWrapper(i.guarded(p)),
	)
	if err != nil {
		return nil, err
	}
	if err := i.unpack(ctx, img, p); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		if derr := i.cfg.Client.ImageService().Delete(undo, name); derr != nil && !cerrdefs.IsNotFound(derr) {
			i.cfg.Log.Warn("removing an image that can't be unpacked", "image", name, "error", derr)
		}
		return nil, err
	}
	i.cfg.Log.Info("image pulled", "image", name, "digest", img.Target().Digest, "seconds", time.Since(begin).Seconds())
	return img, nil
}

// Resolve asks an image's registry which digest the reference has now.
func (i *Images) Resolve(ctx context.Context, ref string) (string, error) {
	r, err := parse(ref)
	if err != nil || r.Digest != "" {
		return r.Digest, err
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	_, desc, err := i.resolver(newProgress(i.limits)).Resolve(ctx, r.String())
	if err != nil {
		return "", classify(ref, err)
	}
	if err := desc.Digest.Validate(); err != nil || !imageref.ValidDigest(desc.Digest.String()) {
		return "", refusal(errdefs.Unprocessable, "image %s: its registry names no digest that can be used", ref)
	}
	return desc.Digest.String(), nil
}

// pin names the image by its digest, so that what a sandbox was warmed from
// stays on the node when the tag moves on. The name is in use by then: one that
// is there may be being removed.
func (i *Images) pin(ctx context.Context, img containerd.Image) (Image, error) {
	r, err := imageref.Parse(img.Name())
	if err != nil {
		return Image{}, err
	}
	ref := r.Pinned(img.Target().Digest.String()).String()
	done, err := i.uses.begin(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	defer done()
	if ref != img.Name() {
		_, err = i.cfg.Client.ImageService().Create(ctx, images.Image{Name: ref, Target: img.Target()})
	}
	if err != nil && !cerrdefs.IsAlreadyExists(err) {
		return Image{}, fmt.Errorf("naming %s: %w", ref, err)
	}
	return Load(ctx, i.cfg.Client, ref)
}
