package local

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestRunServesUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Log: slog.New(slog.DiscardHandler)})
	s.Handle("GET /hi", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hi") }))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		s.serve(ctx, l)
		close(done)
	}()
	resp, err := http.Get("http://" + l.Addr().String() + "/hi")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "hi" {
		t.Errorf("answered %q", b)
	}
	stop()
	<-done
}

// Only processes of this machine are served, and no page of another site.
func TestA12_OthersAreRefused(t *testing.T) {
	t.Parallel()
	h := guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	for name, c := range map[string]struct {
		from, origin string
		want         int
	}{
		"a process":            {"127.0.0.1:4000", "", 202},
		"a process, by IPv6":   {"[::1]:4000", "", 202},
		"another machine":      {"10.0.0.7:4000", "", 403},
		"no address":           {"", "", 403},
		"another site's page":  {"127.0.0.1:4000", "https://evil.example", 403},
		"a sandboxed document": {"127.0.0.1:4000", "null", 403},
	} {
		r := httptest.NewRequest(http.MethodPost, "http://localhost:49983/x", nil)
		r.RemoteAddr = c.from
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d", name, w.Code, c.want)
		}
	}
}
