package exposure

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

func TestA19_Dispatch(t *testing.T) {
	t.Parallel()
	w := serve(t, `{"exposed_ports":[{"port":3000,"resume":false}],"services":[
		{"id":"web","port":8080,"ingress":{"public":true}},{"id":"db","port":5432,"ingress":{"public":false}}]}`, echo)
	at := func(label string) string { return label + ".local.s0.localhost" }
	for host, status := range map[string]int{
		name: 200, strings.ToUpper(name): 200, name + ".": 200, name + ":30080": 200, name + ".:1": 200, at(string(id) + "--p3000"): 200,
		at(string(id) + "--p5432"): 404, at(string(id) + "--p22"): 404, at(string(id) + "--p49983"): 404, at(string(id) + "--p0"): 404,
		at(string(id)): 404, "local.s0.localhost": 404, at(strings.Replace(string(id), "abc", "aaa", 1) + "--p8080"): 404,
		"127.0.0.1": 418, name + ".evil.com": 418, "x" + "local.s0.localhost": 418,
	} {
		code := ""
		if status == 404 {
			code = "not_found"
		}
		w.want(request{host: host, path: "/", header: map[string]string{"X-Forwarded-Host": name, "Forwarded": "host=" + name}}, status, code)
	}
	pair := func(id, port string) map[string]string {
		return map[string]string{"X-Sandbox-ID": id, "X-Exposure-Port": port}
	}
	w.want(request{host: "127.0.0.1", path: "/", header: pair(string(id), "8080")}, 200, "")
	w.want(request{host: "127.0.0.1", path: "/", header: pair(string(id), "5432")}, 404, "not_found")
	w.want(request{host: "127.0.0.1", path: "/", header: pair(string(id), "08080")}, 404, "not_found")
	w.want(request{host: "127.0.0.1", path: "/", header: pair("../"+string(id), "8080")}, 404, "not_found")
	w.want(request{host: "127.0.0.1", path: "/", header: map[string]string{"X-Sandbox-ID": string(id)}}, 404, "not_found")
	// The host wins over the headers.
	w.want(request{host: at(string(id) + "--p5432"), path: "/", header: pair(string(id), "8080")}, 404, "not_found")

	for text, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: " + name + "\r\nHost: " + name + "\r\n\r\n":                                                        "400",
		"GET http://" + name + "/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n":                                                              "200", // the absolute form is the one that counts
		"GET http://127.0.0.1/ HTTP/1.1\r\nHost: " + name + "\r\n\r\n":                                                              "418",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Sandbox-ID: " + string(id) + "\r\nX-Sandbox-ID: x\r\nX-Exposure-Port: 8080\r\n\r\n": "404",
		"GET / HTTP/1.1\r\nHost : " + name + "\r\n\r\n":                                                                             "400",
		"GET / HTTP/1.1\r\nHost: " + name + "\r\nTransfer-Encoding : chunked\r\n\r\n":                                               "400",
		"POST / HTTP/1.1\r\nHost: " + name + "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab":                                 "400",
		"POST / HTTP/1.1\r\nHost: " + name + "\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n":                                "501",
		"CONNECT " + name + ":80 HTTP/1.1\r\nHost: " + name + "\r\n\r\n":                                                            "400",
		"TRACE / HTTP/1.1\r\nHost: " + name + "\r\n\r\n":                                                                            "405",
		"OPTIONS * HTTP/1.1\r\nHost: " + name + "\r\n\r\n":                                                                          "200", // net/http's own answer
	} {
		if got := w.raw(text); !strings.HasPrefix(got, "HTTP/1.1 "+want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	w := serve(t, one(`{"id":"all","path_prefix":"/"},{"id":"api","path_prefix":"/api/","methods":["get"],"rewrite_prefix":"/v1"},
		{"id":"post","path_prefix":"/api","methods":["POST"],"rewrite_prefix":"/"},{"id":"deep","path_prefix":"/api/deep","methods":["PUT"]},
		{"id":"closed","path_prefix":"/closed","auth":{"mode":"bearer","bearer_token_sha256":"`+sum("t")+`"}}`), echo)
	for _, c := range []struct {
		method, path string
		status       int
		uri          string
	}{
		{"GET", "/x?q=%2F;&a=b", 200, "/x?q=%2F;&a=b"},
		{"GET", "/api", 200, "/v1"},
		{"GET", "/api/", 200, "/v1/"},
		{"GET", "/api/a%20b%2Fc?q", 200, "/v1/a%20b%2Fc?q"},
		{"GET", "/apix", 200, "/apix"},
		{"POST", "/api/x", 200, "/x"},
		{"POST", "/api", 200, "/"},
		{"DELETE", "/api/x", 405, ""},
		{"GET", "/api/deep/x", 405, ""}, // the longest prefix wins, whatever its methods
		{"PUT", "/api/deep/x", 200, "/api/deep/x"},
		{"GET", "/closed/x", 401, ""},
		{"GET", "/closed;a/x", 401, ""},
		{"GET", "/%63losed", 401, ""},
		{"GET", "//closed", 400, ""},
		{"GET", "/closed%2Fx", 400, ""}, // below /closed for some, beside it for others
		{"GET", `/closed%5Cx`, 400, ""},
		{"GET", "/;/closed", 400, ""},
		{"GET", "/a//b", 200, "/a//b"},
		{"GET", "/a%2Fb", 200, "/a%2Fb"},
		{"GET", "/x/../closed", 400, ""},
		{"GET", "/x/..;/closed", 400, ""},
		{"GET", "/x/%2e%2e/closed", 400, ""},
		{"GET", "/x%2f..%2fclosed", 400, ""},
		{"GET", `/x%5c..%5cclosed`, 400, ""},
		{"GET", "/./x", 400, ""},
		{"GET", "/x%00", 400, ""},
	} {
		resp := w.send(request{method: c.method, path: c.path})
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, resp.StatusCode, c.status)
		} else if c.status == 200 {
			if got := decode(t, resp).URI; got != c.uri {
				t.Errorf("%s %s: the service saw %s, want %s", c.method, c.path, got, c.uri)
			}
		} else if c.status == 405 && resp.Header.Get("X-Code") != "forbidden" {
			t.Errorf("405 with code %q", resp.Header.Get("X-Code"))
		}
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	w := serve(t, one(`{"id":"open","path_prefix":"/open"},{"id":"b","path_prefix":"/b","auth":{"mode":"bearer","bearer_token_sha256":"`+sum("tok")+`"}},
		{"id":"h","path_prefix":"/h","auth":{"mode":"header","header_name":"x-key","header_value_sha256":"`+strings.ToUpper(sum("tok"))+`"}}`), echo)
	for _, c := range []struct {
		path   string
		header map[string]string
		status int
	}{
		{"/b", nil, 401},
		{"/b", map[string]string{"Authorization": "Bearer no"}, 401},
		{"/b", map[string]string{"Authorization": "Basic tok"}, 401},
		{"/b", map[string]string{"Authorization": "Bearer " + sum("tok")}, 401},
		{"/b", map[string]string{"Authorization": "Bearer"}, 401},
		{"/b", map[string]string{"X-Key": "tok"}, 401},
		{"/b", map[string]string{"Authorization": "bearer tok"}, 200},
		{"/h", nil, 401},
		{"/h", map[string]string{"X-Key": ""}, 401},
		{"/h", map[string]string{"Authorization": "Bearer tok"}, 401},
		{"/h", map[string]string{"X-Key": "tok"}, 200},
	} {
		resp := w.send(request{path: c.path, header: c.header})
		if resp.StatusCode != c.status {
			t.Errorf("%s %v: %d, want %d", c.path, c.header, resp.StatusCode, c.status)
		}
		if challenge := resp.Header.Get("WWW-Authenticate"); (challenge != "") != (c.status == 401 && c.path == "/b") {
			t.Errorf("%s %v: WWW-Authenticate %q", c.path, c.header, challenge)
		}
		if c.status == 200 {
			if h := decode(t, resp).Header; h.Get("Authorization") != "" || h.Get("X-Key") != "" {
				t.Errorf("%s: the credential was passed on: %v", c.path, h)
			}
		}
	}
	if got := w.raw("GET /b HTTP/1.1\r\nHost: " + name + "\r\nAuthorization: Bearer tok\r\nAuthorization: Bearer tok\r\n\r\n"); !strings.Contains(got, "401") {
		t.Errorf("two credentials: %s", got)
	}
	// A service may have a scheme of its own, but never our tokens.
	if h := decode(t, w.send(request{path: "/open", header: map[string]string{"Authorization": "Bearer theirs"}})).Header; h.Get("Authorization") != "Bearer theirs" {
		t.Error("a service's own Authorization was dropped")
	}
	if h := decode(t, w.send(request{path: "/open", header: map[string]string{"Authorization": "bearer s0_local_x"}})).Header; h.Get("Authorization") != "" {
		t.Error("an API key reached a sandbox")
	}
}

func TestA20_PlatformHeadersStayOurs(t *testing.T) {
	t.Parallel()
	w := serve(t, one(`{"id":"r"}`), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for _, c := range []string{"a=1; Domain=s0.localhost; Path=/", "b=2; path=/;domain = .localhost; HttpOnly", "__Host-c=3; Secure; Path=/"} {
			h.Add("Set-Cookie", c)
		}
		h.Set("Clear-Site-Data", `"*"`)
		h.Set("Alt-Svc", `h3="evil.com:443"`)
		h.Set("X-Request-Id", "theirs")
		h.Set("S0-Function-Error", "function_failed")
		h.Set("X-Team-Id", "x")
		h.Set("Cache-Control", "max-age=60")
		h.Set("X-Own", "kept")
		echo(w, r)
	}))
	hostile := map[string]string{
		"X-Team-ID": "t", "S0-Timeout": "1", "X-Sandbox0-Signature": "s", "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.com",
		"Forwarded": "for=1.2.3.4", "X-Real-IP": "1.2.3.4", "X-Request-Id": "mine", "Cookie": "session=1", "Connection": "X-Own, keep-alive", "X-Own": "hop", "Keep-Alive": "1",
	}
	resp := w.send(request{path: "/", header: hostile})
	got := decode(t, resp)
	for _, gone := range []string{"X-Team-Id", "S0-Timeout", "X-Sandbox0-Signature", "Forwarded", "X-Real-Ip", "X-Own", "Keep-Alive"} {
		if v, there := got.Header[gone]; there {
			t.Errorf("%s reached the service: %v", gone, v)
		}
	}
	for header, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": name + ":30080", "X-Request-Id": "req-1", "Cookie": "session=1",
	} {
		if got.Header.Get(header) != want {
			t.Errorf("%s is %q, want %q", header, got.Header.Get(header), want)
		}
	}
	if got.Host != name+":30080" {
		t.Errorf("host %q", got.Host)
	}
	cookies := strings.Join(resp.Header["Set-Cookie"], "|")
	if cookies != "a=1; Path=/|b=2; path=/; HttpOnly|__Host-c=3; Secure; Path=/" {
		t.Errorf("cookies %q", cookies)
	}
	for header, want := range map[string]string{
		"Clear-Site-Data": "", "Alt-Svc": "", "S0-Function-Error": "", "X-Team-Id": "", "X-Request-Id": "req-1", "X-Own": "kept", "Cache-Control": "max-age=60",
	} {
		if got := strings.Join(resp.Header.Values(header), "|"); got != want {
			t.Errorf("answer's %s is %q, want %q", header, got, want)
		}
	}
	// On the API's own host there are no cookies, in either direction.
	resp = w.send(request{host: "127.0.0.1", path: "/", header: map[string]string{"X-Sandbox-ID": string(id), "X-Exposure-Port": "8080", "Cookie": "console=1"}})
	got = decode(t, resp)
	if got.Header.Get("Cookie") != "" || len(resp.Header["Set-Cookie"]) > 0 || got.Host != "localhost:8080" || got.Header.Get("X-Sandbox-Id") != "" {
		t.Errorf("by headers: host %q, cookies %v %v", got.Host, got.Header["Cookie"], resp.Header["Set-Cookie"])
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	w := serve(t, one(`{"id":"own","path_prefix":"/own"},{"id":"r","path_prefix":"/r","methods":["GET","PUT"],"auth":{"mode":"bearer","bearer_token_sha256":"`+sum("t")+`"},
		"cors":{"allowed_origins":["https://a.example"],"allowed_headers":["Authorization"],"expose_headers":["X-Own"],"allow_credentials":true,"max_age_seconds":60}},
		{"id":"any","path_prefix":"/any","cors":{"allowed_origins":["*"]}}`), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "https://service.example")
		w.Header().Set("Access-Control-Allow-Credentials", "true")
	}))
	ask := func(path, origin, method string) *http.Response {
		return w.send(request{method: "OPTIONS", path: path, header: map[string]string{"Origin": origin, "Access-Control-Request-Method": method}})
	}
	resp := ask("/r/x", "https://A.example", "PUT")
	for header, want := range map[string]string{
		"Access-Control-Allow-Origin": "https://A.example", "Access-Control-Allow-Credentials": "true", "Access-Control-Allow-Methods": "GET, PUT",
		"Access-Control-Allow-Headers": "Authorization", "Access-Control-Max-Age": "60", "Vary": "Origin",
	} {
		if resp.StatusCode != 204 || resp.Header.Get(header) != want {
			t.Errorf("preflight: %d, %s %q, want %q", resp.StatusCode, header, resp.Header.Get(header), want)
		}
	}
	if resp := ask("/r", "https://b.example", "GET"); resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another origin: %d %v", resp.StatusCode, resp.Header)
	}
	if resp := ask("/r", "https://a.example", "DELETE"); resp.StatusCode != 405 {
		t.Errorf("another method: %d", resp.StatusCode)
	}
	if resp := ask("/own", "https://b.example", "GET"); resp.StatusCode != 200 || resp.Header.Get("Access-Control-Allow-Origin") != "https://service.example" {
		t.Errorf("a route without CORS is the service's affair: %d %v", resp.StatusCode, resp.Header)
	}
	// Errors can be read by the page, and the service has no say.
	resp = w.send(request{path: "/r", header: map[string]string{"Origin": "https://a.example"}})
	if resp.StatusCode != 401 || resp.Header.Get("Access-Control-Allow-Origin") != "https://a.example" {
		t.Errorf("401 to a page: %d %v", resp.StatusCode, resp.Header)
	}
	resp = w.send(request{path: "/any", header: map[string]string{"Origin": "https://c.example"}})
	if got := resp.Header["Access-Control-Allow-Origin"]; len(got) != 1 || got[0] != "*" || resp.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("to any page: %v", resp.Header)
	}
}

func TestRateOfARoute(t *testing.T) {
	t.Parallel()
	w := serve(t, one(`{"id":"r","rate_limit":{"rps":1,"burst":2}},{"id":"free","path_prefix":"/free"}`), echo)
	began, passed := time.Now(), 0
	// spent asks until it is refused: no more came through than the burst and one a second.
	spent := func() {
		t.Helper()
		resp := w.send(request{path: "/"})
		for ; resp.StatusCode == 200; resp = w.send(request{path: "/"}) {
			if passed++; passed > 2+int(time.Since(began)/time.Second) {
				t.Fatalf("%d requests in %v", passed, time.Since(began))
			}
		}
		if code := resp.Header.Get("X-Code"); resp.StatusCode != 429 || code != "unavailable" {
			t.Errorf("%d %q", resp.StatusCode, code)
		}
	}
	spent()
	if passed < 2 {
		t.Errorf("a burst of %d", passed)
	}
	w.want(request{path: "/free"}, 200, "")
	// A changed limit counts at once, an unchanged one goes on.
	w.set(one(`{"id":"r","rate_limit":{"rps":1,"burst":2}}`))
	spent()
	w.set(one(`{"id":"r","rate_limit":{"rps":1,"burst":3}}`))
	w.want(request{path: "/"}, 200, "")
}

func TestRateRefills(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, rt := newRates(), &route{id: "r", rps: 2, burst: 1}
		if _, ok := r.take(id, rt); !ok {
			t.Fatal("the first is refused")
		}
		wait, ok := r.take(id, rt)
		if ok || wait <= 0 || wait > 500*time.Millisecond {
			t.Fatalf("the second: %v after %s", ok, wait)
		}
		time.Sleep(wait)
		if _, ok := r.take(id, rt); !ok {
			t.Error("it is refused after it has waited as told")
		}
	})
}

func TestStates(t *testing.T) {
	t.Parallel()
	const resumable = `{"auto_resume":true,"services":[{"id":"web","port":8080,"runtime":{"type":"cmd","command":["x"]},"ingress":{"public":true,
		"routes":[{"id":"no","resume":false},{"id":"yes","path_prefix":"/yes","resume":true}]}}]}`
	w := serve(t, resumable, echo)
	state := func(s sandbox.State) {
		w.mu.Lock()
		w.row.Status = s
		w.mu.Unlock()
		w.proxy.Changed(id)
	}
	for _, s := range []sandbox.State{sandbox.Failed, sandbox.Terminating, sandbox.Starting} {
		state(s)
		w.want(request{path: "/yes"}, 503, "unavailable")
	}
	state(sandbox.Paused)
	w.want(request{path: "/no"}, 409, "conflict")
	w.want(request{path: "/yes"}, 200, "")
	if w.resumed != 1 {
		t.Errorf("resumed %d times", w.resumed)
	}
	w.want(request{path: "/no"}, 200, "")
	w.set(strings.Replace(resumable, `"auto_resume":true`, `"auto_resume":false`, 1))
	state(sandbox.Paused)
	w.want(request{path: "/yes"}, 503, "unavailable")
	state(sandbox.Running)
	w.proxy.transport.CloseIdleConnections()
	w.refuse = errdefs.New(errdefs.Unavailable, "the service is not running")
	w.want(request{path: "/yes"}, 503, "unavailable")
}

// A19: who has waited for a sandbox to be woken gets what it exposes by then.
func TestA19_WhatChangesWhileASandboxIsWoken(t *testing.T) {
	t.Parallel()
	const open = `{"auto_resume":true,"services":[{"id":"web","port":8080,"runtime":{"type":"cmd","command":["x"]},"ingress":{"public":true,
		"routes":[{"id":"r","resume":true%s}]}}]}`
	for _, c := range []struct {
		config, code string
		status       int
	}{
		{`{"services":[]}`, "not_found", 404},
		{fmt.Sprintf(open, `,"auth":{"mode":"bearer","bearer_token_sha256":"`+strings.Repeat("0", 64)+`"}`), "unauthorized", 401},
		{fmt.Sprintf(open, ""), "", 200},
	} {
		w := serve(t, fmt.Sprintf(open, ""), echo)
		w.row.Status = sandbox.Paused
		w.woken = func() { w.set(c.config) }
		w.want(request{path: "/"}, c.status, c.code)
	}
}

func TestConfigIsReadOnceASecondAndForgottenOnChange(t *testing.T) {
	t.Parallel()
	w := serve(t, one(`{"id":"r"}`), echo)
	began := time.Now()
	for range 5 {
		w.want(request{path: "/"}, 200, "")
	}
	if took := time.Since(began); w.reads > 1+int(took/freshFor) {
		t.Errorf("%d reads in %v", w.reads, took)
	}
	w.set(`{"services":[]}`)
	w.want(request{path: "/"}, 404, "not_found")
}

// slowStore answers what was stored when it was asked.
type slowStore struct {
	*world
	answer chan struct{}
}

func (s slowStore) ExposedSandbox(ctx context.Context, asked sandbox.ID) (store.ExposedSandbox, error) {
	row, err := s.world.ExposedSandbox(ctx, asked)
	<-s.answer
	return row, err
}

// A19: who asks after a change is not told what was read before it.
func TestA19_AChangeSharesNoOlderRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, row: store.ExposedSandbox{TeamID: uuid.New(), Status: sandbox.Running}}
		s := slowStore{w, make(chan struct{})}
		d := newDirectory(s)
		read := func() <-chan int {
			ports := make(chan int, 1)
			go func() {
				e, err := d.read(t.Context(), id)
				if err != nil {
					t.Error(err)
				}
				ports <- len(e.routes)
			}()
			synctest.Wait()
			return ports
		}
		w.set(one(`{"id":"r"}`))
		before := read()
		w.set(`{"services":[]}`)
		d.forget(id)
		after := read()
		close(s.answer)
		if was, is := <-before, <-after; was != 1 || is != 0 {
			t.Errorf("%d ports are exposed before the change and %d after it, want 1 and 0", was, is)
		}
	})
}

func TestX34_ExposedServicesGoOnWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, row: store.ExposedSandbox{TeamID: uuid.New(), Status: sandbox.Running}}
		w.set(one(`{"id":"r"}`))
		d := newDirectory(w)
		if _, err := d.read(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.fail = errdefs.New(errdefs.Unavailable, "the database is not available")
		time.Sleep(usableFor - time.Second)
		if d.known(id) != nil {
			t.Error("an old entry counts as fresh")
		}
		if e, err := d.read(t.Context(), id); err != nil || len(e.routes) != 1 {
			t.Errorf("without the database: %v", err)
		}
		if d.known(id) == nil {
			t.Error("the next request waits for the database again")
		}
		time.Sleep(2 * time.Second)
		if d.known(id) != nil {
			t.Error("an entry lives for ever without the database")
		}
		if _, err := d.read(t.Context(), id); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("after %s: %v", usableFor, err)
		}
		w.fail = errdefs.New(errdefs.NotFound, "sandbox not found")
		if _, err := d.read(t.Context(), id); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("deleted: %v", err)
		}
	})
}

func TestLookupsAreCharged(t *testing.T) {
	t.Parallel()
	w := serve(t, one(`{"id":"r"}`), echo)
	for i := range 100_000 { // more than the bucket is refilled meanwhile
		guess := sandbox.ID("local-" + strings.ReplaceAll(fmt.Sprintf("%026d", i), "0", "a"))
		guess = sandbox.ID(strings.NewReplacer("1", "b", "8", "c", "9", "d").Replace(string(guess)))
		_, err := w.proxy.lookup(context.Background(), Request{Remote: "guesser", Address: addressOf(guess)})
		if errdefs.Is(err, errdefs.Exhausted) {
			return
		}
		if !errdefs.Is(err, errdefs.NotFound) {
			t.Fatal(err)
		}
	}
	t.Error("guessing ids is free")
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	const timeout = 3 * time.Second // for an answer to begin on a slow machine
	w := serve(t, one(`{"id":"r","timeout_seconds":3}`), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			w.(http.Flusher).Flush()
			<-time.After(timeout + 200*time.Millisecond) // the answer has begun: it may take its time
			io.WriteString(w, "late")
			return
		}
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	w.want(request{path: "/"}, 504, "unavailable")
	if b, _ := io.ReadAll(w.want(request{path: "/stream"}, 200, "").Body); string(b) != "late" {
		t.Errorf("a stream was cut: %q", b)
	}
}

func TestA09_StalledClients(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	w := serve(t, one(`{"id":"r"}`), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		if r.Method == http.MethodPost {
			_, err = io.Copy(io.Discard, r.Body)
		} else {
			_, err = io.Copy(w, zeros{})
		}
		ended <- err
	}))
	w.proxy.pace = 200 * time.Millisecond
	for name, head := range map[string]string{
		"body": "POST / HTTP/1.1\r\nHost: " + name + "\r\nContent-Length: 10\r\n\r\nabc", "answer": "GET / HTTP/1.1\r\nHost: " + name + "\r\n\r\n",
	} {
		c, err := net.Dial("tcp", w.front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, head) // and then neither sends nor reads
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s: complete for the service", name)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: a client that stalls holds the service", name)
		}
		c.Close()
	}
}

func TestAnswersThatMakeNoSense(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"no HTTP":           "SSH-2.0-OpenSSH\r\n\r\n",
		"nothing":           "",
		"status 099":        "HTTP/1.1 099 x\r\nContent-Length: 0\r\n\r\n",
		"status 999":        "HTTP/1.1 999 x\r\nContent-Length: 0\r\n\r\n",
		"unasked upgrade":   "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
		"an endless header": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n",
		"two lengths":       "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"many informations": strings.Repeat("HTTP/1.1 103 x\r\nX: "+strings.Repeat("a", 1000)+"\r\n\r\n", 1000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := serveAt(t, one(`{"id":"r"}`), speak(t, answer))
			w.want(request{path: "/"}, 502, "unavailable")
		})
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	w := serve(t, one(`{"id":"r"}`), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			c, err := up.Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer c.Close()
			for {
				kind, b, err := c.ReadMessage()
				if err != nil {
					return
				}
				c.WriteMessage(kind, append([]byte(r.Host+" "), b...))
			}
		}
		if r.URL.Path == "/" {
			if r.Header.Get("Upgrade")+r.Header.Get("Http2-Settings") == "" {
				w.WriteHeader(http.StatusNoContent)
			}
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			<-next
		}
	}))
	req, _ := http.NewRequest("GET", w.front.URL+"/events", nil)
	req.Host = name
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 { // each event arrives before the next one is made
		if !lines.Scan() || lines.Text() != "data: "+strconv.Itoa(i) || !lines.Scan() {
			t.Fatalf("event %d: %q", i, lines.Text())
		}
		next <- struct{}{}
	}

	dialer := websocket.Dialer{}
	h := http.Header{"Host": {name}, "Origin": {"https://elsewhere.example"}}
	c, _, err := dialer.Dial(strings.Replace(w.front.URL, "http", "ws", 1)+"/ws", h)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range []string{"one", strings.Repeat("x", 1<<20)} {
		if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.ReadMessage(); err != nil || string(b) != name+":30080 "+text {
			t.Fatalf("%.80q, %v", b, err)
		}
	}
	resp2 := w.raw("GET / HTTP/1.1\r\nHost: " + name + "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
	if !strings.HasPrefix(resp2, "HTTP/1.1 204") {
		t.Errorf("an upgrade to HTTP/2 came through: %s", resp2)
	}
	w.proxy.Close()
	if _, _, err := c.ReadMessage(); err == nil {
		t.Error("the socket outlives the server")
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	w := serve(t, one(`{"id":"r"}`), echo)
	for _, body := range []io.Reader{strings.NewReader("fixed"), io.MultiReader(strings.NewReader("chunk"), strings.NewReader("ed"))} {
		if got := decode(t, w.send(request{method: "POST", path: "/", body: body})).Body; got != "fixed" && got != "chunked" {
			t.Errorf("body %q", got)
		}
	}
	if w.dials > 2 {
		t.Errorf("%d connections for two requests", w.dials)
	}
	fn := serve(t, `{"services":[{"id":"f","runtime":{"type":"function","function":{"source":{"code":"x"}}},"ingress":{"public":true}}]}`,
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			w.Header().Set("S0-Function-Error", r.URL.Query().Get("say"))
			w.Header().Set("X-Seen", r.Header.Get("S0-Route")+" "+r.Header.Get("S0-Timeout"))
		}))
	host := string(id) + "--p49983.local.s0.localhost"
	fixed := strings.NewReader(strings.Repeat("x", maxFunctionBody+1))
	fn.want(request{method: "POST", host: host, path: "/", body: fixed}, 413, "request_too_large")
	chunked := io.LimitReader(zeros{}, maxFunctionBody+1)
	fn.want(request{method: "POST", host: host, path: "/", body: chunked}, 413, "request_too_large")
	if seen := fn.send(request{host: host, path: "/"}).Header.Get("X-Seen"); seen != "f 30" {
		t.Errorf("the runner was told %q", seen)
	}
	for say, want := range map[string]struct {
		status int
		code   string
	}{
		"function_failed": {500, "function_failed"}, "function_timeout": {504, "unavailable"}, "request_too_large": {413, "request_too_large"},
		"function_concurrency_exceeded": {429, "function_concurrency_exceeded"}, "function_no_websocket": {400, "bad_request"}, "made_up": {502, "unavailable"},
	} {
		fn.want(request{host: host, path: "/?say=" + say}, want.status, want.code)
	}
}
