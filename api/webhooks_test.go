package api_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
)

const hookSecret = "whsec_canary_5f1d"

// hookEvent is what a receiver gets.
type hookEvent struct {
	EventID   string          `json:"event_id"`
	EventType string          `json:"event_type"`
	Timestamp time.Time       `json:"timestamp"`
	SandboxID string          `json:"sandbox_id"`
	TeamID    string          `json:"team_id"`
	Payload   json.RawMessage `json:"payload"`
}

// hook is a tenant's receiver.
type hook struct {
	t   testing.TB
	url string

	mu  sync.Mutex
	got []hookEvent
}

func newHook(t testing.TB) *hook {
	t.Helper()
	h := &hook{t: t}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	h.url = srv.URL + "/hook?x=1"
	return h
}

func (h *hook) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	var e hookEvent
	if err != nil || json.Unmarshal(raw, &e) != nil {
		h.t.Errorf("body %q: %v", raw, err)
	}
	mac := hmac.New(sha256.New, []byte(hookSecret))
	mac.Write(raw)
	if want := hex.EncodeToString(mac.Sum(nil)); r.Header.Get("X-Sandbox0-Signature") != want {
		h.t.Errorf("%s: signature %q, want %q", e.EventID, r.Header.Get("X-Sandbox0-Signature"), want)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = append(h.got, e)
}

func (h *hook) types(id string) (types []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.got {
		if e.SandboxID == id {
			types = append(types, e.EventType)
		}
	}
	return types
}

func (h *hook) wait(id, eventType string) hookEvent {
	h.t.Helper()
	var found hookEvent
	fakenode.Eventually(h.t, "the webhook is told of "+eventType, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		i := slices.IndexFunc(h.got, func(e hookEvent) bool { return e.SandboxID == id && e.EventType == eventType })
		if i >= 0 {
			found = h.got[i]
		}
		return i >= 0
	})
	return found
}

func privateHooks(c *api.Config, _ *fakenode.Node) { c.WebhookAllowPrivate = true }

func (i *instance) claimHooked(token string, h *hook, more string) string {
	i.t.Helper()
	var c struct {
		SandboxID string `json:"sandbox_id"`
	}
	body := fmt.Sprintf(`{"template":"default","config":{"webhook":{"url":%q,"secret":%q%s}}}`, h.url, hookSecret, more)
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: token, body: body}).want(201, &c)
	return c.SandboxID
}

// eventList is a page of events as clients decode it.
type eventList struct {
	Events []struct {
		EventID    string `json:"event_id"`
		TeamID     string `json:"team_id"`
		Source     string
		EventType  string `json:"event_type"`
		Outcome    string
		Action     string
		Cursor     string
		Resource   struct{ Type, ID string }
		Attributes map[string]any
	}
	NextCursor string `json:"next_cursor"`
	Watermark  string
}

func (i *instance) events(token, id, query string) (list eventList) {
	i.t.Helper()
	i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id + "/observability/events" + query, token: token}).want(200, &list)
	return list
}

func (l eventList) actions() (all []string) {
	for _, e := range l.Events {
		all = append(all, e.Action)
	}
	return all
}

func agentEvent(id, payload string) *nodeapi.SandboxEvent {
	return &nodeapi.SandboxEvent{Id: id, Type: "agent.event", UnixNano: time.Now().UnixNano(), Payload: []byte(payload)}
}

// A webhook is told the whole life of its sandbox, and the list says the same.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	key, h := i.key("developer"), newHook(t)
	id := i.claimHooked(key, h, `,"watch_dir":"src"`)
	ready := h.wait(id, "sandbox.ready")
	if string(ready.Payload) != fmt.Sprintf(`{"sandbox_id":%q,"http_port":49983}`, id) || ready.TeamID == "" || ready.Timestamp.IsZero() {
		t.Errorf("%+v", ready)
	}
	if cfg := i.node.Sandboxes()[id].GetEvents(); cfg == nil || cfg.GetWatchDir() != "src" {
		t.Errorf("the node was asked for %v", cfg)
	}
	i.node.Tell(id, &nodeapi.SandboxEvent{
		Id: "evt_1", Type: "process.crashed", UnixNano: time.Now().UnixNano(), Payload: []byte(`{"process_id":"ctx-00000001","exit_code":139}`),
	}, agentEvent("step-1", `[1,2]`))
	h.wait(id, "process.crashed")
	if e := h.wait(id, "agent.event"); e.EventID != "step-1" || string(e.Payload) != "[1,2]" {
		t.Errorf("%+v", e)
	}
	fakenode.Eventually(t, "the node may forget", func() bool { return i.node.Untold() == 0 })
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
	if e := h.wait(id, "sandbox.deleted"); e.EventID != "evt_sandbox_deleted_"+id {
		t.Errorf("%+v", e)
	}
	want := []string{"sandbox.ready", "process.crashed", "agent.event", "sandbox.killed", "sandbox.deleted"}
	if got := h.types(id); !slices.Equal(got, want) {
		t.Errorf("the webhook was told %v", got)
	}
	var list eventList
	fakenode.Eventually(t, "deliveries are recorded", func() bool {
		list = i.events(key, id, "")
		return !strings.Contains(fmt.Sprint(list), "pending")
	})
	if got := list.actions(); !slices.Equal(got, want) || list.NextCursor != "" {
		t.Errorf("the list has %v, next %q", got, list.NextCursor)
	}
	crash := list.Events[1]
	if crash.Source != "procd" || crash.EventType != "process" || crash.Outcome != "failed" || crash.Resource.ID != "ctx-00000001" ||
		crash.Attributes["exit_code"] != 139.0 || fmt.Sprint(crash.Attributes["webhook_delivery"]) != "map[attempts:1 outcome:status 200 state:delivered]" {
		t.Errorf("%+v", crash)
	}
	if fmt.Sprint(list.Events[2].Attributes["payload"]) != "[1 2]" {
		t.Errorf("%+v", list.Events[2])
	}
	for _, where := range []string{i.log.String(), fmt.Sprint(list)} {
		if strings.Contains(where, hookSecret) {
			t.Error("the secret shows")
		}
	}
}

// F11: what a claim said of its webhook can't be read back.
func TestF11_TheSecretIsWrittenOnce(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	key, h := i.key("developer"), newHook(t)
	id := i.claimHooked(key, h, "")
	for _, path := range []string{"", "/status", "/services"} {
		if a := i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id + path, token: key}).want(200, nil); strings.Contains(string(a.raw), "whsec") {
			t.Errorf("%s: %s", path, a.raw)
		}
	}
	var stored string
	if err := connect(t, i.dsn).QueryRow(t.Context(), "SELECT config FROM sandboxes WHERE id = $1", id).Scan(&stored); err != nil || strings.Contains(stored, "whsec") {
		t.Errorf("the row's config: %s, %v", stored, err)
	}
}

func TestA17_WebhooksThatMustNotBe(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	for _, hook := range []string{
		`{}`, `{"url":""}`, `{"url":"ftp://example.com/"}`, `{"url":"http://127.0.0.1:9/"}`, `{"url":"http://169.254.169.254/"}`,
		`{"url":"http://[::ffff:10.0.0.1]/"}`, `{"url":"http://2130706433/"}`, `{"url":"https://a:b@example.com/"}`,
		`{"url":"https://example.com/","secret":"` + strings.Repeat("s", 2000) + `"}`, `{"url":"https://example.com/","watch_dir":"` + strings.Repeat("d", 5000) + `"}`,
	} {
		body := `{"template":"default","config":{"webhook":` + hook + `}}`
		i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: body}).refused(400, "bad_request")
	}
}

// That a sandbox or its whole node died is told although nothing of it can speak.
func TestX47_TheEndIsToldWithoutTheNode(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	key, h := i.key("developer"), newHook(t)
	failed, lost := i.claimHooked(key, h, ""), i.claimHooked(key, h, "")
	i.node.Fail(failed, "runsc: sentry at /run/secret died")
	if e := h.wait(failed, "sandbox.deleted"); e.EventID != "evt_sandbox_deleted_"+failed || strings.Contains(string(e.Payload), "secret") {
		t.Errorf("%+v", e)
	}
	i.node.Stop()
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + lost, token: key}).want(200, nil)
	h.wait(lost, "sandbox.deleted")
}

// X39: what the database has is told after every server has died.
func TestX39_TheOutboxOutlivesTheServer(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	key := i.key("developer")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone := newHook(t)
	gone.url = "http://" + silent.Addr().String()
	id := i.claimHooked(key, gone, "")
	attempt, err := silent.Accept() // the server ends in the middle of it
	if err != nil {
		t.Fatal(err)
	}
	defer attempt.Close()
	i.stop()
	h := newHook(t)
	exec(t, i.dsn, fmt.Sprintf("UPDATE sandbox_webhooks SET url = '%s', destination = 'x' WHERE sandbox_id = '%s'", h.url, id))
	ready := make(chan string, 1)
	i.run(api.Config{
		Listen: "127.0.0.1:0", DatabaseURL: i.dsn, KeyFile: i.keyFile, Nodes: []string{"unix://" + i.node.Socket}, WebhookAllowPrivate: true,
		RateLimit: 10_000, RateBurst: 10_000, Log: slog.New(slog.DiscardHandler), Ready: func(addr string) { ready <- addr },
	}, ready)
	h.wait(id, "sandbox.ready")
}

// Every sandbox has the events of its life, with a webhook or without.
func TestEventsWithoutAWebhook(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	if got := i.events(key, id, "").actions(); !slices.Equal(got, []string{"sandbox.ready"}) {
		t.Errorf("%v", got)
	}
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
	if got := i.events(key, id, "").actions(); !slices.Equal(got, []string{"sandbox.ready", "sandbox.killed", "sandbox.deleted"}) {
		t.Errorf("%v", got)
	}
	i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id + "/observability/events", token: i.stranger()}).refused(404, "not_found")
}

func TestEventQueries(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	key, h := i.key("developer"), newHook(t)
	id := i.claimHooked(key, h, "")
	var tell []*nodeapi.SandboxEvent
	for n := range 5 {
		tell = append(tell, agentEvent(fmt.Sprint("a", n), "{}"))
	}
	i.node.Tell(id, tell...)
	fakenode.Eventually(t, "the events are stored", func() bool { return len(i.events(key, id, "").Events) == 6 })
	var paged []string
	for query := "?limit=4"; query != ""; {
		page := i.events(key, id, query)
		paged = append(paged, page.actions()...)
		query = ""
		if page.NextCursor != "" {
			query = "?limit=4&cursor=" + page.NextCursor
		}
	}
	if len(paged) != 6 {
		t.Errorf("paged %v", paged)
	}
	for query, want := range map[string]int{
		"source=procd": 5, "source=manager": 1, "source=netd": 0, "event_type=lifecycle": 1, "event_type=process": 5, "event_type=network_audit": 0,
		"outcome=completed": 6, "outcome=denied": 0, "action=agent.event": 5, "action=nonsense": 0, "actor_kind=service": 1, "actor_id=" + id: 5,
		"actor_id=s0": 1, "actor_id=x": 0, "actor_id=s0&actor_kind=human": 0, "resource_type=sandbox": 6, "event_id=a3": 1, "operation_id=a3": 1, "event_id=a3&operation_id=a4": 0,
		"start_time=2020-01-01T00:00:00Z": 6, "end_time=2020-01-01T00:00:00Z": 0,
	} {
		if got := i.events(key, id, "?"+query).actions(); len(got) != want {
			t.Errorf("%s: %v", query, got)
		}
	}
	for _, query := range []string{
		"limit=0", "limit=1001", "limit=-1", "cursor=x", "cursor=e-2", "cursor=e%27%20OR%201=1", "source=x", "event_type=x", "outcome=x", "actor_kind=x",
		"start_time=yesterday", "action=%00", "event_id=" + strings.Repeat("x", 300), "watch=maybe", "watch=true&end_time=2030-01-01T00:00:00Z",
	} {
		i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id + "/observability/events?" + query, token: key}).refused(400, "bad_request")
	}
}

func TestWatchEvents(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	key, h := i.key("developer"), newHook(t)
	id := i.claimHooked(key, h, "")
	path := "/api/v1/sandboxes/" + id + "/observability/events?watch=true"
	next := i.watch(path, key)
	if l := next(); l.Type != "event" || !strings.Contains(string(l.Data), `"action":"sandbox.ready"`) {
		t.Errorf("%+v", l)
	}
	mark := next()
	if mark.Type != "watermark" || mark.Cursor == "" {
		t.Errorf("%+v", mark)
	}
	seen := func(next func() watchLine, what string) {
		t.Helper()
		l := next()
		for l.Type == "heartbeat" || l.Type == "watermark" {
			l = next()
		}
		if l.Type != "event" || !strings.Contains(string(l.Data), what) {
			t.Errorf("%+v %s, want %s", l, l.Data, what)
		}
	}
	i.node.Tell(id, agentEvent("one", "{}"))
	seen(next, `"one"`)
	i.node.Tell(id, agentEvent("two", "{}"))
	seen(next, `"two"`)
	resumed := i.watch(path+"&cursor="+mark.Cursor, key)
	seen(resumed, `"one"`)
	seen(resumed, `"two"`)
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
	for _, n := range []func() watchLine{next, resumed} {
		seen(n, "sandbox.killed")
		seen(n, "sandbox.deleted")
	}
	i.send(request{method: "GET", path: path, token: i.stranger()}).refused(404, "not_found")
}

// B13: what a sandbox tells becomes nothing but events of its own.
func TestB13_EventsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	key, h := i.key("developer"), newHook(t)
	id := i.claimHooked(key, h, "")
	i.node.Tell(id,
		&nodeapi.SandboxEvent{Id: "x1", Type: "sandbox.deleted", Payload: []byte("{}")},
		&nodeapi.SandboxEvent{Id: "x2", Type: "nonsense", Payload: []byte("{}")},
		&nodeapi.SandboxEvent{Id: "x3", Type: "agent.event", Payload: []byte("{")},
		&nodeapi.SandboxEvent{Id: "x4", Type: "agent.event", Payload: []byte(`"` + strings.Repeat("x", 200<<10) + `"`)},
		&nodeapi.SandboxEvent{Id: "../x5", Type: "agent.event", Payload: []byte("{}")},
		agentEvent("evt_sandbox_deleted_"+id, "{}"),
		agentEvent("nul", `"\u0000 \ud800"`),
		agentEvent("deep", strings.Repeat("[", 9_000)+strings.Repeat("]", 9_000)),
		agentEvent("good", `"ok"`),
	)
	h.wait(id, "agent.event")
	fakenode.Eventually(t, "all is done with", func() bool { return i.node.Untold() == 0 })
	list := i.events(key, id, "?action=agent.event")
	var ids []string
	for _, e := range list.Events {
		ids = append(ids, e.EventID)
	}
	if !slices.Equal(ids, []string{"nul", "deep", "good"}) {
		t.Errorf("stored %v", ids)
	}
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
	h.wait(id, "sandbox.deleted")
}

// X34: what happens while the database is away is told when it is back.
func TestX34_EventsWaitForTheDatabase(t *testing.T) {
	t.Parallel()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	i := start(t, privateHooks, func(c *api.Config, _ *fakenode.Node) { c.DatabaseURL = pg.Database(t) })
	i.dsn = "" // the helpers must not use the other database
	key, h := i.key("developer"), newHook(t)
	id := i.claimHooked(key, h, "")
	h.wait(id, "sandbox.ready")
	// A delivery whose end can't be stored keeps its lease for longer than we wait.
	fakenode.Eventually(t, "the delivery is recorded", func() bool {
		list := i.events(key, id, "?action=sandbox.ready")
		return len(list.Events) == 1 && strings.Contains(fmt.Sprint(list.Events[0].Attributes["webhook_delivery"]), "state:delivered")
	})
	pg.Stop()
	i.node.Tell(id, agentEvent("meanwhile", "{}"))
	fakenode.Eventually(t, "storing it has failed", func() bool { return strings.Contains(i.log.String(), "hints about events") })
	if i.node.Untold() != 1 {
		t.Error("the node may forget what nobody has stored")
	}
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	if e := h.wait(id, "agent.event"); e.EventID != "meanwhile" {
		t.Errorf("%+v", e)
	}
	fakenode.Eventually(t, "the node may forget", func() bool { return i.node.Untold() == 0 })
}

// X40: two servers deliver from one outbox, and a sandbox's receiver gets each
// event once.
func TestX40_TwoServersDeliver(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	key, h := i.key("developer"), newHook(t)
	second := &instance{t: t, dsn: i.dsn, node: i.node, log: &logBuffer{}}
	ready := make(chan string, 1)
	second.run(api.Config{
		Listen: "127.0.0.1:0", DatabaseURL: i.dsn, KeyFile: i.keyFile, Nodes: []string{"unix://" + i.node.Socket}, WebhookAllowPrivate: true,
		RateLimit: 10_000, RateBurst: 10_000, Log: slog.New(slog.DiscardHandler), Ready: func(addr string) { ready <- addr },
	}, ready)
	id := i.claimHooked(key, h, "")
	want := []string{"sandbox.ready"}
	for n := range 30 {
		i.node.Tell(id, agentEvent(fmt.Sprint("n", n), "{}"))
		want = append(want, "agent.event")
	}
	fakenode.Eventually(t, "all is told", func() bool { return len(h.types(id)) >= len(want) && i.node.Untold() == 0 })
	if got := h.types(id); !slices.Equal(got, want) {
		t.Errorf("told %d events", len(got))
	}
}
