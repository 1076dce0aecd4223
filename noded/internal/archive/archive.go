// Package archive keeps images of paused sandboxes, and snapshots, in the object store,
// where no node and no owner of the store can read or change them unnoticed.
//
// An image is a directory that never changes. It becomes a stream of its files'
// data, cut into chunks of one size; each chunk is compressed, sealed (see seal.go)
// and stored as one object:
//
//	uploads/<upload>                             an upload that began; names the image
//	sandboxes/<id>/<generation>/<upload>/<n>     its chunks
//	sandboxes/<id>/<generation>/manifest         which upload is whole, and what its chunks are
//	snapshots/<name>/…                           the same of a snapshot
//
// The manifest is written last: an image is in the store when its manifest is. An
// upload that was cut off is begun anew under another name; what is left of it is
// found by uploads/<upload> and removed after a day ([Keeper]). An image that is
// fetched is checked chunk by chunk and appears at its place whole or not at all.
//
// The package decides about no sandbox and removes no image by itself: that takes
// somebody who knows that it is not wanted any more. Its state is in the store.
package archive

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/objects"
)

const (
	// chunkBytes is large enough for a store to take at full speed, and small enough
	// for several to be in memory: an image in work takes atOnce times three of them.
	chunkBytes = 4 << 20
	atOnce     = 4
	// maxRate leaves the node's processors and its network to the sandboxes: uploads
	// are in no hurry. A fetch has somebody waiting.
	maxRate = 64 << 20
	// rereads is how often a chunk is fetched again that arrived damaged: it may be
	// the way that damaged it.
	rereads = 3
	// clearTimeout bounds the removal of what a failed upload leaves.
	clearTimeout = time.Minute
)

// ErrDamaged is returned when what the store holds is not what was stored, or was
// stored as something else: for another team, sandbox or generation.
var ErrDamaged = errors.New("the stored image is damaged")

// ErrNotFound is returned for what was never stored, or not wholly.
var ErrNotFound = objects.ErrNotFound

// ErrNoFile is returned for a file that an image does not have.
var ErrNoFile = errors.New("the image has no such file")

// Ref names one image: a sandbox's, or a snapshot. It is bound to every byte of it.
type Ref struct {
	Team       string
	Sandbox    sandbox.ID
	Generation sandbox.Generation
	Snapshot   string // its name; then it is no sandbox's
}

func (r Ref) String() string {
	if r.Snapshot != "" {
		return "of snapshot " + r.Snapshot
	}
	return fmt.Sprintf("%s/%d", r.Sandbox, r.Generation)
}

// LogValue implements slog.LogValuer.
func (r Ref) LogValue() slog.Value {
	if r.Snapshot != "" {
		return slog.GroupValue(slog.String("snapshot", r.Snapshot), slog.String("team", r.Team))
	}
	return slog.GroupValue(slog.String("sandbox", string(r.Sandbox)), slog.Uint64("gen", uint64(r.Generation)), slog.String("team", r.Team))
}

// Store is package objects' Store.
type Store interface {
	Put(ctx context.Context, key string, data []byte) error
	Get(ctx context.Context, key string, limit int64) ([]byte, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, prefix string) iter.Seq2[objects.Object, error]
}

// Config wires an Archive. Every field is required.
type Config struct {
	Store Store
	Keys  Keys
	Room  func(bytes int64) error // whether the node's disk has room for so much more
}

// Archive is safe for concurrent use.
type Archive struct {
	cfg        Config
	rate       *rate.Limiter
	compressor *zstd.Encoder
	expander   *zstd.Decoder
}

// New makes an Archive; nothing is asked of the store.
func New(cfg Config) (*Archive, error) {
	compressor, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(atOnce), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	expander, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(atOnce), zstd.WithDecoderMaxMemory(2*chunkBytes))
	if err != nil {
		return nil, err
	}
	return &Archive{cfg: cfg, rate: rate.NewLimiter(maxRate, chunkBytes), compressor: compressor, expander: expander}, nil
}

const manifestName = "manifest"

func sandboxPrefix(id sandbox.ID) string { return "sandboxes/" + string(id) + "/" }
func snapshotPrefix(name string) string  { return "snapshots/" + name + "/" }
func (r Ref) manifestKey() string        { return r.prefix() + manifestName }

func (r Ref) prefix() string {
	if r.Snapshot != "" {
		return snapshotPrefix(r.Snapshot)
	}
	return fmt.Sprintf("%s%d/", sandboxPrefix(r.Sandbox), r.Generation)
}

func (r Ref) uploadPrefix(u upload) string {
	return r.prefix() + u.String() + "/"
}
func (r Ref) chunkKey(u upload, n int) string { return fmt.Sprintf("%s%08d", r.uploadPrefix(u), n) }

// Upload stores the image in dir, with what its owner wants to know when it is
// fetched. The image is in the store when Upload has returned, and after an error
// normally not. It may be repeated.
func (a *Archive) Upload(ctx context.Context, ref Ref, dir string, about []byte) (err error) {
	t, err := scan(dir)
	if err != nil {
		return fmt.Errorf("storing image %s: %w", ref, err)
	}
	defer t.close()
	u := newUpload()
	defer func() {
		if err != nil {
			err = fmt.Errorf("storing image %s: %w", ref, err)
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTimeout)
			defer cancel()
			if left := a.clear(ctx, ref, u); left != nil {
				err = fmt.Errorf("%w (what it left is collected later: %w)", err, left)
			}
		}
	}()
	before, err := a.wholeUpload(ctx, ref)
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) {
		return err
	}
	if err := a.cfg.Store.Put(ctx, u.key(), ref.announce()); err != nil {
		return err
	}
	sums, err := a.uploadChunks(ctx, ref, u, t)
	if err != nil {
		return err
	}
	m := manifest{ChunkBytes: chunkBytes, Bytes: t.bytes, Sums: sums, Entries: t.entries, About: about}
	sealed, err := a.cfg.Keys.sealer(ref, u).sealManifest(m)
	if err != nil {
		return err
	}
	if err := a.cfg.Store.Put(ctx, ref.manifestKey(), sealed); err != nil {
		return err
	}
	// What fails from here on goes with the image, or finds out later that this is whole.
	_ = a.cfg.Store.Delete(ctx, u.key())
	if before != (upload{}) {
		_ = a.clear(ctx, ref, before)
	}
	return nil
}

// uploadChunks returns the chunks' digests.
func (a *Archive) uploadChunks(ctx context.Context, ref Ref, u upload, t *tree) ([]digest, error) {
	s := a.cfg.Keys.sealer(ref, u)
	sums := make([]digest, t.chunks())
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for n := range sums {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := a.rate.WaitN(gctx, chunkBytes); err != nil {
				return err
			}
			data, err := t.read(n)
			if err != nil {
				return err
			}
			sums[n] = sum(data)
			return a.cfg.Store.Put(gctx, ref.chunkKey(u, n), s.sealChunk(n, len(sums), a.compress(data)))
		})
	}
	return sums, errors.Join(g.Wait(), ctx.Err())
}

// clear removes what an upload has stored that is no image's. The note of the upload
// goes last.
func (a *Archive) clear(ctx context.Context, ref Ref, u upload) error {
	whole, err := a.wholeUpload(ctx, ref)
	if err == nil && whole == u { // the answer to its manifest was lost
		return a.cfg.Store.Delete(ctx, u.key())
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := a.deleteAll(ctx, ref.uploadPrefix(u)); err != nil {
		return err
	}
	return a.cfg.Store.Delete(ctx, u.key())
}

func (a *Archive) deleteAll(ctx context.Context, prefix string) error {
	for o, err := range a.cfg.Store.List(ctx, prefix) {
		if err == nil {
			err = a.cfg.Store.Delete(ctx, o.Key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wholeUpload is the upload that an image's manifest names.
func (a *Archive) wholeUpload(ctx context.Context, ref Ref) (upload, error) {
	b, err := a.cfg.Store.Get(ctx, ref.manifestKey(), maxManifest)
	if err != nil {
		return upload{}, err
	}
	_, u, _, err := splitManifest(b)
	return u, err
}

// Fetch brings an image to dir, which does not exist, and returns what was stored
// about it. Everything is checked before dir appears, durably.
func (a *Archive) Fetch(ctx context.Context, ref Ref, dir string) (about []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("fetching image %s: %w", ref, err)
		}
	}()
	b, err := a.cfg.Store.Get(ctx, ref.manifestKey(), maxManifest)
	if err != nil {
		return nil, err
	}
	m, s, err := a.cfg.Keys.openManifest(ref, b)
	if err != nil {
		return nil, err
	}
	if err := a.cfg.Room(m.Bytes); err != nil {
		return nil, err
	}
	aside := dir + ".part"
	if err := errors.Join(os.RemoveAll(aside), os.MkdirAll(aside, 0o700)); err != nil {
		return nil, err
	}
	defer os.RemoveAll(aside) // it is not there any more when all went well
	if err := a.fetchInto(ctx, ref, m, s, aside); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("fetch.after-data"); err != nil {
		return nil, err
	}
	if err := os.Rename(aside, dir); err != nil {
		return nil, err
	}
	parent := filepath.Dir(dir)
	return m.About, errors.Join(syncDir(parent), syncDir(filepath.Dir(parent)))
}

// FetchFile returns one file of an image, of at most limit bytes, checked like the whole.
// [ErrNoFile]: the image is there and has none of that name.
func (a *Archive) FetchFile(ctx context.Context, ref Ref, name string, limit int64) (data []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("fetching %s of image %s: %w", name, ref, err)
		}
	}()
	b, err := a.cfg.Store.Get(ctx, ref.manifestKey(), maxManifest)
	if err != nil {
		return nil, err
	}
	m, s, err := a.cfg.Keys.openManifest(ref, b)
	if err != nil {
		return nil, err
	}
	size, parts, err := locate(m.Entries, name)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("it has %d bytes, more than %d", size, limit)
	}
	data = make([]byte, size)
	for _, p := range parts {
		var chunk []byte
		if p.chunk < len(m.Sums) {
			if chunk, err = a.fetchChunk(ctx, ref, m, s, p.chunk); err != nil {
				return nil, err
			}
		}
		if p.from+p.bytes > len(chunk) {
			return nil, fmt.Errorf("%w: its manifest contradicts itself", ErrDamaged)
		}
		copy(data[p.to:], chunk[p.from:p.from+p.bytes])
	}
	return data, nil
}

func (a *Archive) fetchInto(ctx context.Context, ref Ref, m manifest, s sealer, dir string) error {
	t, err := lay(dir, m.Entries)
	if err != nil {
		return err
	}
	defer t.close()
	if t.bytes != m.Bytes || t.chunks() != len(m.Sums) {
		return fmt.Errorf("%w: its manifest contradicts itself", ErrDamaged)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for n := range m.Sums {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			data, err := a.fetchChunk(gctx, ref, m, s, n)
			if err != nil {
				return err
			}
			return t.write(n, data)
		})
	}
	if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
		return err
	}
	return t.sync()
}

// fetchChunk returns one chunk of the stream, checked.
func (a *Archive) fetchChunk(ctx context.Context, ref Ref, m manifest, s sealer, n int) ([]byte, error) {
	for try := 1; ; try++ {
		b, err := a.cfg.Store.Get(ctx, ref.chunkKey(s.upload, n), maxChunk)
		if errors.Is(err, objects.ErrNotFound) || errors.Is(err, objects.ErrTooLarge) {
			err = fmt.Errorf("%w: chunk %d: %w", ErrDamaged, n, err)
		}
		if err != nil {
			return nil, err
		}
		data, err := a.openChunk(m, s, n, b)
		if err == nil || try == rereads {
			return data, err
		}
	}
}

func (a *Archive) openChunk(m manifest, s sealer, n int, b []byte) ([]byte, error) {
	packed, err := s.openChunk(n, len(m.Sums), b)
	if err != nil {
		return nil, fmt.Errorf("%w: chunk %d can't be opened as this image's", ErrDamaged, n)
	}
	data, err := a.expand(packed)
	if err != nil || sum(data) != m.Sums[n] {
		return nil, fmt.Errorf("%w: chunk %d holds other data", ErrDamaged, n)
	}
	return data, nil
}

// Remove removes the images of a sandbox that are older than a generation, or all of
// them when that is 0. The caller knows that nobody wants them any more. It may be
// repeated.
func (a *Archive) Remove(ctx context.Context, id sandbox.ID, below sandbox.Generation) error {
	err := a.removeAll(ctx, sandboxPrefix(id), func(key string) bool {
		gen, ok := generationOf(key, id)
		return ok && (below == 0 || gen < below)
	})
	if err != nil {
		return fmt.Errorf("removing images of %s: %w", id, err)
	}
	return nil
}

// RemoveSnapshot is Remove for a snapshot, whose name has no slash.
func (a *Archive) RemoveSnapshot(ctx context.Context, name string) error {
	if err := a.removeAll(ctx, snapshotPrefix(name), func(string) bool { return true }); err != nil {
		return fmt.Errorf("removing snapshot %s: %w", name, err)
	}
	return nil
}

// removeAll removes manifests before their chunks: half an image is none.
func (a *Archive) removeAll(ctx context.Context, prefix string, unwanted func(key string) bool) error {
	var chunks []string
	for o, err := range a.cfg.Store.List(ctx, prefix) {
		switch {
		case err != nil:
			return err
		case !unwanted(o.Key):
		case !strings.HasSuffix(o.Key, "/"+manifestName):
			chunks = append(chunks, o.Key)
		default:
			if err := a.cfg.Store.Delete(ctx, o.Key); err != nil {
				return err
			}
		}
	}
	for _, key := range chunks {
		if err := a.cfg.Store.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

func generationOf(key string, id sandbox.ID) (gen sandbox.Generation, ok bool) {
	rest, _ := strings.CutPrefix(key, sandboxPrefix(id))
	number, _, ok := strings.Cut(rest, "/")
	_, err := fmt.Sscan(number, &gen)
	return gen, ok && err == nil && fmt.Sprint(gen) == number
}
