package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/s0test/nodetest"
)

// blob is a layer of any bytes, which says of itself what it likes.
type blob struct {
	raw  []byte
	diff v1.Hash
	kind types.MediaType
}

func (b blob) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(b.raw))
	return h, err
}
func (b blob) DiffID() (v1.Hash, error) { return b.diff, nil }
func (b blob) Size() (int64, error)     { return int64(len(b.raw)), nil }
func (b blob) MediaType() (types.MediaType, error) {
	return b.kind, nil
}
func (b blob) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b.raw)), nil
}
func (b blob) Uncompressed() (io.ReadCloser, error) { return b.Compressed() }

// archiveOf is a tar of headers; a regular file has Size zeros.
func archiveOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if len(h.PAXRecords) > 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// layerOf is a layer whose configuration is honest, compressed in one way or none.
func layerOf(t *testing.T, plain []byte, compression string) blob {
	t.Helper()
	diff, _, err := v1.SHA256(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	var w io.WriteCloser
	switch compression {
	case "gzip":
		w = gzip.NewWriter(&buf)
	case "zstd":
		w, err = zstd.NewWriter(&buf)
	case "zstd, large window":
		w, err = zstd.NewWriter(&buf, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	default:
		return blob{plain, diff, types.OCIUncompressedLayer}
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	kind := types.OCILayer
	if compression != "gzip" {
		kind = types.OCILayerZStd
	}
	return blob{buf.Bytes(), diff, kind}
}

// lab is a containerd, a registry and limits that a test can reach.
type lab struct {
	*testing.T
	client *containerd.Client
	reg    *nodetest.Registry
	im     *Images
	canary string // a directory of the host that no image may change
}

func newLab(t *testing.T) *lab {
	t.Helper()
	ctd := nodetest.NewContainerd(t)
	l := &lab{T: t, client: ctd.Client(t), reg: nodetest.NewRegistry(t), canary: t.TempDir()}
	l.im = New(Config{
		Client: l.client, Snapshotter: "overlayfs", PlainHTTPHosts: []string{l.reg.Host},
		Room: func() error { return nil }, KeepFor: time.Hour, Log: slog.New(slog.DiscardHandler),
	})
	l.im.limits.unpackedBytes, l.im.limits.entries, l.im.limits.nameBytes = 4<<20, 5000, 1<<20
	if err := os.WriteFile(filepath.Join(l.canary, "canary"), []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) ref(repo string) name.Reference {
	l.Helper()
	ref, err := name.ParseReference(l.reg.Host+"/"+repo, name.Insecure)
	if err != nil {
		l.Fatal(err)
	}
	return ref
}

// push makes an image of layers; change may spoil it.
func (l *lab) push(repo string, change func(v1.Image) v1.Image, layers ...v1.Layer) string {
	l.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	if err == nil {
		img, err = mutate.AppendLayers(img, layers...)
	}
	if err != nil {
		l.Fatal(err)
	}
	if change != nil {
		img = change(img)
	}
	ref := l.ref(repo)
	if err := remote.Write(ref, img); err != nil {
		l.Fatalf("pushing %s: %v", repo, err)
	}
	return ref.Name()
}

func (l *lab) configure(img v1.Image, change func(*v1.ConfigFile)) v1.Image {
	l.Helper()
	file, err := img.ConfigFile()
	if err != nil {
		l.Fatal(err)
	}
	file = file.DeepCopy()
	change(file)
	if img, err = mutate.ConfigFile(img, file); err != nil {
		l.Fatal(err)
	}
	return img
}

func (l *lab) ensure(ref string) (Image, error) {
	ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
	defer cancel()
	return l.im.Ensure(ctx, ref)
}

// inside mounts an image's root filesystem and looks at it.
func (l *lab) inside(img Image, look func(root string)) {
	l.Helper()
	ctx := l.Context()
	sn := l.client.SnapshotService("overlayfs")
	mounts, err := sn.View(ctx, "look", img.ChainID)
	if err != nil {
		l.Fatal(err)
	}
	defer func() { _ = sn.Remove(ctx, "look") }()
	if err := mount.WithTempMount(ctx, mounts, func(root string) error { look(root); return nil }); err != nil {
		l.Fatal(err)
	}
}

// unharmed checks that no image has touched the host.
func (l *lab) unharmed() {
	l.Helper()
	entries, err := os.ReadDir(l.canary)
	if err != nil || len(entries) != 1 {
		l.Errorf("the host's directory has %d entries (%v), want the canary alone", len(entries), err)
	}
	if raw, err := os.ReadFile(filepath.Join(l.canary, "canary")); err != nil || string(raw) != "alive" {
		l.Errorf("the canary: %q, %v", raw, err)
	}
}

// nothingStays checks that a refused image left nothing that is kept.
func (l *lab) nothingStays(ref string) {
	l.Helper()
	if _, err := l.client.GetImage(l.Context(), ref); err == nil {
		l.Errorf("%s was refused and stays", ref)
	}
	err := l.client.SnapshotService("overlayfs").Walk(l.Context(), func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive {
			l.Errorf("a snapshot of a refused image stays: %s", info.Name)
		}
		return nil
	})
	if err != nil {
		l.Error(err)
	}
}

// Each of these is answered with what is wrong with it, for its owner to see, and
// with nothing of the host.
func TestC02_HostileImagesAreRefused(t *testing.T) {
	l := newLab(t)
	file := func(names ...string) (all []tar.Header) {
		for _, n := range names {
			all = append(all, tar.Header{Name: n})
		}
		return all
	}
	good := layerOf(t, archiveOf(t, file("etc/hostname")...), "gzip")
	big := archiveOf(t, tar.Header{Name: "zeros", Size: 5 << 20})
	many := make([]tar.Header, 6000)
	for i := range many {
		many[i].Name = fmt.Sprintf("f%d", i)
	}
	long := make([]tar.Header, 600)
	for i := range long {
		long[i].Name = fmt.Sprintf("%d%s", i, strings.Repeat("/x", 200))
		long[i].PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("y", 2<<10)}
	}
	trailing := append(archiveOf(t, file("a")...), make([]byte, 5<<20)...)
	lying := layerOf(t, archiveOf(t, file("a")...), "gzip")
	lying.diff.Hex = strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		want   string
		change func(v1.Image) v1.Image
		layers []v1.Layer
	}{
		"gzip bomb":      {want: "larger than 4194304 bytes", layers: []v1.Layer{layerOf(t, big, "gzip")}},
		"zstd bomb":      {want: "larger than 4194304 bytes", layers: []v1.Layer{layerOf(t, big, "zstd")}},
		"bomb by layers": {want: "larger than 4194304 bytes", layers: []v1.Layer{layerOf(t, archiveOf(t, tar.Header{Name: "z", Size: 3 << 20}), "zstd"), layerOf(t, archiveOf(t, tar.Header{Name: "y", Size: 3 << 20}), "gzip")}},
		"after the end":  {want: "larger than 4194304 bytes", layers: []v1.Layer{layerOf(t, trailing, "gzip")}},
		"zstd window":    {want: "a layer is broken", layers: []v1.Layer{layerOf(t, big, "zstd, large window")}},
		"many files":     {want: "more than 5000 files", layers: []v1.Layer{layerOf(t, archiveOf(t, many...), "gzip")}},
		"long names":     {want: "longer than 1048576 bytes", layers: []v1.Layer{layerOf(t, archiveOf(t, long...), "zstd")}},
		"deep":           {want: "a path that is too long", layers: []v1.Layer{layerOf(t, archiveOf(t, file(strings.Repeat("d/", 300)+"f")...), "")}},
		"dots":           {want: "outside of its root", layers: []v1.Layer{layerOf(t, archiveOf(t, file("../../x")...), "")}},
		"dots within":    {want: "outside of its root", layers: []v1.Layer{layerOf(t, archiveOf(t, file("a/../../x")...), "")}},
		"whiteout dots":  {want: "outside of its root", layers: []v1.Layer{good, layerOf(t, archiveOf(t, file("../../"+l.canary+"/.wh.canary")...), "")}},
		"hardlink":       {want: "outside of its root", layers: []v1.Layer{layerOf(t, archiveOf(t, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../.." + l.canary + "/canary"}), "")}},
		"below a file":   {want: "can't be where it is said to be", layers: []v1.Layer{layerOf(t, archiveOf(t, file("a", "a/b")...), "")}},
		"endless name":   {want: "can't be where it is said to be", layers: []v1.Layer{layerOf(t, archiveOf(t, file(strings.Repeat("n", 300))...), "")}},
		"link to none":   {want: "can't be where it is said to be", layers: []v1.Layer{layerOf(t, archiveOf(t, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "none"}), "")}},
		"sparse":         {want: "sparse", layers: []v1.Layer{layerOf(t, sparseArchive(), "gzip")}},
		"no archive":     {want: "a layer is broken", layers: []v1.Layer{layerOf(t, []byte(strings.Repeat("no archive at all ", 100)), "gzip")}},
		"cut off":        {want: "a layer is broken", layers: []v1.Layer{layerOf(t, big[:1<<20], "")}},
		"another diff":   {want: "not what its configuration says", layers: []v1.Layer{lying}},
		"no layers":      {want: "it has 0 layers"},
		"a layer more": {want: "it has 1 layers, its configuration 2", layers: []v1.Layer{good}, change: func(i v1.Image) v1.Image {
			return l.configure(i, func(f *v1.ConfigFile) { f.RootFS.DiffIDs = append(f.RootFS.DiffIDs, lying.diff) })
		}},
		"other platform": {want: "does not fit this node", layers: []v1.Layer{good}, change: func(i v1.Image) v1.Image { return l.configure(i, func(f *v1.ConfigFile) { f.Architecture = "s390x" }) }},
		"huge config": {want: "larger than 4194304 bytes", layers: []v1.Layer{good}, change: func(i v1.Image) v1.Image {
			return l.configure(i, func(f *v1.ConfigFile) { f.Author = strings.Repeat("x", 5<<20) })
		}},
		"many variables": {want: "more than 512 variables", layers: []v1.Layer{good}, change: func(i v1.Image) v1.Image {
			return l.configure(i, func(f *v1.ConfigFile) { f.Config.Env = make([]string, 600) })
		}},
	} {
		ref := l.push("hostile/"+strings.ReplaceAll(name, " ", "-")+":1", c.change, c.layers...)
		_, err := l.ensure(ref)
		message := errdefs.From(err).Message
		message = strings.Replace(message, "@sha256:", ":1: by digest ", 1) // found when it was on the node
		if !errdefs.Is(err, errdefs.Unprocessable) || !strings.Contains(message, c.want) || !strings.HasPrefix(message, "image "+ref) {
			t.Errorf("%s: %q (%v), want %q", name, message, err, c.want)
		}
		if told := strings.TrimPrefix(message, "image "+ref); strings.Contains(strings.Replace(told, "linux/s390x", "", 1), "/") {
			t.Errorf("A22 %s: %q tells of the host", name, message)
		}
		if c.want != "more than 512 variables" { // found when it is on the node; kept like any other
			l.nothingStays(ref)
		}
	}
	l.unharmed()
}

// sparseArchive has a file of 1 TiB in a few bytes, as GNU tar writes it.
func sparseArchive() []byte {
	h := make([]byte, 512)
	copy(h, "sparse")
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:], "00000000000\x00")
	copy(h[136:], "00000000000\x00")
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	copy(h[386:], "20000000000\x00") // a hole at 2 GiB, of nothing
	copy(h[398:], "00000000000\x00")
	copy(h[483:], "20000000000\x00") // the real size
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(h, make([]byte, 1024)...)
}

// What an image says beyond its files means nothing, and its files stay below its
// root, wherever its links point to.
func TestC02_HostileImagesAreHarmless(t *testing.T) {
	l := newLab(t)
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	chain := []tar.Header{link("l0", l.canary)}
	for i := 1; i < 40; i++ {
		chain = append(chain, link(fmt.Sprintf("l%d", i), fmt.Sprintf("/l%d", i-1)))
	}
	lower := append(chain,
		tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8},
		tar.Header{Name: "dev/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1},
		tar.Header{Name: "lower/hidden", Typeflag: tar.TypeChar},          // overlayfs' own mark
		tar.Header{Name: ".wh.etc"}, tar.Header{Name: "etc/.wh..wh..opq"}, // nothing lies below
		tar.Header{Name: "etc/kept"}, tar.Header{Name: "gone"}, tar.Header{Name: "dir/gone"},
		tar.Header{Name: "marked/", Typeflag: tar.TypeDir, PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.overlay.redirect": "/../../..", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.mine": "1",
		}},
	)
	upper := []tar.Header{
		{Name: "l39/owned"}, {Name: "l39/.wh.canary"}, {Name: "l39/.wh..wh..opq"},
		link("l0", l.canary), {Name: "l0/owned"}, // a link that the layer itself brings
		{Name: "/absolute"}, {Name: ".wh.gone"}, {Name: "dir/.wh..wh..opq"},
	}
	var fetched atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { fetched.Add(1) }))
	defer elsewhere.Close()
	labels := map[string]string{
		"io.containerd.nri.x": "1", "dev.gvisor.flag.debug": "true", "io.katacontainers.config.hypervisor.path": "/bin/sh",
		"cdi.k8s.io/x": "vendor.com/device=all", "containerd.io/gc.root": "1", "containerd.io/snapshot/overlay.upperdir": l.canary,
		"containerd.io/snapshot.ref": "x", unusedLabel: "2000-01-01T00:00:00Z",
	}
	ref := l.push("hostile/harmless:1", func(img v1.Image) v1.Image {
		img = mutate.Annotations(img, labels).(v1.Image)
		return l.configure(img, func(f *v1.ConfigFile) {
			f.Config = v1.Config{
				Labels: labels, Env: []string{"A=1", "junk"}, User: "../../root:0:0", WorkingDir: "/../../..", Entrypoint: []string{"/bin/sh", "-c", "exit"},
				Volumes: map[string]struct{}{"/proc": {}, "/run/s0": {}, "/../..": {}}, OnBuild: []string{"RUN x"}, Shell: []string{"x"}, StopSignal: "KILL",
				ExposedPorts: map[string]struct{}{"1/tcp": {}},
			}
		})
	}, describe(layerOf(t, archiveOf(t, lower...), "gzip"), labels, elsewhere.URL), describe(layerOf(t, archiveOf(t, upper...), "zstd"), labels, elsewhere.URL))
	img, err := l.ensure(ref)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(img.Env) != "[A=1]" {
		t.Errorf("its environment: %v", img.Env)
	}
	l.inside(img, func(root string) {
		for name, want := range map[string]bool{
			"etc/kept": true, "absolute": true, "gone": false, "dir/gone": false, "dev/sda": false, "dev/mem": false, "lower/hidden": false,
			filepath.Join(l.canary, "owned"): true, // below its own root
		} {
			if _, err := os.Lstat(filepath.Join(root, name)); (err == nil) != want {
				t.Errorf("%s: %v, want it there: %v", name, err, want)
			}
		}
		buf := make([]byte, 256)
		if n, err := unix.Lgetxattr(filepath.Join(root, "marked"), "user.mine", buf); err != nil || string(buf[:n]) != "1" {
			t.Errorf("an attribute of its own: %q, %v", buf[:max(n, 0)], err)
		}
	})
	l.unharmed()
	if n := fetched.Load(); n != 0 {
		t.Errorf("layers were fetched %d times from where their descriptors point to", n)
	}
	l.ofItself(ref)
}

// describe gives a layer's descriptor annotations and URLs. What is pushed under
// this wrapper keeps them in its manifest.
type described struct {
	blob
	desc *v1.Descriptor
}

func (d described) Descriptor() (*v1.Descriptor, error) { return d.desc, nil }

func describe(b blob, annotations map[string]string, url string) v1.Layer {
	hash, _ := b.Digest()
	return described{b, &v1.Descriptor{MediaType: b.kind, Digest: hash, Size: int64(len(b.raw)), Annotations: annotations, URLs: []string{url + "/layer"}}}
}

// ofItself checks that no label of an image's became one of containerd's.
func (l *lab) ofItself(ref string) {
	l.Helper()
	ctx := l.Context()
	img, err := l.client.ImageService().Get(ctx, ref)
	if err != nil || len(img.Labels) != 0 {
		l.Errorf("labels of the image: %v, %v", img.Labels, err)
	}
	err = l.client.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if len(info.Labels) != 0 {
			l.Errorf("labels of snapshot %s: %v", info.Name, info.Labels)
		}
		return nil
	})
	if err != nil {
		l.Error(err)
	}
}

// X44, D12: a registry that sends other bytes than it has promised.
func TestC02_OtherBytesThanPromised(t *testing.T) {
	l := newLab(t)
	layer := layerOf(t, archiveOf(t, tar.Header{Name: "a", Size: 1 << 10}), "gzip")
	hash, _ := layer.Digest()
	ref := l.push("evil/registry:1", nil, layer)
	inner := l.reg.Config.Handler
	l.reg.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, hash.String()) {
			_, _ = w.Write(bytes.Repeat([]byte{0}, len(layer.raw)))
			return
		}
		inner.ServeHTTP(w, r)
	})
	_, err := l.ensure(ref)
	if !errdefs.Is(err, errdefs.Unprocessable) || !strings.Contains(errdefs.From(err).Message, "does not match its digest") {
		t.Errorf("%v", err)
	}
	l.nothingStays(ref)
}

// Unpacking ends when its time is over and when the disk is full.
func TestC02_UnpackingIsBounded(t *testing.T) {
	l := newLab(t)
	l.im.limits.unpackedBytes = 1 << 30
	ref := l.push("slow:1", nil, layerOf(t, archiveOf(t, tar.Header{Name: "a", Size: 80 << 20}), "gzip"))
	l.im.limits.time = 20 * time.Millisecond
	if _, err := l.ensure(ref); !errdefs.Is(err, errdefs.Unprocessable) || !strings.Contains(err.Error(), "takes longer") {
		t.Errorf("out of time: %v", err)
	}
	l.im.limits.time = time.Minute
	looks := 0
	l.im.cfg.Room = func() error {
		if looks++; looks > 1 {
			return errdefs.New(errdefs.Exhausted, "full")
		}
		return nil
	}
	if _, err := l.ensure(ref); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("D04: onto a disk that fills up: %v", err)
	}
	l.nothingStays(ref)
}
