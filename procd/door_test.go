package procd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/proctest"
)

// opened is a door that a test goes through by a unix socket. What is behind it
// answers each request with its own path.
func opened(t *testing.T, wait time.Duration) (socket, token string) {
	t.Helper()
	socket, token = filepath.Join(t.TempDir(), "door"), strings.Repeat("t", procapi.TokenBytes)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l := newLink("", func(int) {}, slog.New(slog.DiscardHandler))
	l.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { l.run(ctx, &door{listener, []byte(token), wait}) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return socket, token
}

// enter connects and shows a token.
func enter(t *testing.T, socket, token string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, token); err != nil {
		t.Fatal(err)
	}
	return conn
}

// ask is noded on a connection.
func ask(t *testing.T, conn net.Conn) error {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	client, err := transport.NewClientConn(t.Context(), "http", "procd:80")
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://procd/hello", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "/hello" {
		t.Errorf("%q", body)
	}
	return err
}

// Who has the token is served, one after the other: the latest is noded.
func TestTheLatestWithTheTokenIsNoded(t *testing.T) {
	t.Parallel()
	socket, token := opened(t, proctest.Patience)
	first := enter(t, socket, token)
	if err := ask(t, first); err != nil {
		t.Fatal(err)
	}
	second := enter(t, socket, token)
	io.Copy(io.Discard, first) // it is shown out
	if err := ask(t, second); err != nil {
		t.Error(err)
	}
}

// Any process of the host may find the way to a machine's socket: without the token
// it is told nothing, and keeps noded from nothing.
func TestC07_NobodyIsServedWithoutTheToken(t *testing.T) {
	t.Parallel()
	socket, token := opened(t, 500*time.Millisecond)
	for _, shown := range []string{strings.Repeat("x", len(token)), strings.Repeat("t", len(token)-1) + "x", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("x", len(token))} {
		conn := enter(t, socket, shown)
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("who shows %q is told %d bytes", shown, n)
		}
	}
	for range 3 {
		enter(t, socket, token[1:]) // and then says nothing
	}
	deadline := time.Now().Add(proctest.Patience)
	for err := errors.New("not asked"); err != nil; { // noded tries again, too
		if err = ask(t, enter(t, socket, token)); err != nil && time.Now().After(deadline) {
			t.Fatalf("behind one who says nothing: %v", err)
		}
	}
}
