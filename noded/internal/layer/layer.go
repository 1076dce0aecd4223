// Package layer makes an image's layer of what a running sandbox has changed in
// its root filesystem.
//
// The sandbox's kernel is asked for its upper layer while it runs; what it writes
// is spooled to a file first, for its filesystem stands still meanwhile and must
// not wait for a reader on the network. It is bounded in bytes, files and time, and
// never unpacked: one tar becomes another. The package owns its spool directory,
// which holds nothing that outlives the process.
package layer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	// spoolTimeout bounds how long a sandbox's filesystem may stand still.
	spoolTimeout = 2 * time.Minute
	// MaxBytes bounds a layer before compression, and times two what all that are
	// being made take of the disk.
	MaxBytes = 8 << 30
	atOnce   = 2
)

// Source reads sandboxes.
type Source interface {
	// Image is the image that the sandbox was started from, by digest.
	Image(ctx context.Context, id sandbox.ID) (ref string, err error)
	// Upper writes the upper layer of its root filesystem.
	Upper(ctx context.Context, id sandbox.ID, w io.Writer) error
}

// Config wires Layers. Every field is required.
type Config struct {
	Source Source
	Room   func() error // whether the disk has room for more
	Dir    string       // of the spool; made, and emptied
}

// Layers is safe for concurrent use.
type Layers struct {
	cfg  Config
	busy chan struct{}
}

// New empties the spool.
func New(cfg Config) (*Layers, error) {
	if err := os.RemoveAll(cfg.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	return &Layers{cfg: cfg, busy: make(chan struct{}, atOnce)}, nil
}

// Layer is what was read of a sandbox. It must be closed.
type Layer struct {
	Image string // what it lies over, by digest
	spool *os.File
	leave func()
}

// Open reads a running gVisor sandbox, which the caller has found to be one.
func (l *Layers) Open(ctx context.Context, id sandbox.ID) (_ *Layer, err error) {
	select {
	case l.busy <- struct{}{}:
	default:
		return nil, errdefs.New(errdefs.Exhausted, "too many sandboxes are being made templates of").WithRetryAfter(spoolTimeout / 4)
	}
	leave := func() { <-l.busy }
	defer func() {
		if err != nil {
			leave()
		}
	}()
	if err := l.cfg.Room(); err != nil {
		return nil, err
	}
	image, err := l.cfg.Source.Image(ctx, id)
	if err != nil {
		return nil, err
	}
	spool, err := os.CreateTemp(l.cfg.Dir, "layer-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			spool.Close()
		}
	}()
	if err := os.Remove(spool.Name()); err != nil { // it ends with its descriptor
		return nil, err
	}
	if err := l.fill(ctx, id, spool); err != nil {
		return nil, fmt.Errorf("reading the files of %s: %w", id, err)
	}
	return &Layer{Image: image, spool: spool, leave: leave}, nil
}

// fill converts what the sandbox's kernel writes as it comes.
func (l *Layers) fill(ctx context.Context, id sandbox.ID, spool *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, spoolTimeout)
	defer cancel()
	r, w := io.Pipe()
	read := make(chan error, 1)
	go func() {
		err := l.cfg.Source.Upper(ctx, id, w)
		w.CloseWithError(err) // with nil: the end
		read <- err
	}()
	to := &bounded{to: spool, left: MaxBytes}
	buffered := bufio.NewWriterSize(to, 1<<20)
	err := convert(r, buffered)
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r) // the padding after a tar's end
	}
	r.CloseWithError(err)
	err = errors.Join(err, <-read)
	switch {
	case to.left < 0:
		return errdefs.New(errdefs.TooLarge, "the sandbox has changed more than %d GiB", MaxBytes>>30).WithCause(err)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return errdefs.New(errdefs.Timeout, "the sandbox's files could not be read in time").WithCause(err)
	case err != nil:
		return err
	}
	_, err = spool.Seek(0, io.SeekStart)
	return err
}

// WriteTo writes the layer, as a tar.
func (l *Layer) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, l.spool) }

// Close frees the spool.
func (l *Layer) Close() error {
	defer l.leave()
	return l.spool.Close()
}

var errTooMuch = errors.New("too many bytes")

// bounded takes no more than left bytes; after more it is below zero.
type bounded struct {
	to   io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		b.left = -1
		return 0, errTooMuch
	}
	n, err := b.to.Write(p)
	b.left -= int64(n)
	return n, err
}
