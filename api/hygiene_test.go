package api_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
)

// Every answer says how many requests are left, and the one that says that none
// are is an error like any other.
func TestRateLimitsAreTold(t *testing.T) {
	t.Parallel()
	const burst = 5
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.RateLimit, c.RateBurst = 100, 1000 })
	key := i.key("admin")
	for _, r := range []request{
		{method: "GET", path: "/healthz"}, {method: "GET", path: "/nothing"}, {method: "PATCH", path: "/teams"},
		{method: "GET", path: "/api/v1/sandboxes"}, {method: "GET", path: "/api/v1/sandboxes", token: "s0_local_x"},
		{method: "GET", path: "/teams", token: key}, {method: "GET", path: "/api/v1/sandboxes", token: key},
		{method: "POST", path: "/api/v1/sandboxes", token: key, body: "{"}, {method: "GET", path: "/api/v1/sandboxes/x", token: key},
		{method: "GET", path: "/internal/v1/audit", token: key}, {method: "GET", path: "/docs"},
	} {
		a := i.send(r)
		left, err := strconv.Atoi(a.header.Get("X-RateLimit-Remaining"))
		if err != nil || left < 0 || left >= 1000 || a.header.Get("X-RateLimit-Limit") != "1000" {
			t.Errorf("%s %s (%d): %s of %s left", r.method, r.path, a.status, a.header.Get("X-RateLimit-Remaining"), a.header.Get("X-RateLimit-Limit"))
		}
	}
	slow := start(t, func(c *api.Config, _ *fakenode.Node) {
		c.RateLimit, c.RateBurst, c.TrustedProxies = 0.01, burst, []string{"127.0.0.0/8"}
	})
	// Each client behind the proxy has its own share; an IPv6 network is one client.
	for n, from := range []string{"203.0.113.1", "203.0.113.2", "2001:db8::%d"} {
		for k := range burst + 1 {
			client := from
			if n == 2 {
				client = fmt.Sprintf(from, k+1)
			}
			a := slow.send(request{method: "GET", path: "/metadata", header: http.Header{"X-Forwarded-For": {"198.51.100.7, " + client}}})
			if k < burst {
				a.want(200, nil)
				continue
			}
			a.refused(429, "rate_limited")
			if wait, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || wait < 1 || a.header.Get("X-RateLimit-Remaining") != "0" {
				t.Errorf("%s: Retry-After %q, %q left", client, a.header.Get("Retry-After"), a.header.Get("X-RateLimit-Remaining"))
			}
		}
	}
}

// A proxy that nobody trusts is a client like any other, whatever it claims.
func TestForwardedForIsNotBelieved(t *testing.T) {
	t.Parallel()
	i := start(t)
	a := i.send(request{method: "POST", path: "/auth/login", body: `{"email":"` + i.admin + `","password":"wrong"}`, header: http.Header{"X-Forwarded-For": {"203.0.113.1"}}})
	if list := i.records(a.header.Get("X-Request-Id")); len(list) != 1 || list[0].Address != "127.0.0.1" {
		t.Errorf("%+v", list)
	}
	trusting := start(t, func(c *api.Config, _ *fakenode.Node) { c.TrustedProxies = []string{"127.0.0.1/32"} })
	a = trusting.send(request{method: "POST", path: "/auth/login", body: `{"email":"` + trusting.admin + `","password":"wrong"}`, header: http.Header{"X-Forwarded-For": {"203.0.113.1"}}})
	if list := trusting.records(a.header.Get("X-Request-Id")); len(list) != 1 || list[0].Address != "203.0.113.1" {
		t.Errorf("%+v", list)
	}
}

// A request keeps the id that its client gave it, if it may stand in a log; every
// answer has one, that of a WebSocket's handshake too.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	ours := regexp.MustCompile(`^req-[0-9a-f]{24}$`)
	for sent, kept := range map[string]bool{
		"client-0001": true, strings.Repeat("a", 64): true, "a.b_c-d.E9": true,
		"short": false, strings.Repeat("a", 65): false, "with space": false, `quo"te-quote`: false, "ünicode-ünicode": false, "": false,
	} {
		for _, path := range []string{"/healthz", "/nothing/at/all", "/api/v1/sandboxes"} {
			a := i.send(request{method: "GET", path: path, token: key, header: http.Header{"X-Request-Id": {sent}}})
			if got := a.header.Get("X-Request-Id"); kept && got != sent || !kept && !ours.MatchString(got) {
				t.Errorf("%s with id %q has %q", path, sent, got)
			}
		}
	}
	a := i.send(request{method: "GET", path: "/healthz", header: http.Header{"X-Request-Id": {"client-0001", "client-0002"}}})
	if got := a.header.Get("X-Request-Id"); !ours.MatchString(got) {
		t.Errorf("of two ids it took %q", got)
	}
	id := i.claim(key)
	var c struct{ ID string }
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/contexts", token: key, body: `{"type":"repl"}`}).want(201, &c)
	conn, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(i.url, "http")+"/api/v1/sandboxes/"+id+"/contexts/"+c.ID+"/ws",
		http.Header{"Authorization": {"Bearer " + key}, "X-Request-Id": {"client-0003"}})
	if err != nil || resp.Header.Get("X-Request-Id") != "client-0003" {
		t.Fatalf("%v: %v", err, resp)
	}
	conn.Close()
	if !strings.Contains(i.log.String(), "client-0001") {
		t.Error("the log does not name the request")
	}
}

// The contract is served in three forms, none of which brings anything along.
func TestDocs(t *testing.T) {
	t.Parallel()
	i := start(t)
	for path, c := range map[string]struct{ kind, says string }{
		"/docs":         {"text/html; charset=utf-8", "createSandbox"},
		"/openapi.yaml": {"application/yaml", "openapi: 3.0.3"},
		"/openapi.json": {"application/vnd.oai.openapi+json", `"openapi":"3.0.3"`},
	} {
		a := i.send(request{method: "GET", path: path})
		if a.status != 200 || a.header.Get("Content-Type") != c.kind || !strings.Contains(string(a.raw), c.says) {
			t.Errorf("%s: %d %s, %d bytes", path, a.status, a.header.Get("Content-Type"), len(a.raw))
		}
		t.Logf("%s: %d KiB", path, len(a.raw)>>10)
	}
	policy := i.send(request{method: "GET", path: "/docs"}).header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
}

// A08: a body of a gigabyte, and one of very many keys, cost the server next to
// nothing. Not parallel: it watches the process's memory.
func TestA08_HugeBodies(t *testing.T) {
	i := start(t)
	key := i.key("admin")
	keys := func(n int) string {
		var b strings.Builder
		b.WriteString(`{"template":"default","config":{"env_vars":{`)
		for k := range n {
			fmt.Fprintf(&b, `"K%d":"",`, k)
		}
		return b.String() + `"K":""}}}`
	}
	many, most := keys(60_000), keys(1_000_000)
	grown := watchMemory(t)
	for _, head := range []string{"Content-Length: 1073741824", "Transfer-Encoding: chunked"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		sent := make(chan int64, 1)
		go func() {
			fmt.Fprintf(conn, "POST /api/v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n", key, head)
			var n int64
			for chunk := fmt.Sprintf("10000\r\n%s\r\n", strings.Repeat(" ", 1<<16)); n < 1<<30; n += 1 << 16 {
				if _, err := io.WriteString(conn, chunk); err != nil {
					break
				}
			}
			sent <- n
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close {
			t.Errorf("%s: %v: %v", head, resp, err)
		}
		conn.Close()
		if n := <-sent; n > 64<<20 { // and what the kernel buffers
			t.Errorf("%s: %d MiB were taken", head, n>>20)
		}
	}
	began := time.Now()
	a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: many})
	if a.status != 400 || time.Since(began) > 10*time.Second {
		t.Errorf("60,000 keys: %d after %v: %.200s", a.status, time.Since(began), a.raw)
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: most}).refused(413, "bad_request")
	if n := grown(); n > 100<<20 {
		t.Errorf("memory grew by %d MiB", n>>20)
	}
}

// A22: whatever the database says goes to the log, and nowhere else.
func TestA22_NoOperationTellsWhatBroke(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, nil) // the key is known from here on
	exec(t, i.dsn, `DO $$ DECLARE r record; BEGIN
		FOR r IN SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename NOT IN ('api_keys', 'users', 'teams', 'team_members') LOOP
			EXECUTE format('ALTER TABLE %I RENAME TO %I', r.tablename, r.tablename || '_away');
		END LOOP; END $$`)
	broken := 0
	secret := regexp.MustCompile(`(?i)select |insert |relation|sqlstate|pgx|postgres|_away|goroutine|\.go:|/tmp/|\.sock`)
	for _, o := range operations(t) {
		if strings.Contains(o.path, "/ws") || strings.Contains(o.path, "/watch") {
			continue
		}
		a := i.send(request{method: o.method, path: pathParameter.ReplaceAllString(o.path, "local-aaaaaaaaaaaaaaaaaaaaaaaaaa"), token: key, body: bodies[o.op.OperationID]})
		if a.status == 500 {
			broken++
			if a.msg != "internal error" || !strings.Contains(string(a.raw), a.header.Get("X-Request-Id")) {
				t.Errorf("%s: %s", o.op.OperationID, a.raw)
			}
		}
		if a.status >= 400 && secret.Match(a.raw) {
			t.Errorf("%s tells %s", o.op.OperationID, a.raw)
		}
	}
	if broken < 5 {
		t.Errorf("only %d operations found the database broken", broken)
	}
}

// H05: what tells about every tenant is for this machine's operator alone.
func TestH05_ProfilesAreOnTheUnixSocketAlone(t *testing.T) {
	t.Parallel()
	var socket string
	i := start(t, func(c *api.Config, _ *fakenode.Node) { socket = c.AdminSocket })
	i.send(request{method: "GET", path: "/debug/pprof/"}).refused(404, "not_found")
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v: %v", info, err)
	}
	local := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer local.CloseIdleConnections()
	for path, says := range map[string]string{"/debug/pprof/goroutine?debug=1": "goroutine profile", "/metrics": "s0_api_free_slots"} {
		resp, err := local.Get("http://api" + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || !strings.Contains(string(b), says) {
			t.Errorf("%s: %s %.200s", path, resp.Status, b)
		}
	}
}

// From elsewhere metrics are read with their own token alone, and never with a person's.
func TestH05_MetricsNeedTheirToken(t *testing.T) {
	t.Parallel()
	const token = "a token of sixteen or more"
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.MetricsToken = token })
	for bearer, want := range map[string]int{token: http.StatusOK, "": http.StatusNotFound, token + "x": http.StatusNotFound, token[1:]: http.StatusNotFound, i.key("admin"): http.StatusNotFound} {
		header := http.Header{"X-Forwarded-For": {"203.0.113.9"}}
		if bearer != "" {
			header.Set("Authorization", "Bearer "+bearer)
		}
		if a := i.send(request{method: "GET", path: "/metrics", header: header, outside: true}); a.status != want {
			t.Errorf("with %q: %d, want %d", bearer, a.status, want)
		}
	}
}
