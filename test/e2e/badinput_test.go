package e2e_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"s0.run/internal/s0test"
)

// answerTime bounds the refusal of one bad request; nothing may hang.
const answerTime = 20 * time.Second

// foreignID has an id's form but was never minted.
const foreignID = "local-aaaaaaaaaaaaaaaaaaaaaaaaaa"

type badRequest struct {
	name   string
	method string // POST when empty
	path   string // {id} is a live sandbox, {dead} a deleted one, {ctx} a live context
	body   string
	token  string // the admin's key when empty, "none" for none
	want   []int
	code   string // when it matters
}

// huge is larger than any JSON body may be.
var huge = `{"template":"` + strings.Repeat("x", 20<<20) + `"}`

var badRequests = []badRequest{
	// Who asks.
	{name: "no token", path: "/api/v1/sandboxes", body: `{"template":"default"}`, token: "none", want: []int{401}, code: "unauthorized"},
	{name: "nobody's key", path: "/api/v1/sandboxes", body: `{"template":"default"}`, token: "s0_local_" + strings.Repeat("0", 48), want: []int{401}, code: "unauthorized"},
	{name: "a token that is none", method: "GET", path: "/api/v1/sandboxes", token: "eyJhbGciOiJub25lIn0.e30.", want: []int{401}, code: "unauthorized"},
	{name: "a key where a person is needed", method: "GET", path: "/users/me", want: []int{401}, code: "unauthorized"},
	{name: "a wrong password", path: "/auth/login", body: `{"email":"admin@example.com","password":"wrong"}`, token: "none", want: []int{401}},

	// A08: what JSON can be.
	{name: "no JSON", path: "/api/v1/sandboxes", body: `template=default`, want: []int{400}, code: "bad_request"},
	{name: "no body", path: "/api/v1/sandboxes", want: []int{400}, code: "bad_request"},
	{name: "trailing data", path: "/api/v1/sandboxes", body: `{"template":"default"}{}`, want: []int{400}, code: "bad_request"},
	{name: "deep JSON", path: "/api/v1/sandboxes", body: strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000), want: []int{400, 413}},
	{name: "an oversized body", path: "/api/v1/sandboxes", body: huge, want: []int{413}},
	{name: "bad UTF-8", path: "/api/v1/sandboxes", body: "{\"template\":\"\xff\xfe\"}", want: []int{400, 404}},

	// A03: fields.
	{name: "an unknown field", path: "/api/v1/sandboxes", body: `{"template":"default","privileged":true}`, want: []int{400}, code: "bad_request"},
	{name: "an unknown field below", path: "/api/v1/sandboxes", body: `{"template":"default","config":{"node":"other"}}`, want: []int{400}, code: "bad_request"},
	{name: "a wrong type", path: "/api/v1/sandboxes", body: `{"template":7}`, want: []int{400}, code: "bad_request"},
	{name: "a list", path: "/api/v1/sandboxes", body: `[]`, want: []int{400}, code: "bad_request"},
	{name: "no template", path: "/api/v1/sandboxes", body: `{}`, want: []int{400}, code: "bad_request"},
	{name: "an empty template", path: "/api/v1/sandboxes", body: `{"template":""}`, want: []int{400}, code: "bad_request"},
	{name: "an unknown template", path: "/api/v1/sandboxes", body: `{"template":"no-such-template"}`, want: []int{404}, code: "not_found"},
	{name: "a negative ttl", path: "/api/v1/sandboxes", body: `{"template":"default","config":{"ttl":-1}}`, want: []int{400}, code: "bad_request"},
	{name: "a ttl above the hard one", path: "/api/v1/sandboxes", body: `{"template":"default","config":{"ttl":10,"hard_ttl":5}}`, want: []int{400}, code: "bad_request"},
	{name: "little memory", path: "/api/v1/sandboxes", body: `{"template":"default","config":{"resources":{"memory":"1Mi"}}}`, want: []int{400}, code: "bad_request"},

	// Queries and paths.
	{name: "an unknown path", method: "GET", path: "/api/v1/no-such-thing", want: []int{404}, code: "not_found"},
	{name: "a wrong method", method: "PATCH", path: "/api/v1/sandboxes", want: []int{405}},
	{name: "a bad status", method: "GET", path: "/api/v1/sandboxes?status=sleepy", want: []int{400}, code: "bad_request"},
	{name: "a bad limit", method: "GET", path: "/api/v1/sandboxes?limit=100000", want: []int{400}, code: "bad_request"},
	{name: "an unknown template by id", method: "GET", path: "/api/v1/templates/no-such-template", want: []int{404}, code: "not_found"},

	// A01: foreign and malformed ids look alike.
	{name: "a foreign id", method: "GET", path: "/api/v1/sandboxes/" + foreignID, want: []int{404}, code: "not_found"},
	{name: "a malformed id", method: "GET", path: "/api/v1/sandboxes/..%2f..%2fetc", want: []int{400, 404}},
	{name: "deleting a foreign id", method: "DELETE", path: "/api/v1/sandboxes/" + foreignID, want: []int{404}, code: "not_found"},
	{name: "a context in a foreign id", path: "/api/v1/sandboxes/" + foreignID + "/contexts", body: `{"type":"repl"}`, want: []int{404}, code: "not_found"},
	{name: "a file in a foreign id", method: "GET", path: "/api/v1/sandboxes/" + foreignID + "/files?path=/etc/passwd", want: []int{404}, code: "not_found"},

	// Closed sandboxes.
	{name: "a deleted sandbox", method: "GET", path: "/api/v1/sandboxes/{dead}", want: []int{404}, code: "not_found"},
	{name: "a context in a deleted sandbox", path: "/api/v1/sandboxes/{dead}/contexts", body: `{"type":"repl"}`, want: []int{404}, code: "not_found"},
	{name: "a file in a deleted sandbox", method: "GET", path: "/api/v1/sandboxes/{dead}/files?path=/etc/passwd", want: []int{404}, code: "not_found"},
	{name: "deleting a deleted sandbox", method: "DELETE", path: "/api/v1/sandboxes/{dead}", want: []int{404}, code: "not_found"},

	// Contexts.
	{name: "no context type", path: "/api/v1/sandboxes/{id}/contexts", body: `{}`, want: []int{400}},
	{name: "an unknown context type", path: "/api/v1/sandboxes/{id}/contexts", body: `{"type":"vm"}`, want: []int{400}},
	{name: "an unknown alias", path: "/api/v1/sandboxes/{id}/contexts", body: `{"type":"repl","repl":{"alias":"cobol"}}`, want: []int{400, 422}},
	{name: "an empty command", path: "/api/v1/sandboxes/{id}/contexts", body: `{"type":"cmd","cmd":{"command":[]}}`, want: []int{400}},
	{name: "B10: a missing program", path: "/api/v1/sandboxes/{id}/contexts", body: `{"type":"cmd","cmd":{"command":["/no/such/program"]},"wait_until_done":true}`, want: []int{400, 422}},
	{name: "B10: a missing directory", path: "/api/v1/sandboxes/{id}/contexts", body: `{"type":"cmd","cmd":{"command":["true"]},"cwd":"/no/such","wait_until_done":true}`, want: []int{400, 422}},
	{name: "B10: a NUL in an argument", path: "/api/v1/sandboxes/{id}/contexts", body: "{\"type\":\"cmd\",\"cmd\":{\"command\":[\"echo\",\"\\u0000\"]}}", want: []int{400}},
	{name: "an unknown context", method: "GET", path: "/api/v1/sandboxes/{id}/contexts/ctx-00000000", want: []int{404}, code: "context_not_found"},
	{name: "exec without data", path: "/api/v1/sandboxes/{id}/contexts/{ctx}/exec", body: `{"data":""}`, want: []int{400}},
	{name: "B11: an unknown signal", path: "/api/v1/sandboxes/{id}/contexts/{ctx}/signal", body: `{"signal":"SIGNOPE"}`, want: []int{400}},
	{name: "B11: a size of 0×0", path: "/api/v1/sandboxes/{id}/contexts/{ctx}/resize", body: `{"rows":0,"cols":0}`, want: []int{400}},

	// Files.
	{name: "no path", method: "GET", path: "/api/v1/sandboxes/{id}/files", want: []int{400}},
	{name: "a missing file", method: "GET", path: "/api/v1/sandboxes/{id}/files?path=/no/such", want: []int{404}, code: "file_not_found"},
	{name: "a directory as a file", method: "GET", path: "/api/v1/sandboxes/{id}/files?path=/etc", want: []int{400, 409}},
	{name: "a missing directory", method: "GET", path: "/api/v1/sandboxes/{id}/files/list?path=/no/such", want: []int{404}},
	{name: "B01: a NUL in a path", method: "GET", path: "/api/v1/sandboxes/{id}/files?path=%00", want: []int{400}},
	{name: "B01: a long path", method: "GET", path: "/api/v1/sandboxes/{id}/files?path=/" + strings.Repeat("x", 5000), want: []int{400, 404}},
	{name: "B03: a device", method: "GET", path: "/api/v1/sandboxes/{id}/files?path=/dev/zero", want: []int{400, 409}},
	{name: "moving nothing", path: "/api/v1/sandboxes/{id}/files/move", body: `{"source":"/no/such","destination":"/tmp/x"}`, want: []int{404}},
}

// testBadInput: each bad request gets a clear error in the envelope, soon; what
// was alive before still answers afterwards.
func testBadInput(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id, dead := u.claim(), u.claim()
	repl := u.python(id)
	u.remove(dead)
	fill := strings.NewReplacer("{id}", id, "{dead}", dead, "{ctx}", repl)
	for _, r := range badRequests {
		r.path = fill.Replace(r.path)
		t.Run(r.name, func(t *testing.T) { r.check(t, s) })
	}
	t.Run("B06: a file over the limit", func(t *testing.T) {
		r := badRequest{path: fill.Replace("/api/v1/sandboxes/{id}/files?path=/workspace/big"), body: strings.Repeat("x", 100<<20+1), want: []int{413}, code: "file_too_large"}
		r.check(t, s)
	})
	u.wantExec(id, repl, "print('still here')", "still here")
	if _, err := u.c.StatFile(u.ctx(), id, "/workspace/big"); !isStatus(err, 404) {
		t.Errorf("a refused file: %v, want none", err)
	}
	u.remove(id)
}

// leaky finds what an error must not tell: paths of ours, SQL, stacks.
var leaky = regexp.MustCompile(`(?i)(\.go:\d|goroutine|SELECT |INSERT |pgx|containerd|/tmp/s0t|noded\.sock)`)

func (r badRequest) check(t *testing.T, s *s0test.Stack) {
	t.Helper()
	method := r.method
	if method == "" {
		method = http.MethodPost
	}
	client := &http.Client{Timeout: answerTime, Transport: &http.Transport{}}
	resp, err := refused(func() (*http.Response, error) {
		req, err := http.NewRequest(method, s.URL+r.path, strings.NewReader(r.body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/json")
		switch r.token {
		case "":
			req.Header.Set("Authorization", "Bearer "+s.Key())
		case "none":
		default:
			req.Header.Set("Authorization", "Bearer "+r.token)
		}
		return client.Do(req)
	})
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	r.judge(t, resp, body)
}

func (r badRequest) judge(t *testing.T, resp *http.Response, body []byte) {
	t.Helper()
	var ok bool
	for _, w := range r.want {
		ok = ok || resp.StatusCode == w
	}
	if !ok {
		t.Errorf("status %d, want one of %v: %.300s", resp.StatusCode, r.want, body)
	}
	var envelope struct {
		Success *bool           `json:"success"`
		Data    json.RawMessage `json:"data"`
		Error   *struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(body, &envelope); err != nil || envelope.Success == nil || *envelope.Success || envelope.Error == nil {
		t.Fatalf("not an error in the envelope: %v: %.300s", err, body)
	}
	if envelope.Error.Code == "" || envelope.Error.Message == "" || (r.code != "" && envelope.Error.Code != r.code) {
		t.Errorf("error %+v, want code %q and a message", *envelope.Error, r.code)
	}
	if resp.Header.Get("X-Request-Id") == "" {
		t.Error("the answer names no request")
	}
	if found := leaky.Find(body); found != nil || bytes.Contains(body, []byte("\x00")) {
		t.Errorf("the error tells too much (%q): %.300s", found, body)
	}
}
