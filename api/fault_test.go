package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
)

func TestX34_SandboxesStayUsableWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.DatabaseURL = pg.Database(t) })
	i.dsn = "" // the helpers must not use the other database
	key := i.key("developer")
	id := i.claim(key)
	base := "/api/v1/sandboxes/" + id
	fakenode.Eventually(t, "the sandbox is known in memory", func() bool { return i.send(request{method: "GET", path: base + "/contexts", token: key}).status == 200 })
	pg.Stop()
	for range 5 {
		i.send(request{method: "GET", path: base + "/contexts", token: key}).want(200, nil)
		i.send(request{method: "POST", path: base + "/files?path=a", token: key, body: "x"}).want(200, nil)
		i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).refused(503, "unavailable")
		i.send(request{method: "GET", path: base, token: key}).refused(503, "unavailable")
		i.send(request{method: "GET", path: "/readyz"}).refused(503, "unavailable")
		i.send(request{method: "GET", path: "/healthz"}).want(200, nil)
	}
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	fakenode.Eventually(t, "claims work again", func() bool {
		return i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).status == 201
	})
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("recovery took %v", took)
	}
	i.send(request{method: "GET", path: base, token: key}).want(200, nil)
}

// X35: a database that holds its locks makes a claim fail in time and leave nothing.
func TestX35_ALockedTable(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	i.claim(key)
	locked, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { lockTable(t, i.dsn, locked, release) })
	<-locked
	began := time.Now()
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).refused(503, "unavailable")
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the answer took %v", took)
	}
	close(release)
	wg.Wait()
	var list struct{ Count int }
	fakenode.Eventually(t, "the half claim is undone", func() bool {
		i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, &list)
		return list.Count == 1 && len(i.node.Sandboxes()) == 1
	})
}

func lockTable(t *testing.T, dsn string, locked chan<- struct{}, release <-chan struct{}) {
	defer close(locked)
	conn := connect(t, dsn)
	defer conn.Close(context.Background())
	tx, err := conn.Begin(context.Background())
	if err == nil {
		_, err = tx.Exec(context.Background(), "LOCK TABLE sandboxes IN ACCESS EXCLUSIVE MODE")
	}
	if err != nil {
		t.Error(err)
		return
	}
	locked <- struct{}{}
	<-release
	tx.Rollback(context.Background())
}

// X39: a server that stops finishes the claims that it has begun.
func TestX39_AClaimSurvivesTheStop(t *testing.T) {
	t.Parallel()
	begun, proceed := make(chan struct{}), make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) }) // a slow machine's server may ask again
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.OnClaim = func(context.Context, *nodeapi.ClaimRequest) error {
			begin()
			<-proceed
			return nil
		}
	})
	key := i.key("developer")
	answered := make(chan int, 1)
	go func() {
		resp, err := http.DefaultClient.Do(i.request(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}))
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	<-begun
	stopped := make(chan struct{})
	go func() {
		i.stop()
		close(stopped)
	}()
	fakenode.Eventually(t, "the server takes no new connections", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	close(proceed)
	if status := <-answered; status != 201 {
		t.Errorf("status %d", status)
	}
	<-stopped
}

// X40, R1: a second replica over the same database and node sees what the first
// has made, and a key that one revokes ends at the other.
func TestX40_TwoReplicas(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := replica(t, a)
	key := a.key("developer")
	id := a.claim(key)
	fakenode.Eventually(t, "the other replica reaches the sandbox", func() bool {
		return b.send(request{method: "GET", path: "/api/v1/sandboxes/" + id + "/contexts", token: key}).status == 200
	})
	var list struct {
		APIKeys []struct{ ID string } `json:"api_keys"`
	}
	jwt := a.signIn()
	a.send(request{method: "GET", path: "/api-keys", token: jwt}).want(200, &list)
	a.send(request{method: "DELETE", path: "/api-keys/" + list.APIKeys[0].ID, token: jwt}).want(200, nil)
	began := time.Now()
	fakenode.Eventually(t, "the other replica refuses the key", func() bool {
		return b.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).status == 401
	})
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("A06: the key went on for %v", took)
	}
	b.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: jwt}).want(200, nil)
	a.send(request{method: "GET", path: "/api/v1/sandboxes/" + id, token: jwt}).refused(404, "not_found")
}

// replica runs another server over an instance's database and node.
func replica(t *testing.T, of *instance) *instance {
	t.Helper()
	dir := t.TempDir()
	ready := make(chan string, 1)
	i := &instance{t: t, dsn: of.dsn, node: of.node, log: &logBuffer{}, admin: of.admin, pass: of.pass}
	cfg := api.Config{
		Listen: "127.0.0.1:0", DatabaseURL: of.dsn, Nodes: []string{of.node.Socket}, KeyFile: of.keyFile, AdminSocket: filepath.Join(dir, "admin.sock"),
		DefaultImage: "image", PoolMin: 4, PoolMax: 8, RateLimit: 10_000, RateBurst: 10_000,
		OnBootstrap: func(string, string) { t.Error("the first user was made twice") },
		Log:         slog.New(slog.NewTextHandler(i.log, nil)), Ready: func(addr string) { ready <- addr },
	}
	i.again = func() { i.run(cfg, ready) }
	i.again()
	return i
}

func TestG01_ManyClaimsAtOnce(t *testing.T) {
	t.Parallel()
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.PoolMin, c.PoolMax = 50, 50 })
	key := i.key("developer")
	const claims = 200
	ids := make([]string, claims)
	var wg sync.WaitGroup
	for n := range claims {
		wg.Go(func() { ids[n] = i.claimInTheCrowd(key) })
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			t.Errorf("%s was claimed twice", id)
		}
		seen[id] = true
	}
	var list struct {
		Count   int
		HasMore bool `json:"has_more"`
	}
	fakenode.Eventually(t, "rows and node agree on the claims", func() bool {
		i.send(request{method: "GET", path: "/api/v1/sandboxes?limit=200", token: key}).want(200, &list)
		return list.Count == claims && !list.HasMore && len(i.node.Sandboxes()) == claims
	})
}

// claimInTheCrowd claims as a client does that comes again when it is told to: on a busy
// machine the queues for turns and for the database may be full for a while.
func (i *instance) claimInTheCrowd(key string) string {
	var c struct {
		SandboxID string `json:"sandbox_id"`
	}
	for range 20 {
		a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`})
		if (a.status == 503 || a.code == "claim_start_throttled") && a.header.Get("Retry-After") != "" {
			continue
		}
		if err := json.Unmarshal(a.data, &c); err != nil || a.status != 201 {
			i.t.Errorf("status %d: %s: %s", a.status, a.raw, i.log.line(a.header.Get("X-Request-Id")))
		}
		break
	}
	return c.SandboxID
}

// A09: whoever is slow is cut off, and holds up nobody.
func TestA09_SlowClients(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	for name, head := range map[string]string{
		"half a header": "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ",
		"nothing":       "",
		"unread body":   "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, head)
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, bufio.NewReader(conn)); err != nil {
				t.Errorf("the connection was not cut off: %v", err)
			}
		})
	}
	i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, nil)
}

// B06, B08: memory does not grow with a file, in either direction. Not parallel:
// it watches the process's memory.
func TestLargeFilesStream(t *testing.T) {
	const size = 64 << 20
	var got atomic.Int64
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.Proc = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				n, _ := io.Copy(io.Discard, r.Body)
				got.Store(n)
				fmt.Fprint(w, "{}")
				return
			}
			io.CopyN(w, zeroes{}, size)
		})
	})
	key := i.key("developer")
	base := "/api/v1/sandboxes/" + i.claim(key)
	peak := watchMemory(t)
	i.send(request{method: "POST", path: base + "/files?path=a", token: key, body: io.LimitReader(zeroes{}, size)}).want(200, nil)
	if got.Load() != size {
		t.Errorf("%d bytes arrived", got.Load())
	}
	for _, accept := range []string{"*/*", "application/json"} {
		resp, err := http.DefaultClient.Do(i.request(request{method: "GET", path: base + "/files?path=a", token: key, header: http.Header{"Accept": {accept}}}))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || n < size {
			t.Errorf("%s: %d bytes, %v", accept, n, err)
		}
	}
	if grown := peak(); grown > size*3/4 { // all tests' garbage is in it
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
}

// X35: a database that is there and says nothing makes requests fail in time, and
// nothing is stuck when it goes on.
func TestX35_AFrozenDatabase(t *testing.T) {
	t.Parallel()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.DatabaseURL = pg.Database(t) })
	i.dsn = "" // the helpers must not use the other database
	key, jwt := i.key("developer"), i.signIn()
	id := i.claim(key)
	thaw := pg.Freeze(t)
	var wg sync.WaitGroup
	for _, r := range []request{
		{method: "GET", path: "/api/v1/sandboxes", token: key},
		{method: "GET", path: "/api/v1/sandboxes/" + id, token: key},
		{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key},
		{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`},
		{method: "GET", path: "/api/v1/templates", token: key},
		{method: "POST", path: "/auth/login", body: map[string]string{"email": i.admin, "password": i.pass}},
		{method: "POST", path: "/auth/refresh", body: `{"refresh_token":"x"}`},
		{method: "GET", path: "/teams", token: jwt},
		{method: "POST", path: "/api-keys", token: jwt, body: `{"name":"x"}`},
		{method: "GET", path: "/readyz"},
	} {
		wg.Go(func() {
			began := time.Now()
			i.send(r).refused(503, "unavailable")
			if took := time.Since(began); took > 12*time.Second {
				t.Errorf("%s %s: the answer took %v", r.method, r.path, took)
			}
		})
	}
	wg.Wait()
	thaw()
	began := time.Now()
	fakenode.Eventually(t, "claims work again", func() bool {
		return i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).status == 201
	})
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("recovery took %v", took)
	}
}
