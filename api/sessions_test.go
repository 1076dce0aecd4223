package api_test

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

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/procapi"
)

// executionSession is a session as clients decode it.
type executionSession struct {
	ID          string
	Spec        struct{ Name string }
	SpecVersion int `json:"spec_version"`
	Phase       string
	Attempt     struct {
		ID     string
		Number int
	}
	Cursor struct{ Earliest, Latest uint64 }
}

type sessionEvent struct {
	Seq    uint64
	Type   string
	Stream string
	Data   []byte `json:"data_base64"`
}

const catSpec = `{"name":"cat","command":["cat"],"env":{"A":"1"},"io":{"mode":"pty","terminal":{"rows":24,"cols":80}},"lifecycle":{"restart":{"policy":"on_failure"},"stop_grace_period_seconds":0},"readiness":{"type":"output","output":"x"},"event_retention":{"max_bytes":65536}}`

func TestSessions(t *testing.T) {
	t.Parallel()
	i := start(t)
	key, viewer := i.key("developer"), i.key("viewer")
	base := "/api/v1/sandboxes/" + i.claim(key) + "/sessions"
	create := request{method: "POST", path: base, token: key, body: catSpec, header: http.Header{"Idempotency-Key": {"one"}}}
	var s, again executionSession
	i.send(create).want(201, &s)
	i.send(create).want(201, &again)
	if s.ID == "" || again.ID != s.ID || s.Phase != "running" || s.Spec.Name != "cat" {
		t.Fatalf("%+v, then %+v", s, again)
	}
	at := base + "/" + s.ID
	var list struct{ Sessions []executionSession }
	i.send(request{method: "GET", path: base, token: viewer}).want(200, &list)
	i.send(request{method: "GET", path: at, token: viewer}).want(200, &again)
	if len(list.Sessions) != 1 || again.ID != s.ID {
		t.Errorf("%+v, %+v", list, again)
	}
	i.send(request{method: "PUT", path: at, token: key, body: `{"name":"renamed","command":["cat"]}`}).want(200, &again)
	if again.SpecVersion != 2 || again.Spec.Name != "renamed" {
		t.Errorf("%+v", again)
	}
	for n, duplicate := range []bool{false, true} {
		var r struct {
			InputID             string `json:"input_id"`
			AttemptID           string `json:"attempt_id"`
			Accepted, Duplicate bool
		}
		i.send(request{method: "POST", path: at + "/inputs", token: key, body: `{"input_id":"a","data_base64":"aGk="}`}).want(200, &r)
		if r.InputID != "a" || r.AttemptID != s.Attempt.ID || !r.Accepted || r.Duplicate != duplicate {
			t.Errorf("input %d: %+v", n, r)
		}
	}
	var page struct {
		Events []sessionEvent
		Cursor struct{ Earliest, Latest uint64 }
	}
	i.send(request{method: "GET", path: at + "/events?after=2&limit=5", token: viewer}).want(200, &page)
	if len(page.Events) != 1 || page.Events[0].Seq != 3 || string(page.Events[0].Data) != "hi" || page.Cursor.Latest != 3 {
		t.Errorf("%+v", page)
	}
	i.send(request{method: "POST", path: at + "/inputs", token: key, body: `{"input_id":"b","expected_attempt_id":"att-0","eof":true}`}).refused(409, procapi.CodeAttemptMismatch)
	i.send(request{method: "POST", path: at + "/attempts", token: key, body: `{}`}).refused(409, procapi.CodeAttemptRunning)
	i.send(request{method: "POST", path: at + "/attempts", token: key, body: `{"replace_current":true}`}).want(200, &again)
	if again.Attempt.Number != 2 {
		t.Errorf("%+v", again)
	}
	var done map[string]bool
	i.send(request{method: "POST", path: at + "/signals", token: key, body: `{"signal":"INT"}`}).want(200, &done)
	i.send(request{method: "PUT", path: at + "/terminal", token: key, body: `{"rows":5,"cols":7}`}).want(200, &done)
	i.send(request{method: "PUT", path: at + "/desired-state", token: key, body: `{"state":"stopped"}`}).want(200, &again)
	if !done["accepted"] || !done["resized"] || again.Phase != "stopping" {
		t.Errorf("%v, %+v", done, again)
	}
	i.send(request{method: "DELETE", path: at, token: viewer}).refused(403, "forbidden")
	i.send(request{method: "DELETE", path: at, token: key}).want(200, nil)
	for _, gone := range []string{at, base + "/sess-1", at + "/events", at + "/events/stream"} {
		i.send(request{method: "GET", path: gone, token: key}).refused(404, procapi.CodeSessionNotFound)
	}
}

func TestA03_SessionRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	base := "/api/v1/sandboxes/" + i.claim(key) + "/sessions"
	for _, r := range []request{
		{method: "POST", path: base, body: `{"command":["true"],"privileged":true}`},
		{method: "POST", path: base, body: `{"name":"x"}`},
		{method: "POST", path: base, body: `{"command":["true"],"lifecycle":{"idle_timeout_seconds":1.5}}`},
		{method: "POST", path: base, body: `{"command":["true"],"command":["false"]}`},
		{method: "POST", path: base, body: `{"command":["true"]}`, header: http.Header{"Idempotency-Key": {strings.Repeat("k", 129)}}},
		{method: "POST", path: base + "/sess-000000000001/inputs", body: `{"input_id":"a","data_base64":"§"}`},
		{method: "POST", path: base + "/sess-000000000001/inputs", body: `{"data_base64":"aGk="}`},
		{method: "PUT", path: base + "/sess-000000000001/terminal", body: `{"rows":70000,"cols":1}`},
		{method: "GET", path: base + "/sess-000000000001/events?after=-1"},
		{method: "GET", path: base + "/sess-000000000001/events/stream", header: http.Header{"Last-Event-Id": {"x"}}},
		{method: "GET", path: base + "/sess-000000000001/ws"},
	} {
		r.token = key
		i.send(r).refused(400, "invalid_request")
	}
	i.send(request{method: "POST", path: base + "/sess-000000000001/inputs", token: key, body: `{"input_id":"a","data_base64":"` + strings.Repeat("A", 3<<20) + `"}`}).refused(413, "bad_request")
}

// follow opens a stream of events. next is the next of them, io.EOF behind the
// last; any other error means that it broke off.
func (i *instance) follow(r request) (next func() (sessionEvent, error)) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	i.t.Cleanup(cancel)
	resp, err := checked.RoundTrip(i.request(r).WithContext(ctx))
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		i.t.Fatalf("%s: %s of %s", r.path, resp.Status, resp.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func() (ev sessionEvent, err error) {
		id := ""
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "id":
				id = value
			case "data":
				if err := json.Unmarshal([]byte(value), &ev); err != nil || fmt.Sprint(ev.Seq) != id {
					i.t.Errorf("id %q with %q: %v", id, value, err)
				}
				return ev, nil
			}
		}
		if lines.Err() == nil {
			return ev, io.EOF
		}
		return ev, lines.Err()
	}
}

func TestStreamOfASession(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	var s executionSession
	base := "/api/v1/sandboxes/" + i.claim(key) + "/sessions"
	i.send(request{method: "POST", path: base, token: key, body: catSpec}).want(201, &s)
	at := base + "/" + s.ID
	write := func(id, data string) {
		t.Helper()
		i.send(request{method: "POST", path: at + "/inputs", token: key, body: map[string]any{"input_id": id, "data_base64": []byte(data)}}).want(200, nil)
	}
	next := i.follow(request{method: "GET", path: at + "/events/stream", token: key})
	write("1", "one")
	for _, want := range []string{"session.created", "attempt.started", "output"} {
		if ev, err := next(); err != nil || ev.Type != want {
			t.Fatalf("%+v, %v; want %s", ev, err, want)
		}
	}
	// The node's daemon restarts; the stream goes on where it was.
	i.node.Stop()
	i.node.Listen(t)
	fakenode.Eventually(t, "the node is back", func() bool {
		return i.send(request{method: "GET", path: at, token: key}).status == 200
	})
	write("2", "two")
	if ev, err := next(); err != nil || ev.Seq != 4 || string(ev.Data) != "two" {
		t.Fatalf("%+v, %v", ev, err)
	}
	for _, resumed := range []request{
		{path: at + "/events/stream?after=3"},
		{path: at + "/events/stream?after=1", header: http.Header{"Last-Event-Id": {"3"}}},
	} {
		resumed.method, resumed.token = "GET", key
		if ev, err := i.follow(resumed)(); err != nil || ev.Seq != 4 {
			t.Errorf("%+v: %+v, %v", resumed, ev, err)
		}
	}
	i.send(request{method: "DELETE", path: at, token: key}).want(200, nil)
	if ev, err := next(); err != nil || ev.Type != procapi.SessionDeleted {
		t.Fatalf("%+v, %v", ev, err)
	}
	if ev, err := next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %+v, %v", ev, err)
	}
}

// A stream that the server ends because it stops does not look like a session's end.
func TestAStreamBreaksOffWhenTheServerStops(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	var s executionSession
	base := "/api/v1/sandboxes/" + i.claim(key) + "/sessions"
	i.send(request{method: "POST", path: base, token: key, body: catSpec}).want(201, &s)
	next := i.follow(request{method: "GET", path: base + "/" + s.ID + "/events/stream?after=2", token: key})
	i.stop()
	if ev, err := next(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%+v, %v", ev, err)
	}
}

func (i *instance) dialSession(path, token string) *websocket.Conn {
	i.t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(i.url, "http")+path, http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	return conn
}

func TestSocketOfASession(t *testing.T) {
	t.Parallel()
	i := start(t)
	key, viewer := i.key("developer"), i.key("viewer")
	var s executionSession
	base := "/api/v1/sandboxes/" + i.claim(key) + "/sessions"
	i.send(request{method: "POST", path: base, token: key, body: catSpec}).want(201, &s)
	address := "ws" + strings.TrimPrefix(i.url, "http") + base
	for path, want := range map[string]struct {
		token  string
		status int
	}{"/" + s.ID + "/ws": {viewer, 403}, "/sess-00000000000f/ws": {key, 404}, "/nonsense/ws": {key, 404}} {
		if _, resp, err := websocket.DefaultDialer.Dial(address+path, http.Header{"Authorization": {"Bearer " + want.token}}); err == nil || resp.StatusCode != want.status {
			t.Errorf("%s: %v", path, err)
		}
	}
	conn := i.dialSession(base+"/"+s.ID+"/ws?after=2", key)
	type message struct {
		Type      string
		RequestID string `json:"request_id"`
		Event     sessionEvent
		Error     string
		Code      string
	}
	read := func(want string) (m message) {
		t.Helper()
		for m.Type != want {
			if err := conn.ReadJSON(&m); err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
		}
		return m
	}
	send := func(text string) {
		t.Helper()
		if err := conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	send(`{"type":"input","request_id":"r1","input_id":"1","data_base64":"aGk="}`)
	seen := map[string]message{}
	for range 2 {
		var m message
		if err := conn.ReadJSON(&m); err != nil {
			t.Fatal(err)
		}
		seen[m.Type] = m
	}
	if seen["ack"].RequestID != "r1" || string(seen["event"].Event.Data) != "hi" || seen["event"].Event.Seq != 3 {
		t.Errorf("%+v", seen)
	}
	for _, text := range []string{`{"type":"resize","request_id":"r","rows":5,"cols":6}`, `{"type":"signal","request_id":"r","signal":"INT"}`} {
		send(text)
		if m := read("ack"); m.RequestID != "r" {
			t.Errorf("%s: %+v", text, m)
		}
	}
	for text, code := range map[string]string{
		`nonsense`: "bad_request", `{"type":"exec","request_id":"r"}`: "bad_request", `{"type":"signal","request_id":"` + strings.Repeat("r", 256) + `"}`: "bad_request",
		`{"type":"input","request_id":"r","input_id":"2","expected_attempt_id":"att-0","data_base64":"aGk="}`: procapi.CodeAttemptMismatch,
	} {
		send(text)
		if m := read("error"); m.Code != code || m.Error == "" {
			t.Errorf("%.60s: %+v", text, m)
		}
	}
	i.send(request{method: "DELETE", path: base + "/" + s.ID, token: key}).want(200, nil)
	if m := read("event"); m.Event.Type != procapi.SessionDeleted {
		t.Errorf("%+v", m)
	}
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("at the end: %v", err)
	}
}

func TestA11_HostileFramesOnASessionsSocket(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	var s executionSession
	base := "/api/v1/sandboxes/" + i.claim(key) + "/sessions"
	i.send(request{method: "POST", path: base, token: key, body: catSpec}).want(201, &s)
	for name, c := range map[string]struct {
		text string
		code int
	}{
		"too long": {strings.Repeat("x", 2<<20), websocket.CloseMessageTooBig},
		"no UTF-8": {"\"\xff\"", websocket.CloseInvalidFramePayloadData},
	} {
		conn := i.dialSession(base+"/"+s.ID+"/ws?after=100", key)
		if err := conn.WriteMessage(websocket.TextMessage, []byte(c.text)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestB13_SessionsOfALyingSandbox: what is none of the contract's does not pass.
func TestB13_SessionsOfALyingSandbox(t *testing.T) {
	t.Parallel()
	said := make(chan string, 1)
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.Proc = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Set-Cookie", "a=b")
			io.WriteString(w, <-said)
		})
	})
	key := i.key("developer")
	base := "/api/v1/sandboxes/" + i.claim(key) + "/sessions"
	const id, at = "sess-000000000001", `"created_at":"2026-01-01T00:00:00Z"`
	session := `{"id":"` + id + `","phase":"running","spec":{"command":["x"]},` + at + `}`
	event := `{"seq":5,"session_id":"` + id + `","type":"output","occurred_at":"2026-01-01T00:00:00Z"}`
	for _, c := range []struct{ path, say string }{
		{"", `{"sessions":[{}]}`},
		{"", `{"sessions":[` + strings.Repeat(session+",", 64) + session + `]}`},
		{"/" + id, strings.Replace(session, "running", "flying", 1)},
		{"/" + id, strings.Replace(session, id, "../../etc", 1)},
		{"/" + id, strings.Replace(session, `["x"]`, `["x"],"io":{"mode":"both"}`, 1)},
		{"/" + id, strings.Replace(session, `["x"]`, `["x"],"lifecycle":{"restart":{"policy":"?"}}`, 1)},
		{"/" + id, strings.Replace(session, `"phase"`, `"attempt":{"id":"x"},"phase"`, 1)},
		{"/" + id, `[]`},
		{"/" + id + "/events", `{"events":[` + strings.Replace(event, id, "sess-000000000002", 1) + `]}`},
		{"/" + id + "/events", `{"events":[` + event + "," + event + `]}`},
		{"/" + id + "/events?after=5", `{"events":[` + event + `]}`},
		{"/" + id + "/events", `{"events":[` + strings.Replace(event, "output", "<script>", 1) + `]}`},
		{"/" + id + "/events", `{"events":[` + strings.Replace(event, `"type"`, `"stream":"stdin","type"`, 1) + `]}`},
		{"/" + id + "/events", `{"events":[` + strings.Repeat("{},", 1001) + `{}]}`},
	} {
		said <- c.say
		if a := i.send(request{method: "GET", path: base + c.path, token: key}).refused(502, "unavailable"); a.header.Get("Set-Cookie") != "" {
			t.Error("a header of the sandbox's passed")
		}
	}
	for _, say := range []string{"nonsense\n", strings.Replace(event, "output", "OUTPUT", 1) + "\n", event + "\n" + event + "\n", strings.Repeat("x", procapi.MaxSessionEvent+1) + "\n"} {
		said <- say
		next := i.follow(request{method: "GET", path: base + "/" + id + "/events/stream", token: key})
		ev, err := next()
		for err == nil {
			ev, err = next()
		}
		if errors.Is(err, io.EOF) {
			t.Errorf("%.60q ended well with %+v", say, ev)
		}
	}
}
