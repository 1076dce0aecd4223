package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/contract"
)

// instance is an API server with a fake node, over a real database.
type instance struct {
	t     testing.TB
	url   string
	dsn   string
	node  *fakenode.Node
	log   *logBuffer
	admin string // email
	pass  string
	stop  func()
	again func() // starts it again after stop, with the same configuration

	keyFile string
}

// logBuffer is what the server logged, at every level.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// line is what was logged about something, first.
func (l *logBuffer) line(about string) string {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, about) {
			return line
		}
	}
	return ""
}

type option func(*api.Config, *fakenode.Node)

// start runs a server until the test ends.
func start(t testing.TB, opts ...option) *instance {
	t.Helper()
	i := &instance{t: t, dsn: s0test.Postgres(t), log: &logBuffer{}}
	node := &fakenode.Node{Proc: fakenode.NewProcd()}
	ready := make(chan string, 1)
	dir := t.TempDir()
	cfg := api.Config{
		Listen: "127.0.0.1:0", DatabaseURL: i.dsn, AdminSocket: filepath.Join(dir, "admin.sock"), KeyFile: filepath.Join(dir, "key"),
		DefaultImage: "image", PoolMin: 4, PoolMax: 8, RateLimit: 10_000, RateBurst: 10_000,
		OnBootstrap: func(email, password string) { i.admin, i.pass = email, password },
		Log:         slog.New(slog.NewTextHandler(i.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Ready:       func(addr string) { ready <- addr },
	}
	for _, o := range opts {
		o(&cfg, node)
	}
	i.keyFile, i.dsn = cfg.KeyFile, cfg.DatabaseURL
	i.node = fakenode.Start(t, node)
	if cfg.Nodes == nil {
		cfg.Nodes = []string{"unix://" + i.node.Socket}
	}
	i.again = func() { i.run(cfg, ready) }
	i.again()
	return i
}

func (i *instance) run(cfg api.Config, ready <-chan string) {
	i.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx, cfg) }()
	stopped := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			i.t.Errorf("api: %v", err)
		}
	})
	i.stop = stopped
	i.t.Cleanup(stopped)
	select {
	case addr := <-ready:
		i.url = "http://" + addr
	case err := <-done:
		done <- nil // for the cleanup
		i.t.Fatalf("api: %v", err)
	case <-time.After(time.Minute):
		i.t.Fatal("api: not ready")
	}
	fakenode.Eventually(i.t, "the server is ready", func() bool {
		resp, err := http.Get(i.url + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// checked is how tests reach a server: what it answers is held against the
// contract.
var (
	checked http.RoundTripper
	checker *contract.Checker
)

func TestMain(m *testing.M) {
	contract.Main(m, func(c *contract.Checker) {
		checker, checked = c, c.Transport(http.DefaultTransport)
		http.DefaultClient.Transport = checked
	})
}

// request is one request of a test.
type request struct {
	method, path string
	token        string
	body         any // a string, bytes or a reader as it is, anything else as JSON
	header       http.Header
	outside      bool // the contract does not describe this
}

// answer is what came back.
type answer struct {
	t      testing.TB
	status int
	header http.Header
	raw    []byte
	data   json.RawMessage
	code   string
	msg    string
}

// send sends a request and holds the answer against the contract.
func (i *instance) send(r request) answer {
	i.t.Helper()
	req := i.request(r)
	if r.outside {
		req = req.WithContext(contract.Skip(req.Context()))
	}
	resp, err := checked.RoundTrip(req)
	if err != nil {
		i.t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		i.t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	a := answer{t: i.t, status: resp.StatusCode, header: resp.Header, raw: b}
	a.open(r)
	return a
}

func (i *instance) request(r request) *http.Request {
	i.t.Helper()
	var body io.Reader
	switch b := r.body.(type) {
	case nil:
	case string:
		body = strings.NewReader(b)
	case []byte:
		body = bytes.NewReader(b)
	case io.Reader:
		body = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			i.t.Fatal(err)
		}
		body = bytes.NewReader(j)
	}
	req, err := http.NewRequest(r.method, i.url+r.path, body)
	if err != nil {
		i.t.Fatal(err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	return req
}

// open checks the envelope, which every answer but a file has.
func (a *answer) open(r request) {
	a.t.Helper()
	if a.header.Get("X-Request-Id") == "" {
		a.t.Errorf("%s %s: no request id", r.method, r.path)
	}
	if a.header.Get("Content-Type") != "application/json" {
		return
	}
	var env struct {
		Success *bool
		Data    json.RawMessage
		Error   *struct{ Code, Message string }
	}
	if err := json.Unmarshal(a.raw, &env); err != nil || env.Success == nil {
		a.t.Errorf("%s %s: not an envelope: %s", r.method, r.path, a.raw)
		return
	}
	if *env.Success != (a.status < 400) || *env.Success == (env.Error != nil) {
		a.t.Errorf("%s %s: status %d with %s", r.method, r.path, a.status, a.raw)
	}
	a.data = env.Data
	if env.Error != nil {
		a.code, a.msg = env.Error.Code, env.Error.Message
	}
}

// validate holds an answer against the contract that has come another way.
func (i *instance) validate(req *http.Request, a answer) {
	checker.Check(&http.Response{StatusCode: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.raw)), Request: req})
}

// want checks the status and decodes the data into out, unless it is nil.
func (a answer) want(status int, out any) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("status %d, want %d: %s", a.status, status, a.raw)
	}
	if out != nil {
		if err := json.Unmarshal(a.data, out); err != nil {
			a.t.Fatalf("%s: %v", a.raw, err)
		}
	}
	return a
}

// refused checks the status and code of an error.
func (a answer) refused(status int, code string) answer {
	a.t.Helper()
	if a.status != status || a.code != code {
		a.t.Errorf("status %d code %q, want %d %q: %s", a.status, a.code, status, code, a.raw)
	}
	return a
}

// signIn gives the admin's access token.
func (i *instance) signIn() string {
	i.t.Helper()
	var s struct {
		AccessToken string `json:"access_token"`
	}
	i.send(request{method: "POST", path: "/auth/login", body: map[string]string{"email": i.admin, "password": i.pass}}).want(200, &s)
	return s.AccessToken
}

// key makes an API key of the admin's team.
func (i *instance) key(roles ...string) string {
	i.t.Helper()
	var k struct{ Key string }
	i.send(request{method: "POST", path: "/api-keys", token: i.signIn(), body: map[string]any{"name": "k", "roles": roles, "expires_in": "30d"}}).want(201, &k)
	return k.Key
}

// stranger makes another team with an admin key of its own, straight in the
// database: there is no API for teams yet.
func (i *instance) stranger() string {
	i.t.Helper()
	conn := connect(i.t, i.dsn)
	defer conn.Close(context.Background())
	team := uuid.New()
	key := i.key("admin")
	// The key's row moves to the new team: same secret, another tenant.
	for _, sql := range []string{
		"INSERT INTO teams (id, name, slug, owner_id, home_region_id) SELECT $1::uuid, 'Other', ($1::uuid)::text, id, 'local' FROM users LIMIT 1",
		"UPDATE api_keys SET team_id = $1, updated_at = now(), roles = roles WHERE id = (SELECT id FROM api_keys ORDER BY created_at DESC LIMIT 1)",
	} {
		if _, err := conn.Exec(context.Background(), sql, team); err != nil {
			i.t.Fatal(err)
		}
	}
	return key
}

// claim gives a sandbox's id.
func (i *instance) claim(token string) string {
	i.t.Helper()
	var c struct {
		SandboxID string `json:"sandbox_id"`
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: token, body: map[string]any{"template": "default"}}).want(201, &c)
	return c.SandboxID
}

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func exec(t testing.TB, dsn, sql string) {
	t.Helper()
	conn := connect(t, dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		t.Fatal(err)
	}
}

// watchMemory answers by how much the heap has grown at its largest.
func watchMemory(t testing.TB) (grown func() uint64) {
	t.Helper()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var largest atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			largest.Store(max(largest.Load(), heap()))
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-stopped
		return max(largest.Load(), before) - before
	}
}
