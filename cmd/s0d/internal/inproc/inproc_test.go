package inproc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"s0.run/cmd/s0d/internal/inproc"
)

// A server and its client, in both versions of HTTP, with bodies both ways at once.
func TestHTTP(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"HTTP/1", "HTTP/2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, protocols := inproc.Listen(), new(http.Protocols)
			protocols.SetHTTP1(name == "HTTP/1")
			protocols.SetUnencryptedHTTP2(name == "HTTP/2")
			srv := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).EnableFullDuplex()
				_, _ = io.Copy(w, r.Body)
			})}
			ended := make(chan error, 1)
			go func() { ended <- srv.Serve(l) }()
			client := &http.Client{Transport: &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.Dial(ctx) }}}
			sent := strings.Repeat("0123456789abcdef", 1<<18)
			resp, err := client.Post("http://node/", "text/plain", strings.NewReader(sent))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(got) != sent {
				t.Fatalf("%d of %d bytes, %v", len(got), len(sent), err)
			}
			if err := srv.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
				t.Fatal(err)
			}
		})
	}
}

func TestNobodyAccepts(t *testing.T) {
	t.Parallel()
	l := inproc.Listen()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := l.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	l.Close()
	l.Close()
	if _, err := l.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}
