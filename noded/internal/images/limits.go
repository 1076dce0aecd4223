package images

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"s0.run/internal/imageref"
)

// limits bound one image. The first group is checked before its layers are
// fetched, the second while they are unpacked.
type limits struct {
	layers    int
	metaBytes int64 // of a manifest, an index or a configuration
	bytes     int64 // of all layers, as they are fetched

	unpackedBytes int64 // of all layers, as tar archives
	entries       int   // of all layers
	nameBytes     int64 // of all their names, link targets and attributes: they are held in memory
	depth         int   // of one path
	time          time.Duration
}

var defaultLimits = limits{
	layers:    127, // what the kernel's overlayfs and containerd take
	metaBytes: 4 << 20,
	bytes:     16 << 30,

	unpackedBytes: 32 << 30,
	entries:       750_000, // the largest honest ones have half of that
	nameBytes:     128 << 20,
	depth:         256,
	time:          10 * time.Minute,
}

// overhead is what a pull may get beyond its layers: manifests, tokens and what
// was fetched twice because a connection broke.
const overhead = 16 << 20

// guarded looks at everything before it is fetched: what descriptors say beyond
// size and digest is dropped, for annotations become labels of snapshots and URLs
// are fetched from wherever they point to.
func (i *Images) guarded(p *progress) func(images.Handler) images.Handler {
	return func(next images.Handler) images.Handler {
		return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			layer := images.IsLayerType(desc.MediaType)
			if err := i.limits.descriptor(desc, layer); err != nil {
				return nil, err
			}
			desc.Annotations, desc.URLs, desc.Data = nil, nil, nil
			children, err := next.Handle(ctx, desc)
			if err != nil || !images.IsManifestType(desc.MediaType) {
				return children, err
			}
			if err := i.limits.manifest(children); err != nil {
				return nil, err
			}
			p.expect(i.missing(ctx, children))
			return children, nil
		})
	}
}

func (l limits) descriptor(desc ocispec.Descriptor, layer bool) error {
	if !imageref.ValidDigest(desc.Digest.String()) {
		return hostile("a part of it has no digest that can be checked")
	}
	if desc.Size < 0 || !layer && desc.Size > l.metaBytes {
		return hostilef("its manifest or configuration is larger than %d bytes", l.metaBytes)
	}
	return nil
}

// manifest refuses layers that are too many or too big, before they are fetched.
func (l limits) manifest(children []ocispec.Descriptor) error {
	layers, bytes := 0, int64(0)
	for _, c := range children {
		if !images.IsLayerType(c.MediaType) {
			continue
		}
		layers++
		if c.Size < 0 || c.Size > l.bytes-bytes { // never a sum that may not fit
			bytes = l.bytes + 1
			break
		}
		bytes += c.Size
	}
	if layers > l.layers || bytes > l.bytes {
		return hostilef("it has more than %d layers or %d bytes", l.layers, l.bytes)
	}
	return nil
}

// missing is how much of the layers is not on the node yet.
func (i *Images) missing(ctx context.Context, children []ocispec.Descriptor) (bytes int64) {
	for _, c := range children {
		if _, err := i.cfg.Client.ContentStore().Info(ctx, c.Digest); errdefs.IsNotFound(err) {
			bytes += c.Size
		}
	}
	return bytes
}
