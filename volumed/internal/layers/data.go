package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/erofs"
)

const (
	// maxExtents of one file with holes are in memory.
	maxExtents = 1 << 18
	// maxRatio is what a file with holes may have in an image for what it has on the disk,
	// beyond which a layer has slack in all.
	maxRatio, slack = 16, 256 << 20
	// fewHoles is what a file may lack and be kept as if it had no holes.
	fewHoles = 64 << 10
)

// A copier puts files' data into an image: holes stay holes, and no tenant makes an image
// much larger than what he has written.
type copier struct {
	ctx   context.Context // of one call
	w     *erofs.Writer
	slack int64 // bytes that are left
}

// errRefused marks a file that can't be kept, as opposed to an image that can't be written.
var errRefused = errors.New("the file can't be kept")

func refused(format string, args ...any) error {
	return errdefs.New(errdefs.TooLarge, format, args...).WithCause(errRefused)
}

// file adds a file of which st was just taken; nothing is added where it is refused.
func (c *copier) file(at string, attr erofs.Attr, f *os.File, st *unix.Stat_t) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if st.Blocks*512+fewHoles >= st.Size {
		return c.w.File(at, attr, reader{c.ctx, f}, st.Size)
	}
	extents, data, err := extentsOf(f, st.Size)
	if err != nil {
		return err
	}
	if data+fewHoles >= st.Size {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return c.w.File(at, attr, reader{c.ctx, f}, st.Size)
	}
	_, cost := erofs.Sparse(st.Size, extents)
	if over := cost - maxRatio*data; over > 0 {
		if over > c.slack {
			return refused("a file of %d bytes has %d bytes of data, too scattered", st.Size, data)
		}
		c.slack -= over
	}
	return c.w.SparseFile(at, attr, st.Size, extents, reader{c.ctx, f})
}

// extentsOf finds where a file has data.
func extentsOf(f *os.File, size int64) (all []erofs.Extent, data int64, err error) {
	for at := int64(0); at < size; {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, 0, fmt.Errorf("looking for data: %w", err)
		}
		to, err := f.Seek(from, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) { // it was cut meanwhile
			break
		}
		if err != nil {
			return nil, 0, fmt.Errorf("looking for holes: %w", err)
		}
		if to = min(to, size); from >= to {
			break
		}
		if len(all) == maxExtents {
			return nil, 0, refused("a file of %d bytes has more than %d holes", size, maxExtents)
		}
		all, data, at = append(all, erofs.Extent{Offset: from, Length: to - from}), data+to-from, to
	}
	return all, data, nil
}

// Until reads a file until ctx ends.
func Until(ctx context.Context, f *os.File) io.Reader { return reader{ctx, f} }

// reader reads until its context ends.
type reader struct {
	ctx  context.Context
	file *os.File
}

func (r reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.file.Read(b)
}

func (r reader) ReadAt(b []byte, at int64) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.file.ReadAt(b, at)
}
