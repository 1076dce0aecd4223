package api_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"s0.run/internal/s0test/contract"
)

// The checker finds what is not the contract's, and nothing else.
func TestTheCheckerFindsLies(t *testing.T) {
	t.Parallel()
	const good = `{"success":true,"data":{"gateway_mode":"direct","service":"s0"}}`
	for name, c := range map[string]struct {
		path, body, header string
		status             int
		found              string
	}{
		"the truth":            {"/metadata", good, "", 200, ""},
		"another status":       {"/metadata", good, "", 201, "status is not described"},
		"another field":        {"/metadata", strings.Replace(good, `"s0"`, `"s0","more":1`, 1), "", 200, "more"},
		"a field less":         {"/metadata", strings.Replace(good, `,"service":"s0"`, "", 1), "", 200, "service"},
		"another header":       {"/metadata", good, "X-Secret", 200, "X-Secret is not described"},
		"no operation":         {"/nothing", good, "", 200, "no such operation"},
		"another kind of body": {"/metadata", good, "Content-Type", 200, "is not described"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Request-Id", "req-00000001")
			w.Header().Set("Content-Type", "application/json")
			if c.header != "" {
				w.Header().Set(c.header, "1")
			}
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		}))
		own, err := contract.New()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: own.Transport(http.DefaultTransport)}).Get(srv.URL + c.path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		srv.Close()
		if found := strings.Join(own.Take(), "\n"); (c.found == "") != (found == "") || !strings.Contains(found, c.found) {
			t.Errorf("%s: found %q, want %q", name, found, c.found)
		}
		if string(b) != c.body {
			t.Errorf("%s: the body became %q", name, b)
		}
	}
}

// A program sees through the checker's proxy what it would see without.
func TestTheCheckersProxy(t *testing.T) {
	t.Parallel()
	i := start(t)
	own, err := contract.New()
	if err != nil {
		t.Fatal(err)
	}
	i.url = own.Proxy(t, i.url)
	key := i.key("admin")
	id := i.claim(key)
	base := "/api/v1/sandboxes/" + id
	i.files(key, base)
	var c struct{ ID string }
	i.send(request{method: "POST", path: base + "/contexts", token: key, body: `{"type":"repl"}`}).want(201, &c)
	conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(i.url, "http")+base+"/contexts/"+c.ID+"/ws", http.Header{"Authorization": {"Bearer " + key}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, b, err := conn.ReadMessage(); err != nil || string(b) != `{"exit_code":0,"state":"stopped","type":"done"}` {
		t.Errorf("%s: %v", b, err)
	}
	if own.Answers() < 10 {
		t.Errorf("only %d answers passed", own.Answers())
	}
}
