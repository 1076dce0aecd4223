package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// floor measures what a claim can't do without, bare: a write that the disk has
// confirmed, and a call over a unix socket. Each one after another and after the
// same pauses as the claims.
func floor(ctx context.Context, n int) ([]row, error) {
	dir, err := os.MkdirTemp("", "s0bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	write, done, err := confirmedWrites(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	call, done, err := calls(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer done()
	var rows []row
	for _, f := range []struct {
		name string
		do   func() error
	}{{"beside: 8 KiB written and confirmed by the disk", write}, {"beside: an HTTP/2 call over a unix socket", call}} {
		row, err := repeated(ctx, n, 0, f.do)
		if err != nil {
			return nil, err
		}
		paused, err := repeated(ctx, n/4, pause, f.do)
		if err != nil {
			return nil, err
		}
		rows = append(rows,
			rowOf(f.name, "1 client, in a row", row),
			rowOf(f.name, "1 client, after "+pause.String(), paused))
	}
	return rows, nil
}

func rowOf(name, load string, took []time.Duration) row {
	return row{name: name, load: load, unit: "ms", samples: milliseconds(took)}
}

func repeated(ctx context.Context, n int, gap time.Duration, do func() error) ([]time.Duration, error) {
	var took []time.Duration
	for range n {
		if err := sleep(ctx, gap); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := do(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

// confirmedWrites writes a page of a file again and again, as a log does that
// was allocated before.
func confirmedWrites(dir string) (write func() error, done func(), err error) {
	f, err := os.Create(filepath.Join(dir, "page"))
	if err != nil {
		return nil, nil, err
	}
	page := make([]byte, 8<<10)
	write = func() error {
		if _, err := f.WriteAt(page, 0); err != nil {
			return err
		}
		return unix.Fdatasync(int(f.Fd()))
	}
	if err := write(); err != nil {
		f.Close()
		return nil, nil, err
	}
	return write, func() { f.Close() }, nil
}

// calls is the bare form of what the API server asks of a node.
func calls(ctx context.Context, dir string) (call func() error, done func(), err error) {
	socket := filepath.Join(dir, "echo.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	transport := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	client := &http.Client{Transport: transport}
	call = func() error { return echo(ctx, client) }
	return call, func() {
		transport.CloseIdleConnections()
		server.Close()
		<-served
	}, nil
}

func echo(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/", strings.NewReader("a hundred bytes, more or less"))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("echo: status %d", resp.StatusCode)
	}
	return nil
}
