package images

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"s0.run/internal/errdefs"
)

// D12: a registry that accepts and then says nothing, or next to nothing, ends its
// pull, not the others' patience.
func TestD12_StalledPullEnds(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"silent": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drips": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Content-Length", "1000000")
			w.Header().Set("Docker-Content-Digest", sum([]byte("manifest")))
			for r.Method == http.MethodGet && r.Context().Err() == nil {
				_, _ = io.WriteString(w, "x")
				w.(http.Flusher).Flush()
				select {
				case <-time.After(10 * time.Millisecond):
				case <-r.Context().Done():
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(answer))
			defer s.Close()
			defer s.CloseClientConnections() // or Close waits for a handler that drips
			host := strings.TrimPrefix(s.URL, "http://")
			im := New(Config{PlainHTTPHosts: []string{host}, Log: slog.New(slog.DiscardHandler)})
			im.stall = 100 * time.Millisecond
			bounded, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			p := newProgress(im.limits)
			ctx, end := p.watched(bounded, im.stall)
			defer end()
			_, err := im.resolvedManifest(ctx, p, host+"/a/b:1")
			if err == nil || !errors.Is(context.Cause(ctx), errStalled) {
				t.Errorf("the pull ended with %v, its context with %v", err, context.Cause(ctx))
			}
		})
	}
	if err := classify("reg/x", errStalled); !errdefs.Is(err, errdefs.Timeout) {
		t.Errorf("a stalled pull is told as %v", err)
	}
}

// resolvedManifest is the first part of a pull, which needs no containerd.
func (i *Images) resolvedManifest(ctx context.Context, p *progress, ref string) ([]byte, error) {
	resolver := i.resolver(p)
	name, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return nil, err
	}
	body, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// Work that is not the network's takes the time it takes.
func TestUnpackingIsNoStall(t *testing.T) {
	t.Parallel()
	im := New(Config{})
	im.stall = 10 * time.Millisecond
	ctx, end := newProgress(im.limits).watched(t.Context(), im.stall)
	defer end()
	select {
	case <-ctx.Done():
		t.Errorf("ended: %v", context.Cause(ctx))
	case <-time.After(10 * im.stall):
	}
}

func TestProgressIsTold(t *testing.T) {
	t.Parallel()
	p := newProgress(defaultLimits)
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() {}, "waiting to pull image"},
		{func() { p.waiting.Add(1) }, "pulling image"},
		{func() { p.expect(400e6) }, "pulling image: 0 of 400 MB"},
		{func() { p.bytes.Add(120e6) }, "pulling image: 120 of 400 MB"},
		{func() { p.bytes.Add(400e6) }, "pulling image: 400 of 400 MB"},
		{func() { p.unpacks(12); p.unpacked.Add(3) }, "unpacking image: 3 of 12 layers"},
	} {
		step.do()
		if got := p.text(); got != step.want {
			t.Errorf("%q, want %q", got, step.want)
		}
	}
}

// D12: a registry that sends more than the image has ends its own pull.
func TestD12_EndlessAnswerEnds(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", sum([]byte("manifest")))
		for piece := make([]byte, 1<<20); r.Method == http.MethodGet && r.Context().Err() == nil; {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	im := New(Config{PlainHTTPHosts: []string{host}, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p := newProgress(im.limits)
	_, err := im.resolvedManifest(ctx, p, host+"/a/b:1")
	if err == nil || p.bytes.Load() > 3*p.allowed.Load() {
		t.Errorf("%v after %d bytes", err, p.bytes.Load())
	}
}

// D12, D04: a pull ends when the disk fills up, not when it is full.
func TestD12_FetchingLooksAtTheDisk(t *testing.T) {
	t.Parallel()
	full := errdefs.New(errdefs.Exhausted, "full")
	looks := 0
	p := newProgress(defaultLimits)
	p.expect(1 << 40)
	p.room = func() error {
		if looks++; looks > 1 {
			return full
		}
		return nil
	}
	n, err := io.Copy(io.Discard, countedBody{io.NopCloser(zeros{}), p})
	if !errors.Is(err, full) || n < 2*roomEvery-1<<20 || n > 2*roomEvery+1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}
