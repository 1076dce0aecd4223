package channel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s0.run/internal/procapi"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

type harness struct {
	*Channel
	dir  string
	lost chan bool // silent
	stop func()
}

func start(t *testing.T, dir string) *harness { return startWith(t, Config{Dir: dir}) }

func startWith(t *testing.T, cfg Config, change ...func(*Channel)) *harness {
	t.Helper()
	h := &harness{dir: cfg.Dir, lost: make(chan bool, 16)}
	cfg.Grace, cfg.Lost = 50*time.Millisecond, func(silent bool) { h.lost <- silent }
	c, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(c)
	}
	h.Channel = c
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Run(ctx)
	}()
	h.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	t.Cleanup(h.stop)
	return h
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// oneConn is a listener that hands out one connection.
type oneConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
	given  bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.Conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error   { l.once.Do(func() { close(l.closed) }); return l.Conn.Close() }
func (l *oneConn) Addr() net.Addr { return l.Conn.LocalAddr() }

func dial(t *testing.T, dir string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(dir, filepath.Base(procapi.Socket)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// procd dials like procd does and serves handler; hangup cuts the connection.
func procd(t *testing.T, dir string, handler http.Handler) (hangup func()) {
	t.Helper()
	return serve(t, dial(t, dir), handler)
}

// serve is procd on a connection.
func serve(t *testing.T, conn net.Conn, handler http.Handler) (hangup func()) {
	t.Helper()
	l := &oneConn{Conn: conn, closed: make(chan struct{})}
	srv := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	hangup = sync.OnceFunc(func() {
		srv.Close()
		conn.Close()
		wg.Wait()
	})
	t.Cleanup(hangup)
	return hangup
}

func answer(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
}

func hello(boot string) http.HandlerFunc {
	b, _ := json.Marshal(procapi.Hello{Version: "v1", BootID: boot, Ready: true})
	return answer(string(b))
}

func mustHello(t *testing.T, h *harness, boot string) {
	t.Helper()
	got, err := h.WaitHello(bounded(t))
	if err != nil || got.BootID != boot {
		t.Fatalf("hello %+v (%v), want %s", got, err, boot)
	}
}

func TestHelloAndInit(t *testing.T) {
	t.Parallel()
	h := start(t, t.TempDir())
	got := make(chan procapi.Init, 1)
	mux := http.NewServeMux()
	mux.Handle("GET /hello", hello("b1"))
	mux.HandleFunc("POST /init", func(w http.ResponseWriter, r *http.Request) {
		var in procapi.Init
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		got <- in
		io.WriteString(w, "{}")
	})
	procd(t, h.dir, mux)
	mustHello(t, h, "b1")
	in := procapi.Init{SandboxID: "local-x", Generation: 3, Env: map[string]string{"A": "1"}}
	if err := h.Init(bounded(t), in); err != nil {
		t.Fatal(err)
	}
	if g := <-got; g.SandboxID != in.SandboxID || g.Generation != 3 || g.Env["A"] != "1" {
		t.Errorf("procd got %+v", g)
	}
}

func TestSocketIsOurs(t *testing.T) {
	t.Parallel()
	// A path far beyond what a socket's address can hold.
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h := start(t, dir)
	st, err := os.Stat(filepath.Join(h.dir, "node.sock"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket %v (%v)", st, err)
	}
}

func TestRelistenAfterRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := start(t, dir)
	procd(t, dir, hello("b1"))
	mustHello(t, first, "b1")
	first.stop()
	second := start(t, dir)
	procd(t, dir, hello("b1")) // the redial
	mustHello(t, second, "b1")
	select {
	case <-first.lost:
		t.Error("a channel that was closed reports a loss")
	default:
	}
}

func TestLatestConnectionWins(t *testing.T) {
	t.Parallel()
	h := start(t, t.TempDir())
	procd(t, h.dir, hello("old"))
	mustHello(t, h, "old")
	procd(t, h.dir, hello("new"))
	deadline := bounded(t)
	for {
		got, err := h.WaitHello(deadline)
		if err != nil {
			t.Fatal(err)
		}
		if got.BootID == "new" {
			break
		}
	}
	select {
	case <-h.lost:
		t.Error("a replaced connection counts as lost")
	default:
	}
}

func TestLossIsReportedOnce(t *testing.T) {
	t.Parallel()
	h := start(t, t.TempDir())
	hangup := procd(t, h.dir, hello("b1"))
	mustHello(t, h, "b1")
	hangup()
	select {
	case silent := <-h.lost:
		if silent {
			t.Error("one that hung up is called silent")
		}
	case <-bounded(t).Done():
		t.Fatal("no report of the loss")
	}
	procd(t, h.dir, hello("b2"))
	mustHello(t, h, "b2")
	if n := len(h.lost); n != 0 {
		t.Errorf("%d further reports", n)
	}
}

// mute is a connection whose reader can be stopped, as a process can.
type mute struct {
	net.Conn
	stopped atomic.Bool
	heard   chan struct{} // gets a token with what is read
	closed  chan struct{}
	once    sync.Once
}

func (m *mute) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	select {
	case m.heard <- struct{}{}:
	default:
	}
	if m.stopped.Load() {
		<-m.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (m *mute) Close() error {
	m.once.Do(func() { close(m.closed) })
	return m.Conn.Close()
}

// X30: a procd that hangs is noticed though it has said nothing; one that is idle
// is left alone.
func TestX30_SilenceIsNoticed(t *testing.T) {
	t.Parallel()
	h := startWith(t, Config{Dir: t.TempDir()}, func(c *Channel) { c.transport = newTransport(200*time.Millisecond, 5*time.Second) })
	m := &mute{Conn: dial(t, h.dir), heard: make(chan struct{}, 1), closed: make(chan struct{})}
	serve(t, m, hello("b1"))
	mustHello(t, h, "b1")
	deadline := bounded(t)
	for range 10 { // it is asked again and again, and answers
		select {
		case <-m.heard:
		case <-deadline.Done():
			t.Fatal("an idle connection is not asked whether it lives")
		}
	}
	if len(h.lost) > 0 {
		t.Fatal("an idle connection was lost")
	}
	m.stopped.Store(true)
	select {
	case silent := <-h.lost:
		if !silent {
			t.Error("one that hangs is said to have hung up")
		}
	case <-bounded(t).Done():
		t.Fatal("nobody notices that procd hangs")
	}
	procd(t, h.dir, hello("b1")) // it goes on, and finds its connection closed
	mustHello(t, h, "b1")
}

// X30, B13: whatever sits at the other end, noded gets a bounded error in bounded time.
func TestX30_HostileAnswers(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]http.HandlerFunc{
		"not json":      answer("<html>"),
		"wrong type":    answer(`{"version":1}`),
		"huge":          answer(`{"version":"` + strings.Repeat("x", maxControlBytes) + `"}`),
		"long field":    answer(`{"ready":true,"version":"` + strings.Repeat("x", maxHelloField+1) + `"}`),
		"control bytes": answer(`{"ready":true,"boot_id":"a\u001b[31m"}`),
		"error status":  func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat("e", 1<<12), 500) },
		"redirect":      func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/contexts", http.StatusFound) },
		"huge header":   func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) },
		"silence":       func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1<<10)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, t.TempDir())
			procd(t, h.dir, handler)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			got, err := h.WaitHello(ctx)
			if err == nil {
				t.Fatalf("accepted %+v", got)
			}
			if len(err.Error()) > 1024 {
				t.Errorf("error text of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestX30_GarbageInsteadOfHTTP(t *testing.T) {
	t.Parallel()
	h := start(t, t.TempDir())
	conn := dial(t, h.dir)
	if _, err := conn.Write([]byte(strings.Repeat("garbage", 1000))); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Logf("closed with %v", err) // a reset is as good as an end
	}
	procd(t, h.dir, hello("b1")) // and the next one is as welcome as ever
	mustHello(t, h, "b1")
}

// A sandbox that dials in a loop must not take the node's CPU.
func TestX30_DialFloodIsRationed(t *testing.T) {
	t.Parallel()
	h := start(t, t.TempDir())
	const dials = 20
	begin := time.Now()
	for range dials {
		conn := dial(t, h.dir)
		if _, err := conn.Read(make([]byte, 1)); err != nil { // noded's preface: it was accepted
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took < (dials-1)*acceptInterval {
		t.Errorf("%d connections accepted in %v", dials, took)
	}
}

func TestRequestWaitsForConnection(t *testing.T) {
	t.Parallel()
	h := start(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://procd/files", nil)
	if _, err := h.RoundTrip(req); !errors.Is(err, ErrDisconnected) {
		t.Fatalf("without procd: %v", err)
	}
	result := make(chan error, 1)
	go func() {
		resp, err := h.RoundTrip(req.WithContext(bounded(t)))
		if err == nil {
			resp.Body.Close()
		}
		result <- err
	}()
	procd(t, h.dir, answer("here"))
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// Many responses that nobody reads must leave room for the others.
func TestSlowReadersDoNotStopOthers(t *testing.T) {
	t.Parallel()
	h := start(t, t.TempDir())
	mux := http.NewServeMux()
	mux.Handle("/hello", hello("b1"))
	mux.HandleFunc("/flood", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	})
	procd(t, h.dir, mux)
	mustHello(t, h, "b1")
	for i := range 100 {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprint("http://procd/flood?", i), nil)
		resp, err := h.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close() // unread until the end
	}
	mustHello(t, h, "b1")
}

func TestHangUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := start(t, dir)
	conn := dial(t, dir)
	serve(t, conn, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.URL.Path == procapi.PathHangUp {
			if _, err := net.Dial("unix", filepath.Join(dir, filepath.Base(procapi.Socket))); err == nil {
				t.Error("somebody listens while procd hangs up")
			}
			conn.Close()
		}
	}))
	connected(t, h)
	if err := h.HangUp(bounded(t)); err != nil {
		t.Errorf("hanging up: %v", err)
	}
	h.stop()
	again := start(t, dir) // the next life of the same sandbox
	procd(t, dir, http.NotFoundHandler())
	connected(t, again)
	select {
	case <-h.lost:
		t.Error("what was hung up is reported as lost")
	default:
	}
}

// B13: a procd that does not hang up is hung up on.
func TestB13_HangUpOnWhoStays(t *testing.T) {
	t.Parallel()
	h := start(t, t.TempDir())
	procd(t, h.dir, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	connected(t, h)
	if err := h.HangUp(bounded(t)); err == nil || !strings.Contains(err.Error(), "418") {
		t.Errorf("hanging up: %v", err)
	}
	if h.Connected() {
		t.Error("the connection is still there")
	}
}

func connected(t *testing.T, h *harness) {
	t.Helper()
	if _, err := h.connection(bounded(t)); err != nil {
		t.Fatal(err)
	}
}
