package noded

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"s0.run/internal/daemon"
)

// local is a listener for those of the same process.
type local struct{ net.Listener }

func (l local) Serve(ctx context.Context, h http.Handler, grace time.Duration) error {
	return daemon.Serve(ctx, &http.Server{Handler: h}, l, grace)
}

// Whoever follows the node is told that it stops, over whichever listener, and the stop
// waits for nobody's grace.
func TestAStopIsTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other, err := net.Listen("unix", filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Socket: filepath.Join(dir, "node"), Local: local{other}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	stopping, stack := make(chan struct{}), daemon.NewStack()
	follow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-stopping:
			_, _ = io.WriteString(w, "stops")
		case <-r.Context().Done():
		}
	})
	if err := serve(cfg, stack, stopping, follow); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 2)
	for _, socket := range []string{cfg.Socket, other.Addr().String()} {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
		resp, err := client.Get("http://node/")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				b = []byte(err.Error())
			}
			said <- string(b)
		}()
	}
	stack.Stop()
	for range 2 {
		if got := <-said; got != "stops" {
			t.Errorf("%q", got)
		}
	}
}
