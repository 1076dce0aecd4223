package inproc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/cmd/s0d/internal/inproc"
)

// served is a Link whose handler is h. stop returns when Serve has.
func served(t *testing.T, grace time.Duration, h http.HandlerFunc) (l *inproc.Link, stop func()) {
	t.Helper()
	l = inproc.New(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Serve(ctx, h, grace) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

func do(t *testing.T, l *inproc.Link, method, path string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://node"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: l}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// Bodies go both ways at once, of more than is kept between the two.
func TestBothBodiesAtOnce(t *testing.T) {
	t.Parallel()
	l, _ := served(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	sent := strings.Repeat("0123456789abcdef", 1<<18)
	for name, body := range map[string]io.Reader{"in memory": strings.NewReader(sent), "from elsewhere": io.MultiReader(strings.NewReader(sent))} {
		resp := do(t, l, http.MethodPost, "/", body)
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != sent {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(sent), err)
		}
	}
}

// What the handler sees of a request, and the caller of an answer.
func TestWhatIsSeen(t *testing.T) {
	t.Parallel()
	type key struct{}
	l, _ := served(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(key{}) != nil || r.Host != "node" || r.URL.Path != "/a b" || r.URL.RawQuery != "q=1" || r.Header.Get("X-In") != "1" || r.ProtoMajor != 2 {
			t.Errorf("%+v", r)
		}
		r.Header.Set("X-In", "2")
		w.Header().Set("X-Out", "1")
		switch r.Method {
		case http.MethodHead:
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		case http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("a body of 204: %v", err)
			}
		default:
			w.WriteHeader(http.StatusContinue)
			w.WriteHeader(http.StatusTeapot)
			w.WriteHeader(http.StatusOK)
			w.Header().Set("X-Out", "2")
			_, _ = io.WriteString(w, "hello")
		}
	})
	for method, want := range map[string]struct {
		status int
		length int64
		body   string
	}{
		"GET": {418, 5, "hello"}, "HEAD": {200, 5, ""}, "DELETE": {204, -1, ""},
	} {
		req, err := http.NewRequestWithContext(context.WithValue(t.Context(), key{}, 1), method, "http://node/a%20b?q=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-In", "1")
		resp, err := l.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want.status || resp.ContentLength != want.length || string(b) != want.body || resp.Header.Get("X-Out") != "1" || req.Header.Get("X-In") != "1" {
			t.Errorf("%s: %d, length %d, %q, %v, %v", method, resp.StatusCode, resp.ContentLength, b, resp.Header, err)
		}
	}
}

// A flushed answer is there before its end, and a caller that has enough ends the handler.
func TestACallerThatHasEnough(t *testing.T) {
	t.Parallel()
	gone, failed := make(chan error, 1), make(chan error, 1)
	l, _ := served(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush() // its caller may have enough already
		<-r.Context().Done()
		gone <- r.Context().Err()
		_, err := w.Write(make([]byte, 1))
		failed <- err
	})
	do(t, l, http.MethodGet, "/", nil).Body.Close()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("a write that nobody reads")
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/", io.NopCloser(neverRead{t.Context()}))
	resp, err := l.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	cancel(why)
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, why) {
		t.Errorf("a caller that gave up reads: %v", err)
	}
	<-gone
	<-failed
}

// neverRead is a body whose sender says nothing.
type neverRead struct{ ctx context.Context }

func (n neverRead) Read([]byte) (int, error) { <-n.ctx.Done(); return 0, io.EOF }

// A handler that is done with a body whose sender goes on for ever waits for nobody.
func TestABodyThatNeverEnds(t *testing.T) {
	t.Parallel()
	l, _ := served(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		read := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(r.Body)
			read <- err
		}()
		r.Body.Close()
		if err := <-read; err == nil {
			t.Error("a closed body reads")
		}
		_, _ = io.WriteString(w, "done")
	})
	resp := do(t, l, http.MethodPost, "/", neverRead{t.Context()})
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); string(b) != "done" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// What is not whole does not look so.
func TestAnAnswerThatBreaksOff(t *testing.T) {
	t.Parallel()
	l, _ := served(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/flushed":
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/short":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "short")
		case "/long":
			w.Header().Set("Content-Length", "2")
			if _, err := w.Write(make([]byte, 3)); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("more than was announced: %v", err)
			}
		default:
			panic("at once")
		}
	})
	for _, path := range []string{"/flushed", "/short", "/long"} {
		resp := do(t, l, http.MethodGet, path, nil)
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", path, err)
		}
		resp.Body.Close()
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://node/at-once", nil)
	if _, err := l.RoundTrip(req); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// A slow reader holds a bounded part of what comes.
func TestASlowReader(t *testing.T) {
	t.Parallel()
	wrote := make(chan int, 1<<10)
	l, _ := served(t, time.Minute, func(w http.ResponseWriter, _ *http.Request) {
		for {
			n, err := w.Write(make([]byte, 64<<10))
			if err != nil {
				close(wrote)
				return
			}
			wrote <- n
		}
	})
	resp := do(t, l, http.MethodGet, "/", nil)
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	total := 0
	for n := range wrote {
		total += n
	}
	if total > 2<<20 {
		t.Errorf("%d bytes were taken for a reader of 1 MiB", total)
	}
}

// A stop waits for what is under way, ends it after the grace, and begins nothing.
func TestStop(t *testing.T) {
	t.Parallel()
	for name, grace := range map[string]time.Duration{"finishes": time.Minute, "is ended": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			finish, aborted := make(chan struct{}), false
			l, stop := served(t, grace, func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush()
				select {
				case <-finish:
				case <-r.Context().Done():
					aborted = true
				}
			})
			resp := do(t, l, http.MethodGet, "/", nil)
			defer resp.Body.Close()
			if grace > 0 {
				close(finish)
			}
			stop()
			if aborted != (grace == 0) {
				t.Errorf("aborted: %v", aborted)
			}
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://node/", nil)
			if _, err := l.RoundTrip(req); !errors.Is(err, inproc.ErrClosed) {
				t.Errorf("after the stop: %v", err)
			}
		})
	}
}

// Who calls before anybody serves waits as long as he likes.
func TestBeforeItIsServed(t *testing.T) {
	t.Parallel()
	l := inproc.New(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/", bytes.NewReader([]byte("x")))
	if _, err := l.RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

// Many at once, some of whom leave in the middle.
func TestMany(t *testing.T) {
	t.Parallel()
	l, _ := served(t, time.Minute, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			sent := bytes.Repeat([]byte{byte(i)}, 10_000+i)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node/", io.MultiReader(bytes.NewReader(sent)))
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := l.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if i%3 == 0 {
				return
			}
			if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	all.Wait()
}

func BenchmarkCall(b *testing.B) {
	l := inproc.New(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- l.Serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }), 0)
	}()
	client := &http.Client{Transport: l}
	for b.Loop() {
		resp, err := client.Post("http://node/", "text/plain", strings.NewReader("1+1"))
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	cancel()
	<-ended
}
