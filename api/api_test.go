package api_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
)

// The path of the demo, as a client walks it.
func TestFromSignInToTheEndOfASandbox(t *testing.T) {
	t.Parallel()
	i := start(t)
	jwt := i.signIn()
	var me struct {
		Email         string
		DefaultTeamID string `json:"default_team_id"`
	}
	i.send(request{method: "GET", path: "/users/me", token: jwt}).want(200, &me)
	if me.Email != "admin@example.com" || me.DefaultTeamID == "" {
		t.Errorf("%+v", me)
	}
	key := i.key("admin")

	var claimed struct {
		SandboxID string `json:"sandbox_id"`
		Status    string
		PodName   string `json:"pod_name"`
		ClusterID string `json:"cluster_id"`
		Template  string
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"DEFAULT","config":{"env_vars":{"A":"1"},"ttl":60,"hard_ttl":120}}`}).want(201, &claimed)
	if claimed.Status != "running" || claimed.PodName != claimed.SandboxID || claimed.ClusterID != "local" || claimed.Template != "default" {
		t.Errorf("%+v", claimed)
	}
	base := "/api/v1/sandboxes/" + claimed.SandboxID

	var list struct {
		Sandboxes []struct{ ID, Status string }
		Count     int
		HasMore   bool `json:"has_more"`
	}
	i.send(request{method: "GET", path: "/api/v1/sandboxes?status=running", token: key}).want(200, &list)
	if list.Count != 1 || list.HasMore || list.Sandboxes[0].ID != claimed.SandboxID {
		t.Errorf("%+v", list)
	}
	var sb struct {
		Resources  struct{ Memory string }
		ExpiresAt  time.Time `json:"expires_at"`
		AutoResume bool      `json:"auto_resume"`
	}
	i.send(request{method: "GET", path: base, token: key}).want(200, &sb)
	if sb.Resources.Memory != "2Gi" || time.Until(sb.ExpiresAt) > time.Minute || !sb.AutoResume {
		t.Errorf("%+v", sb)
	}
	i.send(request{method: "GET", path: base + "/status", token: key}).want(200, nil)
	i.send(request{method: "PUT", path: base, token: key, body: `{"config":{"ttl":0,"hard_ttl":0,"auto_resume":false,"resources":{"memory":"1Gi"}}}`}).want(200, &sb)
	if !sb.ExpiresAt.IsZero() || sb.AutoResume || sb.Resources.Memory != "1Gi" {
		t.Errorf("%+v", sb)
	}
	i.send(request{method: "POST", path: base + "/refresh", token: key}).want(200, nil)
	i.send(request{method: "POST", path: base + "/refresh", token: key, body: `{"duration":30}`}).want(200, &sb)
	if left := time.Until(sb.ExpiresAt); left > 30*time.Second || left < 20*time.Second {
		t.Errorf("refreshed for 30 s, %v left", left)
	}

	i.contexts(key, base)
	i.files(key, base)

	i.send(request{method: "DELETE", path: base, token: key}).want(200, nil)
	for _, path := range []string{"", "/status", "/contexts", "/files?path=a"} {
		i.send(request{method: "GET", path: base + path, token: key}).refused(404, "not_found")
	}
	i.send(request{method: "DELETE", path: base, token: key}).refused(404, "not_found")
	if left := i.node.Sandboxes(); len(left) != 0 {
		t.Errorf("left at the node: %v", left)
	}
}

func (i *instance) contexts(key, base string) {
	i.t.Helper()
	var c struct {
		ID     string
		Stdout string
	}
	i.send(request{method: "POST", path: base + "/contexts", token: key, body: `{"type":"cmd","cmd":{"command":["echo","hi"]},"wait_until_done":true}`}).want(201, &c)
	if c.Stdout != "echo hi" {
		i.t.Errorf("%+v", c)
	}
	i.send(request{method: "POST", path: base + "/contexts", token: key, body: `{"type":"dance"}`}).refused(400, "invalid_request")
	i.send(request{method: "POST", path: base + "/contexts", token: key, body: `{}`}).refused(400, "invalid_request")
	i.send(request{method: "GET", path: base + "/contexts", token: key}).want(200, nil)
	ctx := base + "/contexts/" + c.ID
	for _, r := range []request{
		{method: "GET", path: ctx},
		{method: "POST", path: ctx + "/exec", body: `{"data":"1+1"}`},
		{method: "POST", path: ctx + "/input", body: `{"data":""}`},
		{method: "POST", path: ctx + "/resize", body: `{"rows":24,"cols":80}`},
		{method: "POST", path: ctx + "/signal", body: `{"signal":"INT"}`},
		{method: "GET", path: ctx + "/stats"},
		{method: "POST", path: ctx + "/restart"},
		{method: "DELETE", path: ctx},
	} {
		r.token = key
		i.send(r).want(200, nil)
	}
	for _, id := range []string{c.ID, "ctx-ffffffff", "%00", "ctx-1", "x"} {
		i.send(request{method: "GET", path: base + "/contexts/" + id, token: key}).refused(404, "context_not_found")
	}
	i.send(request{method: "POST", path: ctx + "/resize", token: key, body: `{"rows":0,"cols":80}`}).refused(400, "invalid_request")
	i.send(request{method: "POST", path: ctx + "/resize", token: key, body: `{"rows":`}).refused(400, "invalid_request")
	i.send(request{method: "POST", path: ctx + "/exec", token: key, body: `{}`}).refused(400, "invalid_request")
}

func (i *instance) files(key, base string) {
	i.t.Helper()
	content := strings.Repeat("0123456789", 100_000)
	i.send(request{method: "POST", path: base + "/files?path=/tmp/a", token: key, body: content}).want(200, nil)
	raw := i.send(request{method: "GET", path: base + "/files?path=/tmp/a", token: key}).want(200, nil)
	if string(raw.raw) != content || raw.header.Get("Content-Type") != "application/octet-stream" {
		i.t.Errorf("%d bytes of %s", len(raw.raw), raw.header.Get("Content-Type"))
	}
	var coded struct {
		Content  []byte
		Encoding string
	}
	i.send(request{method: "GET", path: base + "/files?path=/tmp/a", token: key, header: http.Header{"Accept": {"application/json"}}}).want(200, &coded)
	if string(coded.Content) != content || coded.Encoding != "base64" {
		i.t.Errorf("%d bytes as %s", len(coded.Content), coded.Encoding)
	}
	i.send(request{method: "POST", path: base + "/files?path=/tmp/d&mkdir=true", token: key, header: http.Header{"Content-Type": {"application/octet-stream"}}}).want(201, nil)
	i.send(request{method: "POST", path: base + "/files?path=/tmp/empty", token: key}).want(200, nil)
	i.send(request{method: "GET", path: base + "/files/stat?path=/tmp/a", token: key}).want(200, nil)
	i.send(request{method: "GET", path: base + "/files/list?path=/tmp", token: key}).want(200, nil)
	i.send(request{method: "POST", path: base + "/files/move", token: key, body: `{"source":"/tmp/a","destination":"/tmp/b"}`}).want(200, nil)
	i.send(request{method: "GET", path: base + "/files?path=/tmp/a", token: key}).refused(404, "file_not_found")
	i.send(request{method: "GET", path: base + "/files", token: key}).refused(400, "invalid_request")
	i.send(request{method: "DELETE", path: base + "/files?path=/tmp/b", token: key}).want(200, nil)
}

func TestTheWebSocketIsServedBehindTheGuard(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	var c struct{ ID string }
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/contexts", token: key, body: `{"type":"repl"}`}).want(201, &c)
	address := "ws" + strings.TrimPrefix(i.url, "http") + "/api/v1/sandboxes/" + id + "/contexts/" + c.ID + "/ws"
	if _, resp, err := websocket.DefaultDialer.Dial(address, nil); err == nil || resp.StatusCode != 401 {
		t.Fatalf("without a token: %v", err)
	}
	viewer := i.key("viewer")
	if _, resp, err := websocket.DefaultDialer.Dial(address, http.Header{"Authorization": {"Bearer " + viewer}}); err == nil || resp.StatusCode != 403 {
		t.Fatalf("with a viewer's: %v", err)
	}
	conn, _, err := websocket.DefaultDialer.Dial(address, http.Header{"Authorization": {"Bearer " + key}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, b, err := conn.ReadMessage()
	if err != nil || string(b) != `{"exit_code":0,"state":"stopped","type":"done"}` {
		t.Fatalf("%s: %v", b, err)
	}
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	var list struct {
		Templates []struct {
			TemplateID string `json:"template_id"`
			Scope      string
			Spec       any
		}
		Count int
	}
	i.send(request{method: "GET", path: "/api/v1/templates", token: key}).want(200, &list)
	if list.Count != 3 || list.Templates[0].TemplateID != "default" || list.Templates[0].Scope != "public" {
		t.Fatalf("%+v", list)
	}
	// What the list shows can be created again by the same user.
	create := request{method: "POST", path: "/api/v1/templates", token: key, body: map[string]any{"template_id": "Copy", "spec": list.Templates[0].Spec}}
	i.send(create).want(201, nil)
	i.send(create).refused(409, "conflict")
	i.send(request{method: "GET", path: "/api/v1/templates/copy", token: key}).want(200, nil)
	i.send(request{method: "PUT", path: "/api/v1/templates/copy", token: key, body: `{"spec":{"mainContainer":{"image":"other","resources":{"memory":"1Gi"}},"pool":{"minIdle":2,"maxIdle":2}}}`}).want(200, nil)
	fakenode.Eventually(t, "the node keeps the new template's pool", func() bool {
		pools, _ := i.node.Pools()
		for _, p := range pools {
			if p.GetSpec().GetImage() == "other" && p.GetMinIdle() == 2 && p.GetSpec().GetCpuMillis() == 250 {
				return true
			}
		}
		return false
	})
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"copy"}`}).want(201, nil)
	i.send(request{method: "PUT", path: "/api/v1/templates/default", token: key, body: map[string]any{"spec": list.Templates[0].Spec}}).refused(403, "forbidden")
	i.send(request{method: "DELETE", path: "/api/v1/templates/default", token: key}).refused(403, "forbidden")
	i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: `{"template_id":"bad","spec":{"mainContainer":{"image":"x","resources":{"cpu":"1","memory":"1Gi"}}}}`}).refused(400, "bad_request")
	// What is a system admin's is nobody else's; what was not built is listed alone.
	i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: `{"template_id":"bad","spec":{"mainContainer":{"image":"x","resources":{"memory":"1Gi"},"securityContext":{}}}}`}).refused(403, "forbidden")
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"browser"}`}).refused(503, "unavailable")
	var copied struct {
		Status struct {
			Conditions     []struct{ Type, Status, Reason string }
			LastUpdateTime time.Time
		}
	}
	i.send(request{method: "GET", path: "/api/v1/templates/copy", token: key}).want(200, &copied)
	if c := copied.Status.Conditions; len(c) != 1 || c[0].Type != "PoolReady" || copied.Status.LastUpdateTime.IsZero() {
		t.Errorf("status %+v", copied.Status)
	}
	i.send(request{method: "DELETE", path: "/api/v1/templates/copy", token: key}).want(200, nil)
	i.send(request{method: "GET", path: "/api/v1/templates/copy", token: key}).refused(404, "not_found")
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"copy"}`}).refused(404, "not_found")
}

func TestAPIKeysOverTheAPI(t *testing.T) {
	t.Parallel()
	i := start(t)
	jwt := i.signIn()
	var made struct{ ID, Key string }
	i.send(request{method: "POST", path: "/api-keys", token: jwt, body: `{"name":"ci","roles":["developer"],"expires_in":"never"}`}).want(201, &made)
	var current struct {
		APIKey struct {
			ID          string
			Permissions []string
		} `json:"api_key"`
	}
	i.send(request{method: "GET", path: "/api-keys/current", token: made.Key}).want(200, &current)
	if current.APIKey.ID != made.ID || len(current.APIKey.Permissions) == 0 {
		t.Errorf("%+v", current)
	}
	list := i.send(request{method: "GET", path: "/api-keys", token: jwt}).want(200, nil)
	if strings.Contains(string(list.raw), made.Key) {
		t.Error("F11: the list shows the secret")
	}
	i.send(request{method: "GET", path: "/api/v1/sandboxes", token: made.Key}).want(200, nil)
	i.send(request{method: "POST", path: "/api-keys/" + made.ID + "/deactivate", token: jwt}).want(200, nil)
	i.send(request{method: "GET", path: "/api/v1/sandboxes", token: made.Key}).refused(401, "unauthorized")
	i.send(request{method: "DELETE", path: "/api-keys/" + made.ID, token: jwt}).want(200, nil)
	i.send(request{method: "DELETE", path: "/api-keys/" + made.ID, token: jwt}).refused(404, "not_found")
	i.send(request{method: "DELETE", path: "/api-keys/x", token: jwt}).refused(404, "not_found")
	for _, body := range []string{`{"name":""}`, `{"name":"a","expires_in":"1d"}`, `{"name":"a","roles":["root"]}`, `{"name":"a","scope":"world"}`, `{"name":"a\u0000"}`} {
		i.send(request{method: "POST", path: "/api-keys", token: jwt, body: body}).refused(400, "bad_request")
	}
}

func TestSessionsOverTheAPI(t *testing.T) {
	t.Parallel()
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.AdminPassword = "first password" })
	var s struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresAt    int64  `json:"expires_at"`
	}
	i.send(request{method: "POST", path: "/auth/login", body: `{"email":"admin@example.com","password":"wrong"}`}).refused(401, "unauthorized")
	i.send(request{method: "POST", path: "/auth/login", body: `{"email":"admin@example.com","password":"first password"}`}).want(200, &s)
	if left := time.Until(time.Unix(s.ExpiresAt, 0)); left > 15*time.Minute || left < 14*time.Minute {
		t.Errorf("the access token holds for %v", left)
	}
	old := s.RefreshToken
	i.send(request{method: "POST", path: "/auth/refresh", body: map[string]string{"refresh_token": old}}).want(200, &s)
	i.send(request{method: "POST", path: "/auth/refresh", body: map[string]string{"refresh_token": old}}).refused(401, "unauthorized")
	i.send(request{method: "GET", path: "/teams", token: s.AccessToken}).want(200, nil)
	i.send(request{method: "GET", path: "/auth/providers"}).want(200, nil)
	i.send(request{method: "POST", path: "/auth/change-password", token: s.AccessToken, body: `{"old_password":"first password","new_password":"short"}`}).refused(400, "bad_request")
	i.send(request{method: "POST", path: "/auth/change-password", token: s.AccessToken, body: `{"old_password":"nope","new_password":"second password"}`}).refused(403, "forbidden")
	i.send(request{method: "POST", path: "/auth/change-password", token: s.AccessToken, body: `{"old_password":"first password","new_password":"second password"}`}).want(200, nil)
	i.send(request{method: "POST", path: "/auth/login", body: `{"email":"admin@example.com","password":"second password"}`}).want(200, &s)
	i.send(request{method: "POST", path: "/auth/logout", token: s.AccessToken}).want(200, nil)
	i.send(request{method: "POST", path: "/auth/refresh", body: map[string]string{"refresh_token": s.RefreshToken}}).refused(401, "unauthorized")
}

// What is not served is refused by name, never left out silently.
func TestWhatIsNotServedIsSaid(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	id := i.claim(key)
	for body, want := range map[string]struct {
		status int
		code   string
		says   string
	}{
		`{"template":"default","snapshot_id":"x"}`:                                             {404, "not_found", "snapshot"},
		`{"template":"default","mounts":[{"sandboxvolume_id":"v","mount_point":"/a"}]}`:        {404, "not_found", "volume not found"},
		`{"template":"default","config":{"network":{"mode":"block-all"}}}`:                     {503, "unavailable", "network policy is unavailable in this deployment"},
		`{"template":"default","config":{"webhook":{"url":"http://a"}}}`:                       {400, "bad_request", "webhook"},
		`{"template":"default","config":{"services":[{"id":"a","ingress":{"public":false}}]}}`: {400, "bad_request", "service a: port"},
		`{"template":"default","config":{"exposed_ports":[{"port":0,"resume":false}]}}`:        {400, "bad_request", "exposed_ports"},
		`{"template":"default","config":{"env_vars":{"A=B":"1"}}}`:                             {400, "bad_request", "env_vars"},
		`{"template":"default","config":{"resources":{"memory":"lots"}}}`:                      {400, "bad_request", "memory"},
		`{"template":"default","tenant_id":"x"}`:                                               {400, "bad_request", "tenant_id"},
		`{"template":""}`:                                                                      {400, "bad_request", "template is required"},
		`{}`:                                                                                   {400, "bad_request", "template is required"},
		`{"template":"../../etc"}`:                                                             {404, "not_found", "template"},
	} {
		a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: body}).refused(want.status, want.code)
		if !strings.Contains(a.msg, want.says) {
			t.Errorf("%s: %q, want it to say %q", body, a.msg, want.says)
		}
	}
	for _, body := range []string{`{}`, `{"config":null}`, `{"config":{"ttl":-1}}`, `{"config":{"ttl":5,"hard_ttl":1}}`, `{"config":{"generation":7}}`, `{"config":{"services":[{"id":"a","ingress":{"public":false}}]}}`} {
		i.send(request{method: "PUT", path: "/api/v1/sandboxes/" + id, token: key, body: body}).refused(400, "bad_request")
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/refresh", token: key, body: `{"duration":-1}`}).refused(400, "bad_request")
	for _, q := range []string{"status=unknown", "limit=0", "limit=201", "limit=x", "offset=-1", "paused=maybe", "limit=1&limit=2"} {
		i.send(request{method: "GET", path: "/api/v1/sandboxes?" + q, token: key}).refused(400, "bad_request")
	}
}

func TestA16_IdempotencyKeyOverTheAPI(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	claim := func(body, idempotency string) answer {
		return i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: body, header: http.Header{"Idempotency-Key": {idempotency}}})
	}
	first := claim(`{"template":"default"}`, "k").want(201, nil)
	again := claim(`{ "template" : "default" }`, "k").want(201, nil)
	if string(first.data) != string(again.data) {
		t.Errorf("%s\n%s", first.data, again.data)
	}
	if a := claim(`{"template":"default","config":{"ttl":5}}`, "k"); a.status != 422 || a.code != "bad_request" {
		t.Errorf("another body: %d %s", a.status, a.raw)
	}
	claim(`{"template":"default"}`, strings.Repeat("x", 129)).refused(400, "bad_request")
	claim(`{"template":"default"}`, "with space").refused(400, "bad_request")
	var sb struct {
		SandboxID string `json:"sandbox_id"`
	}
	claim(`{"template":"default"}`, "k").want(201, &sb)
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + sb.SandboxID, token: key}).want(200, nil)
	claim(`{"template":"default"}`, "k").refused(409, "conflict")
}

// R6, X28: a node that can't be asked hides nothing and invents nothing.
func TestAnUnreachableNodeIsNever404(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	i.node.Stop()
	base := "/api/v1/sandboxes/" + id
	for _, path := range []string{"/contexts", "/files?path=a"} {
		i.send(request{method: "GET", path: base + path, token: key}).refused(503, "unavailable")
	}
	i.send(request{method: "GET", path: base, token: key}).want(200, nil) // a daemon that restarts takes a moment
	fakenode.Eventually(t, "readiness says so", func() bool {
		return i.send(request{method: "GET", path: "/readyz"}).status == 503
	})
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).refused(503, "unavailable")
	i.node.Listen(t)
	fakenode.Eventually(t, "it serves again", func() bool {
		return i.send(request{method: "GET", path: base + "/contexts", token: key}).status == 200
	})
}

// R6: while its node is silent nobody is told that a sandbox runs, neither by name
// nor in a list, and it can still be found and deleted.
func TestR6_ASilentNodesSandboxIsNotShownAsRunning(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	base := "/api/v1/sandboxes/" + id
	type list struct {
		Sandboxes []struct {
			ID          string
			Status      string
			Unreachable bool
		}
	}
	marked := func() bool {
		var l list
		i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, &l)
		if len(l.Sandboxes) != 1 || l.Sandboxes[0].ID != id || l.Sandboxes[0].Status != "running" {
			t.Fatalf("%+v", l)
		}
		return l.Sandboxes[0].Unreachable
	}
	if marked() {
		t.Error("its node is there")
	}
	i.node.Stop()
	fakenode.Eventually(t, "the list says so", marked)
	for _, path := range []string{base, base + "/status"} {
		if a := i.send(request{method: "GET", path: path, token: key}).refused(503, "unavailable"); a.header.Get("Retry-After") == "" {
			t.Errorf("GET %s: no Retry-After", path)
		}
	}
	i.node.Listen(t)
	fakenode.Eventually(t, "the list is sure again", func() bool { return !marked() })
	i.send(request{method: "GET", path: base, token: key}).want(200, nil)
	i.node.Stop()
	i.send(request{method: "DELETE", path: base, token: key}).want(200, nil)
}

func TestAFailedSandboxIsShownAsFailed(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	base := "/api/v1/sandboxes/" + id
	i.node.Fail(id, "oom")
	var sb struct{ Status string }
	fakenode.Eventually(t, "the failure is shown", func() bool {
		i.send(request{method: "GET", path: base, token: key}).want(200, &sb)
		return sb.Status == "failed"
	})
	a := i.send(request{method: "GET", path: base + "/contexts", token: key}).refused(503, "unavailable")
	if !strings.Contains(a.msg, "failed") {
		t.Errorf("%q", a.msg)
	}
	i.send(request{method: "PUT", path: base, token: key, body: `{"config":{"env_vars":{}}}`}).refused(409, "conflict")
	i.send(request{method: "DELETE", path: base, token: key}).want(200, nil)
}

// B13: whatever procd says, the client gets the contract's answers.
func TestALyingProcd(t *testing.T) {
	t.Parallel()
	lie := make(chan func(http.ResponseWriter), 1)
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.Proc = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { (<-lie)(w) })
	})
	key := i.key("developer")
	base := "/api/v1/sandboxes/" + i.claim(key)
	text := func(status int, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Set-Cookie", "a=b")
			w.Header().Set("X-Request-Id", "evil")
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	for name, c := range map[string]struct {
		do     func(http.ResponseWriter)
		status int
		code   string
	}{
		"garbage":            {text(200, "hello"), 502, "unavailable"},
		"wrong shape":        {text(200, `{"contexts":5}`), 502, "unavailable"},
		"strange context id": {text(200, `{"contexts":[{"id":"../x","type":"repl"}]}`), 502, "unavailable"},
		"strange state":      {text(200, `{"contexts":[{"id":"ctx-00000001","type":"repl","state":"exploded"}]}`), 502, "unavailable"},
		"endless":            {func(w http.ResponseWriter) { io.Copy(w, zeroes{}) }, 502, "unavailable"},
		"redirect":           {text(302, ""), 502, "unavailable"},
		"foreign code":       {text(400, `{"code":"quota_exceeded","message":"x"}`), 502, "unavailable"},
		"code and status":    {text(400, `{"code":"context_not_found","message":"x"}`), 502, "unavailable"},
		"gone":               {text(404, `{"code":"not_found","message":"sandbox not found"}`), 503, "unavailable"},
		"unauthorized":       {text(401, `{"code":"unauthorized","message":"x"}`), 502, "unavailable"},
		"own error":          {text(500, `{"code":"operation_failed","message":"a\u0000b\nc"}`), 500, "operation_failed"},
		"not even an error":  {text(500, `<html>`), 502, "unavailable"},
	} {
		lie <- c.do
		a := i.send(request{method: "GET", path: base + "/contexts", token: key}).refused(c.status, c.code)
		if a.header.Get("Set-Cookie") != "" || a.header.Get("X-Request-Id") == "evil" || strings.ContainsAny(a.msg, "\x00\n") {
			t.Errorf("%s: %v %s", name, a.header, a.raw)
		}
	}
	// A file that breaks off must not look complete.
	lie <- func(w http.ResponseWriter) {
		io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	once := &http.Transport{DisableKeepAlives: true} // one that does not try again over a new connection
	resp, err := once.RoundTrip(i.request(request{method: "GET", path: base + "/files?path=a", token: key}))
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("half a file came with a clean end")
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestA12_NamesAndOrigins(t *testing.T) {
	t.Parallel()
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.AllowedHosts = []string{"s0.example.com"} })
	for host, ok := range map[string]bool{
		"localhost:1": true, "127.0.0.1": true, "[::1]:30080": true, "10.1.2.3:30080": true, "S0.EXAMPLE.COM.": true,
		"evil.example": false, "localhost.evil.example": false, "s0.example.com.evil.example": false, "127.0.0.1.nip.io": false,
	} {
		req := i.request(request{method: "GET", path: "/healthz"})
		req.Host = host
		resp, err := checked.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if (resp.StatusCode == 200) != ok {
			t.Errorf("Host %s: %s", host, resp.Status)
		}
	}
	login := request{method: "POST", path: "/auth/login", body: `{"email":"a","password":"b"}`}
	for header, status := range map[string]int{"http://evil.example": 403, "null": 403, "": 401} {
		login.header = http.Header{}
		if header != "" {
			login.header.Set("Origin", header)
		}
		if a := i.send(login); a.status != status {
			t.Errorf("Origin %q: %d %s", header, a.status, a.raw)
		}
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.RateLimit, c.RateBurst = 0.1, 10 })
	key := i.key("developer")
	var last answer
	for n := range 20 {
		last = i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key})
		if last.status == 429 && n < 8 {
			t.Fatalf("refused after %d requests", n)
		}
	}
	last.refused(429, "rate_limited")
	if last.header.Get("Retry-After") == "" || last.header.Get("X-RateLimit-Limit") != "10" || last.header.Get("X-RateLimit-Remaining") != "0" {
		t.Errorf("%v", last.header)
	}
	// Guessing keys is charged to the address.
	for n := range 20 {
		last = i.send(request{method: "GET", path: "/api/v1/sandboxes", token: fmt.Sprintf("s0_local_%048x", n)})
	}
	last.refused(429, "rate_limited")
}

// Passwords are tried slowly, whoever tries, and nothing else is held up.
func TestRateLimitOfSignIns(t *testing.T) {
	t.Parallel()
	// So few a second that a machine on which a password takes seconds regains hardly one.
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.RateLimit, c.RateBurst = 20, 200 })
	key, jwt := i.key("developer"), i.signIn()
	login := func(email string) answer {
		return i.send(request{method: "POST", path: "/auth/login", body: map[string]string{"email": email, "password": "a guess"}})
	}
	limited := func(what string, most int, try func(n int) answer) {
		t.Helper()
		for n := range most + 1 {
			a := try(n)
			if a.status != 429 {
				continue
			}
			a.refused(429, "rate_limited")
			if a.header.Get("Retry-After") == "" {
				t.Errorf("%s: no Retry-After", what)
			}
			return
		}
		t.Errorf("%s: %d tries were let through", what, most)
	}
	limited("one user", 10, func(n int) answer {
		if n%2 == 0 {
			return login(i.admin)
		}
		return login(strings.ToUpper(i.admin))
	})
	i.send(request{method: "POST", path: "/auth/login", body: map[string]string{"email": i.admin, "password": i.pass}}).refused(429, "rate_limited")
	limited("one address", 100, func(n int) answer { return login(fmt.Sprintf("u%d@example.com", n)) })
	limited("a change of password", 1, func(int) answer {
		return i.send(request{method: "POST", path: "/auth/change-password", token: jwt, body: `{"old_password":"a guess","new_password":"12345678"}`})
	})
	i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, nil)
	i.send(request{method: "GET", path: "/teams", token: jwt}).want(200, nil)
}

func TestA18_EmailsThatAreNone(t *testing.T) {
	t.Parallel()
	i := start(t)
	for _, email := range []string{`a\u0000@example.com`, `a\n`, `\u0085`, "", strings.Repeat("x", 255)} {
		i.send(request{method: "POST", path: "/auth/login", body: `{"email":"` + email + `","password":"b"}`}).refused(400, "bad_request")
	}
	for _, email := range []string{`\ud800`, "x' OR 1=1 --", "ünï@example.com", strings.Repeat("x", 254)} {
		i.send(request{method: "POST", path: "/auth/login", body: `{"email":"` + email + `","password":"b\u0000"}`}).refused(401, "unauthorized")
	}
	for line := range strings.Lines(i.log.String()) {
		if strings.Contains(line, "level=ERROR") && strings.Contains(line, "/auth/login") {
			t.Errorf("a client's nonsense is no error of ours: %s", line)
		}
	}
}

func TestA07_TokensAreNotLogged(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	jwt := i.signIn()
	i.send(request{method: "GET", path: "/api/v1/sandboxes?access_token=" + key, token: ""}).refused(401, "unauthorized")
	i.send(request{method: "GET", path: "/api/v1/sandboxes?token=" + key, token: key}).want(200, nil)
	i.send(request{method: "POST", path: "/auth/login", body: map[string]string{"email": "a", "password": i.pass + "x"}}).refused(401, "unauthorized")
	i.send(request{method: "POST", path: "/auth/refresh", body: map[string]string{"refresh_token": "canary-refresh"}}).refused(401, "unauthorized")
	i.stop()
	logged := i.log.String()
	if !strings.Contains(logged, "GET /api/v1/sandboxes") {
		t.Fatal("nothing was logged: the test has not tested")
	}
	for name, secret := range map[string]string{"key": key, "jwt": jwt, "password": i.pass, "refresh token": "canary-refresh"} {
		if strings.Contains(logged, secret) {
			t.Errorf("the %s is in the log", name)
		}
	}
}
