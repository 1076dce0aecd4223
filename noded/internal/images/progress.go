package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// stallTime is how long a pull may wait for its registry with less than
	// minProgress coming: a registry that drips keeps others' pulls waiting.
	stallTime   = 30 * time.Second
	minProgress = 64 << 10
)

var errStalled = errors.New("the registry has stalled")

// progress watches what a pull gets from the network, and bounds it. What is done
// with it, unpacking above all, may take its time.
type progress struct {
	bytes    atomic.Int64
	expected atomic.Int64 // of layers; 0: not known yet
	allowed  atomic.Int64 // bytes, beyond which the registry sends what nobody asked for
	unpacked atomic.Int32 // layers
	layers   atomic.Int32 // to unpack; 0: it is still being fetched
	waiting  atomic.Int64 // requests and reads under way

	room func() error // says when what comes has filled the disk; nil: nobody looks
}

func newProgress(l limits) *progress {
	p := &progress{}
	p.allowed.Store(overhead + l.metaBytes)
	return p
}

// expect says what is to come, once the manifest is known.
func (p *progress) expect(bytes int64) {
	p.expected.Add(bytes)
	p.allowed.Add(2 * bytes) // connections break, and a layer begins again
}

// unpacks says how many layers are to be unpacked.
func (p *progress) unpacks(layers int) { p.layers.Store(int32(layers)) }

// text says to a person how far the pull is.
func (p *progress) text() string {
	expected := p.expected.Load()
	switch layers := p.layers.Load(); {
	case layers > 0:
		return fmt.Sprintf("unpacking image: %d of %d layers", p.unpacked.Load(), layers)
	case expected > 0:
		return fmt.Sprintf("pulling image: %d of %d MB", megabytes(min(p.bytes.Load(), expected)), megabytes(expected))
	case p.bytes.Load() > 0 || p.waiting.Load() > 0:
		return "pulling image"
	}
	return "waiting to pull image"
}

func megabytes(n int64) int64 { return (n + 1e6 - 1) / 1e6 }

// watched ends the returned context when the pull stalls; end waits until nobody
// watches any more.
func (p *progress) watched(ctx context.Context, stall time.Duration) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.watch(ctx, stall, cancel)
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

func (p *progress) watch(ctx context.Context, stall time.Duration, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(stall)
	defer tick.Stop()
	last, waited := p.bytes.Load(), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		bytes, waits := p.bytes.Load(), p.waiting.Load() > 0
		if waits && waited && bytes-last < minProgress {
			cancel(errStalled)
			return
		}
		last, waited = bytes, waits
	}
}

// count notes what has come, of all connections, and refuses more than there is to
// come or room for.
func (p *progress) count(n int64) error {
	bytes := p.bytes.Add(n)
	if bytes > p.allowed.Load() {
		return hostile("its registry sends more than the image has")
	}
	if p.room != nil && bytes/roomEvery != (bytes-n)/roomEvery {
		return p.room()
	}
	return nil
}

// counted is a transport whose requests a progress sees.
type counted struct {
	http.RoundTripper
	p *progress
}

func (c counted) RoundTrip(req *http.Request) (*http.Response, error) {
	c.p.waiting.Add(1)
	defer c.p.waiting.Add(-1)
	resp, err := c.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = countedBody{resp.Body, c.p}
	}
	return resp, err
}

type countedBody struct {
	io.ReadCloser
	p *progress
}

func (b countedBody) Read(buf []byte) (int, error) {
	b.p.waiting.Add(1)
	defer b.p.waiting.Add(-1)
	n, err := b.ReadCloser.Read(buf)
	if cerr := b.p.count(int64(n)); cerr != nil {
		return n, cerr
	}
	return n, err
}
