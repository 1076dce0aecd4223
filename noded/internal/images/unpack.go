package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/continuity/fs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	// unpackNice keeps the work of unpacking behind everything else that noded does.
	unpackNice = 10
	// roomEvery is how much is written between two looks at the disk.
	roomEvery = 64 << 20
	// maxWindow bounds what a zstd frame has us hold in memory: what the format asks
	// every decoder to take, and a bit.
	maxWindow = 32 << 20
)

// unpack makes the image's layers snapshots, within the limits. containerd's own
// unpacking has none: it writes as long as a layer goes on.
func (i *Images) unpack(ctx context.Context, img containerd.Image, p *progress) error {
	ctx, release, err := i.cfg.Client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }() // it ends by itself otherwise
	layers, config, err := i.layersOf(ctx, img)
	if err != nil {
		return err
	}
	p.unpacks(len(layers))
	a := &applier{content: i.cfg.Client.ContentStore(), limits: i.limits, room: i.cfg.Room, deadline: time.Now().Add(i.limits.time)}
	err = behind(func() error {
		sn, chain := i.cfg.Client.SnapshotService(i.cfg.Snapshotter), []digest.Digest(nil)
		for _, layer := range layers {
			a.bottom, a.want = len(chain) == 0, layer.Diff.Digest
			applied, err := rootfs.ApplyLayer(ctx, layer, chain, sn, a)
			if err == nil {
				err = a.prove(ctx, layer.Blob, applied)
			}
			if err != nil {
				return err
			}
			chain = append(chain, layer.Diff.Digest)
			p.unpacked.Add(1)
		}
		return i.hold(ctx, config, identity.ChainID(chain).String())
	})
	return unpackError(err)
}

// unpackError finds what is the image's fault.
func unpackError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum),
		errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, zstd.ErrCRCMismatch), errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w (%w)", hostile("a layer is broken"), err)
	}
	link, linking := errors.AsType[*os.LinkError](err)
	misplaced := linking && link.Op == "link" && errors.Is(err, unix.ENOENT) || slices.ContainsFunc(
		[]error{unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EEXIST}, func(no error) bool { return errors.Is(err, no) })
	if misplaced {
		return fmt.Errorf("%w (%w)", hostile("a layer has a file that can't be where it is said to be"), err)
	}
	return err
}

// layersOf pairs the layers as they were fetched with what they must be unpacked.
func (i *Images) layersOf(ctx context.Context, img containerd.Image) ([]rootfs.Layer, ocispec.Descriptor, error) {
	manifest, err := images.Manifest(ctx, i.cfg.Client.ContentStore(), img.Target(), img.Platform())
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("reading its manifest: %w", err)
	}
	spec, err := img.Spec(ctx)
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("%w (%w)", hostile("its configuration can't be read"), err)
	}
	if !img.Platform().Match(spec.Platform) {
		return nil, ocispec.Descriptor{}, hostilef("it is for %.40s/%.40s and does not fit this node", spec.OS, spec.Architecture)
	}
	diffs := spec.RootFS.DiffIDs
	if len(diffs) == 0 || len(diffs) != len(manifest.Layers) {
		return nil, ocispec.Descriptor{}, hostilef("it has %d layers, its configuration %d: want as many, and one at least", len(manifest.Layers), len(diffs))
	}
	layers := make([]rootfs.Layer, len(diffs))
	for n, blob := range manifest.Layers {
		if !images.IsLayerType(blob.MediaType) || diffs[n].Validate() != nil {
			return nil, ocispec.Descriptor{}, hostile("it has a layer that is no file system")
		}
		layers[n] = rootfs.Layer{
			Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffs[n]},
			Blob: ocispec.Descriptor{MediaType: blob.MediaType, Digest: blob.Digest, Size: blob.Size},
		}
	}
	return layers, manifest.Config, nil
}

// hold ties the snapshot to the image: containerd's collector then knows that one
// needs the other.
func (i *Images) hold(ctx context.Context, config ocispec.Descriptor, chainID string) error {
	label := "containerd.io/gc.ref.snapshot." + i.cfg.Snapshotter
	_, err := i.cfg.Client.ContentStore().Update(ctx, content.Info{Digest: config.Digest, Labels: map[string]string{label: chainID}}, "labels."+label)
	return err
}

// behind runs f with less claim to the CPU than the rest of the process.
func behind(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()                                 // and never unlocks: the thread ends with f
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, unpackNice) // of this thread alone; without it f is only in the way
		done <- f()
	}()
	return <-done
}

// applier unpacks layers of one image, which share their limits.
type applier struct {
	content  content.Store
	limits   limits
	room     func() error
	deadline time.Time
	want     digest.Digest // of the layer, unpacked
	bottom   bool          // it is the lowest: there is nothing that it could hide

	bytes, names, sinceLook int64
	entries                 int

	root   string // where the layer is unpacked
	dir    string // of the entry before, as it was named; "": none that still leads there
	detour int64  // how much longer dir is where its links lead to
}

// Apply implements diff.Applier.
func (a *applier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	before := a.bytes
	err := a.read(ctx, desc, func(ctx context.Context, r io.Reader) error { return a.extract(ctx, mounts, r) })
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: a.bytes - before, Digest: a.want}, err
}

// prove sees that a layer is what its configuration says also where there is a
// snapshot of that already: it may be another team's, and to know its name is not
// to have its files. Of each blob it is seen once.
func (a *applier) prove(ctx context.Context, blob ocispec.Descriptor, applied bool) error {
	if !applied {
		info, err := a.content.Info(ctx, blob.Digest)
		if err != nil || info.Labels[labels.LabelUncompressed] == a.want.String() {
			return err
		}
		if err := a.read(ctx, blob, func(context.Context, io.Reader) error { return nil }); err != nil {
			return err
		}
	}
	seen := content.Info{Digest: blob.Digest, Labels: map[string]string{labels.LabelUncompressed: a.want.String()}}
	_, err := a.content.Update(ctx, seen, "labels."+labels.LabelUncompressed)
	return err
}

// read has use take a layer's archive, within the limits, and compares its digest.
func (a *applier) read(ctx context.Context, desc ocispec.Descriptor, use func(context.Context, io.Reader) error) error {
	// Of this alone: what is undone afterwards must have time.
	ctx, cancel := context.WithDeadlineCause(ctx, a.deadline, hostilef("unpacking it takes longer than %v", a.limits.time))
	defer cancel()
	err := a.verify(ctx, desc, use)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}

func (a *applier) verify(ctx context.Context, desc ocispec.Descriptor, use func(context.Context, io.Reader) error) error {
	blob, err := a.content.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	plain, err := decompress(content.NewReader(blob))
	if err != nil {
		return fmt.Errorf("%w (%w)", hostile("a layer is compressed in no way that is known"), err)
	}
	defer plain.Close()
	sum := digest.Canonical.Digester()
	bounded := reader(func(buf []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := plain.Read(buf)
		if cerr := a.count(n); cerr != nil {
			return n, cerr
		}
		return n, err // io.EOF as it is
	})
	r := io.TeeReader(bounded, sum.Hash())
	if err := use(ctx, r); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // whatever follows the archive counts, too
		return err
	}
	if sum.Digest() != a.want {
		return hostile("a layer is not what its configuration says")
	}
	return nil
}

type reader func([]byte) (int, error)

func (r reader) Read(buf []byte) (int, error) { return r(buf) }

// count bounds what comes out of the decompressor, and stops it when the disk is full.
func (a *applier) count(n int) error {
	a.bytes += int64(n)
	if a.bytes > a.limits.unpackedBytes {
		return hostilef("it is larger than %d bytes when it is unpacked", a.limits.unpackedBytes)
	}
	if a.sinceLook += int64(n); a.sinceLook >= roomEvery {
		a.sinceLook = 0
		return a.room()
	}
	return nil
}

// extract unpacks into the snapshot that the mounts describe. Into the upper
// directory of an overlay it writes directly, as containerd does: what a layer
// hides becomes a mark there, and is not looked for in the layers below.
func (a *applier) extract(ctx context.Context, mounts []mount.Mount, r io.Reader) error {
	filter := archive.WithFilter(a.accept)
	if len(mounts) == 1 && mounts[0].Type == "overlay" {
		if upper, lower := overlayDirs(mounts[0].Options); upper != "" {
			a.root, a.dir = upper, ""
			_, err := archive.Apply(ctx, upper, r, filter, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(lower))
			return err
		}
	}
	return mount.WithTempMount(ctx, mounts, func(root string) error {
		a.root, a.dir = root, ""
		_, err := archive.Apply(ctx, root, r, filter)
		return err
	})
}

func overlayDirs(options []string) (upper string, lower []string) {
	for _, o := range options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		} else if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(dirs, ":")
		}
	}
	return upper, lower
}

const (
	xattr      = "SCHILY.xattr."
	maxName    = 4096
	whiteout   = ".wh."
	capability = "security.capability"
)

// accept looks at an entry before it is unpacked. That no path leaves the root,
// through links or otherwise, archive.Apply sees to.
func (a *applier) accept(h *tar.Header) (bool, error) {
	a.entries++
	isSparse := sparse(h)
	a.slim(h)
	if err := a.follow(h); err != nil {
		return false, err
	}
	switch {
	case a.entries > a.limits.entries:
		return false, hostilef("it has more than %d files", a.limits.entries)
	case a.names > a.limits.nameBytes:
		return false, hostilef("the names and attributes of its files are longer than %d bytes", a.limits.nameBytes)
	case len(h.Name) > maxName || len(h.Linkname) > maxName || strings.Count(h.Name, "/") > a.limits.depth:
		return false, hostile("a file in it has a path that is too long")
	case h.Name == ".." || strings.HasPrefix(h.Name, "../") || h.Typeflag == tar.TypeLink && leaves(h.Linkname):
		return false, hostile("a file in it lies outside of its root")
	case isSparse: // it would be written whole, however little of it is read
		return false, hostile("a file in it is stored as a sparse one")
	}
	device := h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock // a sandbox has its own
	hides := a.bottom && strings.HasPrefix(path.Base(h.Name), whiteout)
	return !device && !hides, nil
}

// slim leaves of a header what is unpacked, in strings and a map of its own. Those
// of directories are held until their layer is done, and with a word of one an
// extended header of a megabyte would be.
func (a *applier) slim(h *tar.Header) {
	all := h.PAXRecords
	//lint:ignore SA1019 the old map holds what the new one loses
	h.PAXRecords, h.Xattrs, h.Uname, h.Gname = nil, nil, "", ""
	h.Name, h.Linkname = strings.Clone(h.Name), strings.Clone(h.Linkname)
	a.names += int64(len(h.Name) + len(h.Linkname))
	for key, value := range all {
		name, is := strings.CutPrefix(key, xattr)
		// trusted.overlay.* would speak to the host's overlayfs.
		if !is || !strings.HasPrefix(name, "user.") && name != capability {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[strings.Clone(key)] = strings.Clone(value)
		a.names += int64(len(key) + len(value))
	}
}

// follow counts how much longer the file's path is where links lead to: that, and
// not the name that it goes by, archive.Apply holds until the layer is done.
func (a *applier) follow(h *tar.Header) error {
	if dir := path.Dir(h.Name); dir != a.dir {
		led, err := fs.RootPath(a.root, dir)
		if err != nil {
			return err
		}
		a.dir, a.detour = dir, int64(max(0, len(led)-len(a.root)-len(dir)))
	}
	a.names += a.detour
	if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir { // the next may go by this one
		a.dir = ""
	}
	return nil
}

func sparse(h *tar.Header) bool {
	_, pax := h.PAXRecords["GNU.sparse.major"]
	_, old := h.PAXRecords["GNU.sparse.map"]
	return h.Typeflag == tar.TypeGNUSparse || pax || old
}

func leaves(link string) bool {
	link = path.Clean(strings.TrimLeft(link, "/"))
	return link == ".." || strings.HasPrefix(link, "../")
}

// decompress recognises gzip and zstd by their first bytes, as everybody does:
// media types are wrong too often.
func decompress(r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(buffered)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(buffered), nil
}
