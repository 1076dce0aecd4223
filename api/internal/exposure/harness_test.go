package exposure

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/services"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	id   = sandbox.ID("local-abcdefghijklmnopqrstuvwxyz")
	name = string(id) + "--p8080.local.s0.localhost"
)

// world is a Proxy whose sandboxes are a handler, behind a front like httpapi's.
type world struct {
	t     *testing.T
	proxy *Proxy
	front *httptest.Server

	mu      sync.Mutex
	row     store.ExposedSandbox
	fail    error // what the store answers
	reads   int
	dials   int
	resumed int
	refuse  error  // what dialling answers
	woken   func() // called when a sandbox is resumed; nil: nothing
	address string
}

// serve makes a world in which every port is served by h.
func serve(t *testing.T, config string, h http.Handler) *world {
	t.Helper()
	service := httptest.NewServer(h)
	t.Cleanup(service.Close)
	return serveAt(t, config, service.Listener.Addr().String())
}

func serveAt(t *testing.T, config, address string) *world {
	t.Helper()
	w := &world{t: t, address: address, row: store.ExposedSandbox{TeamID: uuid.New(), Status: sandbox.Running, Generation: 1}}
	w.set(config)
	d, err := services.NewDomain("local", "http://s0.localhost:30080")
	if err != nil {
		t.Fatal(err)
	}
	w.proxy = New(Config{
		Store: w, Runtimes: w, Resumer: w, Domain: d, Rate: 1000, Burst: 1000, Log: slog.New(slog.DiscardHandler),
		OurToken: func(token string) bool { return strings.HasPrefix(token, "s0_") },
	})
	t.Cleanup(w.proxy.Close)
	w.front = httptest.NewServer(http.HandlerFunc(w.serveFront))
	t.Cleanup(w.front.Close)
	return w
}

// set stores a config, normalized as httpapi does it.
func (w *world) set(config string) {
	w.t.Helper()
	var c services.Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		w.t.Fatal(err)
	}
	var err error
	if c.Services, err = services.Normalize(c.Services); err != nil {
		w.t.Fatal(err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.row.Config = b
	w.mu.Unlock()
	if w.proxy != nil {
		w.proxy.Changed(id)
	}
}

func (w *world) ExposedSandbox(_ context.Context, asked sandbox.ID) (store.ExposedSandbox, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	if w.fail != nil {
		return store.ExposedSandbox{}, w.fail
	}
	if asked != id {
		return store.ExposedSandbox{}, errdefs.New(errdefs.NotFound, "sandbox not found")
	}
	return w.row, nil
}

func (w *world) Dial(ctx context.Context, to dataplane.Target, _ openapi.SandboxAppService) (net.Conn, error) {
	w.mu.Lock()
	w.dials++
	refuse := w.refuse
	w.mu.Unlock()
	if to.ID != id || to.Team != w.row.TeamID {
		w.t.Errorf("dialled %+v", to)
	}
	if refuse != nil {
		return nil, refuse
	}
	return new(net.Dialer).DialContext(ctx, "tcp", w.address)
}

func (w *world) Resume(context.Context, dataplane.Target) error {
	if w.woken != nil {
		w.woken()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resumed++
	w.row.Status = sandbox.Running
	return nil
}

func (w *world) serveFront(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("X-Request-Id", "req-1")
	rw.Header().Set("Cache-Control", "no-store")
	req, exposed, err := w.proxy.Parse(r)
	if !exposed {
		req, exposed, err = w.proxy.ParsePair(r)
	}
	if !exposed {
		http.Error(rw, "api", http.StatusTeapot)
		return
	}
	req.Remote = "client"
	if err == nil {
		err = w.proxy.Serve(rw, r, req)
	}
	if err != nil {
		e := errdefs.From(err)
		rw.Header().Set("X-Code", e.Code)
		http.Error(rw, e.Message, e.Kind.HTTPStatus())
	}
}

// request is what a test sends.
type request struct {
	method, host, path string
	header             map[string]string
	body               io.Reader
}

func (w *world) send(r request) *http.Response {
	w.t.Helper()
	if r.method == "" {
		r.method = http.MethodGet
	}
	if r.host == "" {
		r.host = name
	}
	req, err := http.NewRequest(r.method, w.front.URL+r.path, r.body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = r.host
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(strings.NewReader(string(b)))
	return resp
}

func (w *world) want(r request, status int, code string) *http.Response {
	w.t.Helper()
	resp := w.send(r)
	if resp.StatusCode != status || resp.Header.Get("X-Code") != code {
		w.t.Errorf("%s %s%s: %d %q, want %d %q", r.method, r.host, r.path, resp.StatusCode, resp.Header.Get("X-Code"), status, code)
	}
	return resp
}

// raw sends bytes and answers the status line.
func (w *world) raw(text string) string {
	w.t.Helper()
	c, err := net.Dial("tcp", w.front.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, text)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// one is a config with one public service at 8080 that has these routes.
func one(routes string) string {
	return `{"services":[{"id":"web","port":8080,"ingress":{"public":true,"routes":[` + routes + `]}}]}`
}

// echo answers what it got.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "uri": r.RequestURI, "host": r.Host, "header": r.Header, "body": string(body)})
})

type echoed struct {
	Method, URI, Host, Body string
	Header                  http.Header
}

func decode(t *testing.T, resp *http.Response) (e echoed) {
	t.Helper()
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		t.Fatalf("status %d: %v", resp.StatusCode, err)
	}
	return e
}

func addressOf(id sandbox.ID) services.Address { return services.Address{ID: id, Port: 8080} }

// speak answers every connection with the same bytes, whatever was asked.
func speak(t *testing.T, answer string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				bufio.NewReader(c).ReadString('\n')
				io.WriteString(c, answer)
			}()
		}
	}()
	return l.Addr().String()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
