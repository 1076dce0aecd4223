package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// site is a service of the tenant's own: it tells what it got, streams events
// that it is told to send, and echoes over a WebSocket. Standard library alone.
const site = `
import asyncio, base64, hashlib, json, os, sys

async def frame(reader):
    first, second = await reader.readexactly(2)
    n = second & 127
    if n == 126: n = int.from_bytes(await reader.readexactly(2), "big")
    mask = await reader.readexactly(4)
    return first & 15, bytes(b ^ mask[i % 4] for i, b in enumerate(await reader.readexactly(n)))

async def serve(reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {k.lower(): v.strip() for k, _, v in (l.partition(":") for l in head[1:] if l)}
    if target.startswith("/ws"):
        key = base64.b64encode(hashlib.sha1((headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
        writer.write(("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n" % key).encode())
        while True:
            op, data = await frame(reader)
            if op == 8: break
            head = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
            writer.write(bytes([0x80 | op]) + head + data)
            await writer.drain()
    elif target.startswith("/events"):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for i in range(3):
            writer.write(b"data: %d\n\n" % i)
            await writer.drain()
            while not os.path.exists("/tmp/event-%d" % i): await asyncio.sleep(0.01)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        env = {k: v for k, v in os.environ.items() if k.startswith("SANDBOX0_SERVICE") or k == "OWN"}
        answer = json.dumps({"method": method, "target": target, "headers": headers, "body": len(body), "env": env, "pid": os.getpid()}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Domain=s0.localhost\r\nX-Team-Id: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(answer) + answer)
    await writer.drain()
    writer.close()

async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as s: await s.serve_forever()
asyncio.run(main())
`

// visitor is somebody outside, who knows an address and nothing else.
type visitor struct {
	u    *user
	host string // the name that is asked for
}

// visit makes a visitor of a sandbox's port.
func (u *user) visit(id string, port int) visitor {
	u.t.Helper()
	list, err := u.c.SandboxServices(u.ctx(), id)
	must(u, "reading the services of "+id, list, err)
	return visitor{u, fmt.Sprintf("%s--p%d.%s", id, port, list.ExposureDomain)}
}

func (v visitor) send(method, path string, body io.Reader, header ...string) (*http.Response, string) {
	v.u.t.Helper()
	resp, err := v.try(method, path, body, header...)
	must(v.u, method+" "+path, resp, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(must(v.u, "reading "+path, b, err))
}

func (v visitor) try(method, path string, body io.Reader, header ...string) (*http.Response, error) {
	v.u.t.Helper()
	req, err := http.NewRequestWithContext(v.u.ctx(), method, v.u.stack.URL+path, body)
	must(v.u, "making a request", req, err)
	req.Host = v.host
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return http.DefaultTransport.RoundTrip(req)
}

// seen is what the site says that it got.
type seen struct {
	Target       string
	Headers, Env map[string]string
	Body, PID    int
}

func (v visitor) get(path string, header ...string) seen {
	v.u.t.Helper()
	var s seen
	resp, body := v.send(http.MethodGet, path, nil, header...)
	if err := json.Unmarshal([]byte(body), &s); err != nil || resp.StatusCode != http.StatusOK {
		v.u.t.Fatalf("GET %s%s: status %d: %.300s", v.host, path, resp.StatusCode, body)
	}
	return s
}

// refused wants an error in the API's own shape.
func (v visitor) refused(status int, code, path string, header ...string) {
	v.u.t.Helper()
	resp, body := v.send(http.MethodGet, path, nil, header...)
	var e struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil || resp.StatusCode != status || e.Error.Code != code {
		v.u.t.Errorf("GET %s%s: status %d: %.300s; want %d %s", v.host, path, resp.StatusCode, body, status, code)
	}
}

func (v visitor) socket(path string) *websocket.Conn {
	v.u.t.Helper()
	dialer := websocket.Dialer{WriteBufferSize: 64 << 10} // what is larger goes out in fragments
	c, resp, err := dialer.DialContext(v.u.ctx(), strings.Replace(v.u.stack.URL, "http", "ws", 1)+path, http.Header{"Host": {v.host}})
	if err != nil {
		v.u.t.Fatalf("WebSocket %s: %v, %v", path, err, resp)
	}
	v.u.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	return c
}

func (v visitor) echoes(c *websocket.Conn, text string) {
	v.u.t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		v.u.t.Fatal(err)
	}
	if _, b, err := c.ReadMessage(); err != nil || string(b) != text {
		v.u.t.Fatalf("echo %.80q, %v", b, err)
	}
}

func (u *user) serve(id string, list ...client.SandboxAppService) {
	u.t.Helper()
	got, err := u.c.UpdateSandboxServices(u.ctx(), id, list)
	must(u, "setting the services of "+id, got, err)
}

// TestServices runs what the contract says of services against real sandboxes.
func TestServices(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 2})
	for name, test := range map[string]func(*user){
		"manual": testManualService, "command": testCommandService, "function": testFunctionService, "claimed": testServicesOfAClaim,
	} {
		t.Run(name, func(t *testing.T) { test(newUser(t, s)) })
	}
	s.CheckOwned()
}

// testManualService: what a tenant runs himself is private until it is exposed;
// then everything passes but our own words (A19, A20, A21).
func testManualService(u *user) {
	id := u.claim()
	u.write(id, "/workspace/site.py", site)
	run, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{
		Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"python3", "site.py", "9000"}},
	})
	must(u, "starting the site", run, err)
	v := u.visit(id, 9000)
	v.refused(404, "not_found", "/") // private by default

	if _, err := u.c.UpdateExposedPorts(u.ctx(), id, []client.ExposedPort{{Port: 9000}}); err != nil {
		u.t.Fatal(err)
	}
	u.stack.Eventually("the site to listen", func() error {
		if resp, body := v.send(http.MethodGet, "/", nil); resp.StatusCode != http.StatusOK {
			return errors.New(body)
		}
		return nil
	})
	got := v.get("/a%2Fb?q=%20", "X-Team-ID", "t", "S0-Timeout", "1", "X-Forwarded-For", "1.2.3.4", "Authorization", "Bearer "+u.stack.Key(), "X-Own", "kept")
	if got.Target != "/a%2Fb?q=%20" || got.Headers["host"] != v.host || got.Headers["x-own"] != "kept" || got.Headers["x-forwarded-for"] != "127.0.0.1" {
		u.t.Errorf("the service got %+v", got)
	}
	for _, gone := range []string{"x-team-id", "s0-timeout", "authorization"} {
		if v, there := got.Headers[gone]; there {
			u.t.Errorf("%s reached the sandbox: %q", gone, v)
		}
	}
	resp, _ := v.send(http.MethodGet, "/", nil)
	if resp.Header.Get("Set-Cookie") != "a=1" || resp.Header.Get("X-Team-Id") != "" {
		u.t.Errorf("the visitor got %v", resp.Header)
	}
	byHeaders := visitor{u, strings.TrimPrefix(u.stack.URL, "http://")}
	if got := byHeaders.get("/x", "X-Sandbox-ID", id, "X-Exposure-Port", "9000"); got.Target != "/x" || got.Headers["host"] != "localhost:9000" {
		u.t.Errorf("by headers: %+v", got)
	}
	if resp, body := v.send(http.MethodPost, "/", strings.NewReader(strings.Repeat("x", 1000)), "Content-Length", "1000"); resp.StatusCode != 200 {
		u.t.Errorf("POST: %d %s", resp.StatusCode, body)
	}
	u.visit(id, 22).refused(404, "not_found", "/")
	u.visit(id, 49983).refused(404, "not_found", "/")
	testSiteStreams(u, v, id)

	if _, err := u.c.RemoveExposedPort(u.ctx(), id, 9000); err != nil {
		u.t.Fatal(err)
	}
	v.refused(404, "not_found", "/")
	u.serve(id, client.SandboxAppService{ID: "dead", Port: new(int32(9001)), Ingress: client.ServiceIngress{Public: true}})
	u.visit(id, 9001).refused(503, "unavailable", "/")
	gone := u.visit(id, 9001)
	u.remove(id)
	gone.refused(404, "not_found", "/")
}

func testSiteStreams(u *user, v visitor, id string) {
	req, err := http.NewRequestWithContext(u.ctx(), http.MethodGet, u.stack.URL+"/events", nil)
	must(u, "making a request", req, err)
	req.Host = v.host
	resp, err := http.DefaultTransport.RoundTrip(req)
	must(u, "GET /events", resp, err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 { // the next event is not made before this one was seen
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) || !lines.Scan() {
			u.t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
		}
		u.write(id, fmt.Sprintf("/tmp/event-%d", i), "")
	}
	if lines.Scan() {
		u.t.Errorf("after the end: %q", lines.Text())
	}
	c := v.socket("/ws")
	for _, text := range []string{"hello", strings.Repeat("x", 60_000)} {
		v.echoes(c, text)
	}
}

// testCommandService: a command starts with the first request, once, comes back
// when it has died, and goes with its service.
func testCommandService(u *user) {
	id := u.claim()
	u.write(id, "/workspace/app/site.py", site)
	public := client.ServiceIngress{Public: true}
	web := client.SandboxAppService{ID: "web", Port: new(int32(8080)), Ingress: public, HealthCheck: &client.ServiceHealthCheck{Path: new("/health")}, Runtime: &client.ServiceRuntime{
		Type: client.ServiceRuntimeTypeCMD, Command: []string{"python3", "site.py", "8080"}, Cwd: new("app"), EnvVars: map[string]string{"OWN": "1"},
	}}
	broken := client.SandboxAppService{ID: "broken", Port: new(int32(8081)), Ingress: public, Runtime: &client.ServiceRuntime{Type: client.ServiceRuntimeTypeCMD, Command: []string{"false"}}}
	missing := client.SandboxAppService{ID: "missing", Port: new(int32(8082)), Ingress: public, Runtime: &client.ServiceRuntime{Type: client.ServiceRuntimeTypeCMD, Command: []string{"/no/such"}}}
	u.serve(id, web, broken, missing)
	v := u.visit(id, 8080)
	pids := make(chan int, 8)
	for range cap(pids) {
		go func() {
			resp, err := v.fetch("/")
			if err != nil {
				u.t.Error(err)
			}
			pids <- resp.PID
		}()
	}
	first := <-pids
	for range cap(pids) - 1 {
		if pid := <-pids; pid != first {
			u.t.Errorf("processes %d and %d serve one service", first, pid)
		}
	}
	if env := v.get("/").Env; env["SANDBOX0_SERVICE_ID"] != "web" || env["SANDBOX0_SERVICE_PORT"] != "8080" || env["SANDBOX0_SERVICE_RUNTIME"] != "cmd" || env["OWN"] != "1" {
		u.t.Errorf("environment %v", env)
	}
	u.run(id, "kill", "-9", fmt.Sprint(first))
	u.stack.Eventually("the service to come back", func() error {
		if got, err := v.fetch("/"); err != nil || got.PID == first {
			return fmt.Errorf("pid %d, %v", got.PID, err)
		}
		return nil
	})
	u.visit(id, 8081).refused(503, "unavailable", "/")
	u.visit(id, 8082).refused(503, "unavailable", "/")
	v.get("/") // the others do not matter to this one

	u.serve(id, broken)
	v.refused(404, "not_found", "/")
	u.stack.Eventually("the process of the removed service to end", func() error {
		if out := deref(u.run(id, "sh", "-c", "pgrep -f '[s]ite.py' || true").OutputRaw); strings.TrimSpace(out) != "" {
			return errors.New(out)
		}
		return nil
	})
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// fetch is get for other goroutines.
func (v visitor) fetch(path string) (s seen, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.u.stack.URL+path, nil)
	if err != nil {
		return s, err
	}
	req.Host = v.host
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	return s, err
}

const functionCode = `
import asyncio, base64, time
calls = 0
async def handler(request, ws=None):
    global calls
    calls += 1
    path = request["path"]
    if ws is not None:
        async for message in ws:
            await ws.send(message)
        return
    if path == "/fail": raise ValueError("a secret of the tenant's")
    if path == "/slow": await asyncio.sleep(60)
    if path == "/events":
        async def events():
            for i in range(3):
                await asyncio.sleep(0.01)
                yield {"n": i}
        return events()
    if path == "/form": return {"status": 201, "headers": {"X-Own": "v"}, "body": "made"}
    return {"calls": calls, "route": request["route_id"], "method": request["method"], "body": len(base64.b64decode(request["body_base64"]))}
`

// testFunctionService: a Python function, by HTTP, events and WebSocket.
func testFunctionService(u *user) {
	id := u.claim()
	language, inline := client.ServiceFunctionRuntimePython, client.ServiceFunctionSourceTypeInline
	service := func(code string) client.SandboxAppService {
		return client.SandboxAppService{
			ID: "fn", Ingress: client.ServiceIngress{Public: true, Routes: []client.ServiceRoute{{ID: "r"}, {ID: "slow", PathPrefix: new("/slow"), TimeoutSeconds: new(int32(1))}}},
			Runtime: &client.ServiceRuntime{Type: client.ServiceRuntimeTypeFunction, Function: &client.ServiceFunction{
				Runtime: &language, Source: &client.ServiceFunctionSource{Type: &inline, Code: &code},
			}},
		}
	}
	u.serve(id, service(functionCode))
	v := u.visit(id, 49983)
	want := func(method, path string, body io.Reader, status int, text string, header ...string) *http.Response {
		u.t.Helper()
		resp, got := v.send(method, path, body, header...)
		if resp.StatusCode != status || got != text {
			u.t.Errorf("%s %s: %d %.300q, want %d %.300q", method, path, resp.StatusCode, got, status, text)
		}
		return resp
	}
	want("GET", "/", nil, 200, `{"calls": 1, "route": "r", "method": "GET", "body": 0}`)
	want("POST", "/", strings.NewReader("abc"), 200, `{"calls": 2, "route": "r", "method": "POST", "body": 3}`) // one process, which stays
	want("POST", "/", strings.NewReader(strings.Repeat("x", 8<<20)), 200, `{"calls": 3, "route": "r", "method": "POST", "body": 8388608}`)
	if resp := want("GET", "/form", nil, 201, "made"); resp.Header.Get("X-Own") != "v" {
		u.t.Errorf("headers %v", resp.Header)
	}
	if resp := want("GET", "/events", nil, 200, "data: {\"n\": 0}\n\ndata: {\"n\": 1}\n\ndata: {\"n\": 2}\n\n", "Accept", "text/event-stream"); resp.Header.Get("Content-Type") != "text/event-stream" {
		u.t.Errorf("headers %v", resp.Header)
	}
	v.refused(500, "function_failed", "/fail")
	if _, body := v.send("GET", "/fail", nil); strings.Contains(body, "secret") {
		u.t.Errorf("the visitor sees %s", body)
	}
	v.refused(504, "unavailable", "/slow")
	resp, err := refused(func() (*http.Response, error) {
		return v.try("POST", "/", strings.NewReader(strings.Repeat("x", 8<<20+1)))
	})
	must(u, "too much", resp, err)
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 413 || !strings.Contains(string(body), `"request_too_large"`) {
		u.t.Errorf("too large: %d %s, %v", resp.StatusCode, body, err)
	}
	c := v.socket("/chat")
	for _, text := range []string{"hello", strings.Repeat("x", 1<<20)} {
		v.echoes(c, text)
	}
	u.serve(id, service("def handler(request):\n    return 'other code'\n"))
	want("GET", "/", nil, 200, "other code")
	u.serve(id, service("def handler("))
	v.refused(500, "function_failed", "/")
}

// testServicesOfAClaim: a claim may bring services; they are shown and counted
// among the sandbox's settings.
func testServicesOfAClaim(u *user) {
	sum := "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae" // foo
	mode := client.ServiceRouteAuthModeBearer
	_, err := u.c.CreateSandbox(u.ctx(), client.ClaimRequest{Template: "default", Config: &client.SandboxConfig{Services: []client.SandboxAppService{{
		ID: "Web", Port: new(int32(8080)), Runtime: &client.ServiceRuntime{Type: client.ServiceRuntimeTypeCMD, Command: []string{"python3", "-m", "http.server", "8080"}},
		Ingress: client.ServiceIngress{Public: true, Routes: []client.ServiceRoute{{
			ID: "r", Auth: &client.ServiceRouteAuth{Mode: &mode, BearerTokenSha256: &sum}, Methods: []string{"GET"}, RewritePrefix: new("/."), Resume: true,
		}}},
	}}}})
	if !isStatus(err, 400) {
		u.t.Fatalf("a rewrite_prefix that leads elsewhere: %v", err)
	}
	id := u.claimed(client.ClaimRequest{Template: "default", Config: &client.SandboxConfig{Services: []client.SandboxAppService{{
		ID: "Web", Port: new(int32(8080)), Runtime: &client.ServiceRuntime{Type: client.ServiceRuntimeTypeCMD, Command: []string{"python3", "-m", "http.server", "8080"}},
		Ingress: client.ServiceIngress{Public: true, Routes: []client.ServiceRoute{{
			ID: "r", Auth: &client.ServiceRouteAuth{Mode: &mode, BearerTokenSha256: &sum}, Methods: []string{"GET"}, Resume: true,
		}}},
	}}}})
	got, err := u.c.GetSandbox(u.ctx(), id)
	must(u, "reading "+id, got, err)
	if len(got.Services) != 1 || got.Services[0].ID != "web" || !got.Services[0].Publishable || got.Services[0].PublicURL == nil {
		u.t.Fatalf("services %+v", got.Services)
	}
	u.write(id, "/workspace/index.html", "it works")
	v := u.visit(id, 8080)
	if got := "http://" + v.host; got != *u.services(id)[0].PublicURL {
		u.t.Errorf("public URL %s, want %s", *u.services(id)[0].PublicURL, got)
	}
	v.refused(401, "unauthorized", "/")
	v.refused(401, "unauthorized", "/", "Authorization", "Bearer "+u.stack.Key())
	if resp, body := v.send("GET", "/", nil, "Authorization", "Bearer foo"); resp.StatusCode != 200 || body != "it works" {
		u.t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := v.send("POST", "/", nil, "Authorization", "Bearer foo"); resp.StatusCode != 405 {
		u.t.Errorf("POST: %d", resp.StatusCode)
	}
	u.pause(id)
	v.refused(401, "unauthorized", "/") // who may not enter wakes nobody
	if sb := u.status(id); !sb.Paused {
		u.t.Errorf("it is %s", sb.Status)
	}
	if resp, body := v.send("GET", "/", nil, "Authorization", "Bearer foo"); resp.StatusCode != 200 || body != "it works" {
		u.t.Errorf("a visitor of a sandbox that sleeps: %d %s", resp.StatusCode, body)
	}
	other := stranger(u.t, u)
	if _, err := other.SandboxServices(u.ctx(), id); !isStatus(err, 404) {
		u.t.Errorf("another team reads services: %v", err)
	}
	if _, err := other.UpdateExposedPorts(u.ctx(), id, []client.ExposedPort{{Port: 22}}); !isStatus(err, 404) {
		u.t.Errorf("another team exposes a port: %v", err)
	}
	off := false
	if _, err := u.c.UpdateSandbox(u.ctx(), id, client.SandboxUpdateConfig{AutoResume: &off}); !isStatus(err, 400) {
		u.t.Errorf("auto_resume off under a route that resumes: %v", err)
	}
}

func (u *user) services(id string) []client.SandboxAppServiceView {
	u.t.Helper()
	list, err := u.c.SandboxServices(u.ctx(), id)
	return must(u, "reading the services of "+id, list, err).Services
}
