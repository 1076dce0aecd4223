package images

import (
	"context"
	"errors"
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

// progress watches what a pull gets from the network. What containerd does with
// it, unpacking above all, may take its time.
type progress struct {
	bytes   atomic.Int64
	waiting atomic.Int64 // requests and reads under way
	done    chan struct{}
	cancel  context.CancelCauseFunc
}

// watchProgress ends the returned context when the pull stalls; end must be called.
func (i *Images) watchProgress(ctx context.Context) (context.Context, *progress) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &progress{done: make(chan struct{}), cancel: cancel}
	go p.watch(ctx, i.stall)
	return ctx, p
}

// end waits until the watch has ended.
func (p *progress) end() {
	p.cancel(nil)
	<-p.done
}

func (p *progress) watch(ctx context.Context, stall time.Duration) {
	defer close(p.done)
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
			p.cancel(errStalled)
			return
		}
		last, waited = bytes, waits
	}
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
	b.p.bytes.Add(int64(n))
	return n, err
}
