package api_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

type operation struct {
	method, path string
	op           *openapi3.Operation
}

// operations is every operation of the contract.
func operations(t *testing.T) []operation {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all []operation
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			all = append(all, operation{method, path, op})
		}
	}
	if len(all) < 40 {
		t.Fatalf("only %d operations", len(all))
	}
	return all
}

func (o operation) public() bool { return o.op.Security != nil && len(*o.op.Security) == 0 }

// kinds says what a path's parameter names: the first that matches. One that names
// nothing that belongs to anybody has a value for all.
var kinds = []struct{ path, param, kind, value string }{
	{path: "/api-keys/{id}", param: "id", kind: "api key"},
	{path: "/users/me/identities/{id}", param: "id", kind: "identity"},
	{path: "/users/me/ssh-keys/{id}", param: "id", kind: "ssh key"},
	{path: "/teams/{id}", param: "id", kind: "team"},
	{path: "/teams/{id}", param: "user_id", kind: "member"},
	{path: "/regions/{id}", param: "id", kind: "region"},
	{path: "/internal/v1/users/{id}", param: "id", kind: "user"},
	{path: "/internal/v1/teams/{team_id}", param: "team_id", kind: "team"},
	{path: "/api/v1/sandboxes/{id}", param: "id", kind: "sandbox"},
	{path: "/api/v1/sandboxes/{id}/contexts/{context_id}", param: "context_id", kind: "context"},
	{path: "/api/v1/sandboxes/{id}/sessions/{session_id}", param: "session_id", kind: "session"},
	{path: "/api/v1/sandbox-rootfs-snapshots/{snapshot_id}", param: "snapshot_id", kind: "snapshot"},
	{path: "/api/v1/sandboxvolumes/{id}", param: "id", kind: "volume"},
	{path: "/api/v1/sandboxvolumes/{id}", param: "snapshot_id", kind: "volume snapshot"},
	{path: "/api/v1/sandboxvolumes/{id}/sync", param: "replica_id", value: "laptop"}, // a volume's own
	{path: "/api/v1/sandboxvolumes/{id}/sync", param: "conflict_id", kind: "sync conflict"},
	{path: "/api/v1/templates/{template_id}", param: "template_id", kind: "template"},
	{path: "/api/v1/credential-sources/{name}", param: "name", kind: "credential source"},
	{param: "port", value: "8080"},
	{param: "provider", value: "nobody"},
	{param: "dimension", value: "active_sandboxes"},
}

// bodies are right for their operations. {member} and the like stand for ids.
var bodies = map[string]string{
	"login": `{"email":"a@example.com","password":"12345678"}`, "register": `{"email":"new@example.com","password":"12345678","name":"N"}`,
	"refreshToken": `{"refresh_token":"x"}`, "changePassword": `{"old_password":"not this one","new_password":"12345678"}`,
	"updateCurrentUser": `{"name":"N"}`, "createSSHKey": `{"name":"k","public_key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"}`,
	"createTeam": `{"name":"T"}`, "updateTeam": `{"name":"T"}`, "transferTeam": `{"user_id":"{owner}"}`, "addTeamMember": `{"email":"{candidate}","role":"viewer"}`,
	"updateTeamMember": `{"role":"builder"}`, "updateUserRights": `{"disabled":false}`, "createRegion": `{"id":"aws-another","regional_gateway_url":"https://example.com"}`, "updateRegion": `{"enabled":false}`, "createAPIKey": `{"name":"k"}`,
	"startDeviceLogin": `{}`, "pollDeviceLogin": `{"device_login_id":"x"}`, "exchangeLoginCode": `{"login_code":"x","return_url":"http://127.0.0.1:1/"}`,
	"createSandbox": `{"template":"default"}`, "createTemplate": `{"template_id":"another","spec":{"mainContainer":{"image":"x","resources":{"memory":"1Gi"}}}}`,
	"updateSandbox": `{"config":{"ttl":1000}}`, "updateSandboxServices": `{"services":[]}`, "updateExposedPorts": `{"ports":[{"port":8080,"resume":false}]}`, "updateTemplate": `{"spec":{"mainContainer":{"image":"x","resources":{"memory":"1Gi"}}}}`,
	"updateSandboxNetwork": `{"mode":"allow-all"}`, "createCredentialSource": `{"name":"another","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"x"}}}}`,
	"updateCredentialSource":    `{"resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"y"}}}}`,
	"createRegistryCredentials": `{}`, "createTemplateFromSandbox": `{"template_id":"made","sandbox_id":"{sandbox}"}`,
	"pauseSandbox": `{"memory":false}`, "createSandboxSnapshot": `{"name":"s"}`, "restoreSandboxRootFS": `{"snapshot_id":"{snapshot}"}`,
	"createVolume": `{"access_mode":"ROX"}`, "forkVolume": `{}`, "createVolumeSnapshot": `{"name":"s"}`, "mountVolume": `{"sandboxvolume_id":"{volume}","mount_point":"/v"}`,
	"unmountVolume": `{"sandboxvolume_id":"{mounted}","mount_session_id":"{mount}"}`, "moveVolumeFile": `{"source":"a","destination":"b"}`, "writeVolumeFile": "x", "uploadVolumeArchive": "x",
	"createContext": `{"type":"repl"}`, "execContext": `{"data":"x"}`, "writeContextInput": `{"data":"x"}`,
	"resizeContext": `{"rows":1,"cols":1}`, "signalContext": `{"signal":"INT"}`, "createSession": `{"command":["true"]}`, "updateSession": `{"command":["true"]}`, "setSessionDesiredState": `{"state":"stopped"}`,
	"createSessionAttempt": `{}`, "writeSessionInput": `{"input_id":"1","eof":true}`, "sendSessionSignal": `{"signal":"INT"}`, "resizeSessionTerminal": `{"rows":1,"cols":1}`,
	"putVolumeSyncReplica": `{"display_name":"l","platform":"linux","root_path":"/home/a"}`, "putVolumeSyncCursor": `{"last_applied_seq":0}`,
	"sendVolumeSyncChanges":    `{"request_id":"1","base_seq":0,"changes":[{"event_type":"create","path":"b","content_base64":"eA==","metadata":{"from":"x"}}]}`,
	"bootstrapVolumeSync":      `{"snapshot_name":"s","snapshot_description":"d"}`,
	"updateVolumeSyncConflict": `{"status":"ignored","resolution":"r","note":"n"}`,
	"searchFiles":              `{"pattern":"x"}`, "searchVolumeFiles": `{"pattern":"x"}`, "setTeamQuota": `{"limit_value":1000}`, "moveFile": `{"source":"a","destination":"b"}`, "writeFile": "x", "uploadArchive": "x",
}

// queries are what operations insist on beside their path.
var queries = map[string]string{
	"finishOIDCLogin": "?code=x&state=x", "getVolumeSyncArchive": "?snapshot_id={volume snapshot}",
	"getVolumeSyncPayload": "?content_ref=sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", // x
}

// params are the kinds, or else the values, of the path's parameters in order.
func (o operation) params(t testing.TB) []param {
	t.Helper()
	var all []param
	for _, m := range parameter.FindAllStringSubmatch(o.path, -1) {
		i := slices.IndexFunc(kinds, func(k struct{ path, param, kind, value string }) bool {
			return k.param == m[1] && strings.HasPrefix(o.path, k.path)
		})
		if i < 0 {
			t.Fatalf("%s %s: nobody has said what {%s} is: see kinds", o.method, o.path, m[1])
		}
		all = append(all, param{m[0], kinds[i].kind, kinds[i].value})
	}
	return all
}

var parameter = regexp.MustCompile(`\{([a-z_]+)\}`)

type param struct{ in, kind, value string }

// example is a request that only its ids, which name gives, can make wrong.
func (o operation) example(t testing.TB, name func(kind string) string) request {
	t.Helper()
	path := o.path
	for _, p := range o.params(t) {
		if p.kind != "" {
			p.value = name(p.kind)
		}
		path = strings.Replace(path, p.in, p.value, 1)
	}
	if strings.Contains(path, "/files") && !strings.HasSuffix(path, "/move") {
		path += "?path=a"
	}
	named := func(s string) string {
		return placeholder.ReplaceAllStringFunc(s, func(p string) string { return name(strings.Trim(p, "{}")) })
	}
	r := request{method: o.method, path: path + named(queries[o.op.OperationID])}
	b, ok := bodies[o.op.OperationID]
	if o.op.RequestBody != nil && o.op.RequestBody.Value.Required && !ok {
		t.Fatalf("%s %s has no example: see bodies", o.method, o.path)
	}
	if ok {
		r.body = named(b)
	}
	if slices.Contains([]string{"attachContext", "connectSession", "watchFiles", "watchVolumeFiles"}, o.op.OperationID) {
		r.header = http.Header{
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
		}
	}
	return r
}

var placeholder = regexp.MustCompile(`\{[a-z ]+\}`)

func TestUnknownRoutesAndMethodsHaveTheEnvelope(t *testing.T) {
	t.Parallel()
	i := start(t)
	for _, path := range []string{"/", "/nope", "/api/v1/sandboxes/", "/api//v1/sandboxes", "/api/v1/../v1/sandboxes", "/api/v1/sandboxes/x/nope", "/%2e%2e/etc/passwd"} {
		a := i.send(request{method: "GET", path: path, outside: true})
		if a.status != 404 || a.code != "not_found" {
			t.Errorf("GET %s: %d %s", path, a.status, a.raw)
		}
	}
	a := i.send(request{method: "PATCH", path: "/api/v1/sandboxes"}).refused(405, "bad_request")
	if a.header.Get("Allow") != "GET, POST" {
		t.Errorf("Allow: %q", a.header.Get("Allow"))
	}
	i.send(request{method: "TRACE", path: "/healthz"}).refused(405, "bad_request")
}

func TestA08_Bodies(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	post := func(body any, header http.Header) answer {
		return i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: body, header: header})
	}
	post(io.LimitReader(spaces{}, 2<<20), nil).refused(413, "bad_request")
	for range 20 { // the answer must arrive before the connection goes
		post(strings.Repeat(" ", 8<<20), http.Header{"Connection": {"close"}}).refused(413, "bad_request")
		post(io.LimitReader(spaces{}, 8<<20), http.Header{"Connection": {"close"}}).refused(413, "bad_request")
	}
	post(`{"template":"default"}`, http.Header{"Content-Encoding": {"gzip"}}).refused(400, "bad_request")
	for _, body := range []string{
		"", "null", "[]", `{"template":"a","template":"b"}`, `{"template":"default","Template":"default"}`, `{"TEMPLATE":"default"}`, `{"template":"a"}{}`, `{"template":NaN}`, "{\"template\":\"\xff\"}",
		`{"template":` + strings.Repeat("[", 100_000), `{"template":"a","config":{"env_vars":{"A":"1","A":"2"}}}`, `{"template":{}}`, `{"template":"a","config":{"ttl":1e400}}`,
	} {
		post(body, nil).refused(400, "bad_request")
	}
	id := i.claim(key)
	a := i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/files?path=a", token: key, body: io.LimitReader(spaces{}, 101<<20)})
	a.refused(413, "file_too_large")
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// A22: a defect of ours is opaque to the caller and found by its id.
func TestA22_ErrorsAreOpaque(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	id := i.claim(key)
	exec(t, i.dsn, "ALTER TABLE sandboxes RENAME COLUMN config TO elsewhere")
	a := i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id, token: key}).refused(500, "internal_error")
	if a.msg != "internal error" || strings.Contains(string(a.raw), "config") {
		t.Errorf("%s", a.raw)
	}
	if req := a.header.Get("X-Request-Id"); !strings.Contains(string(a.raw), req) || !strings.Contains(i.log.String(), req) {
		t.Errorf("request %s is not in the answer and the log: %s", req, a.raw)
	}
}

// Raw requests, as no HTTP library sends them. What is no request to net/http
// never reaches us: its own answer is the one without the envelope.
func TestRawRequests(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	const outside = "text/plain; charset=utf-8"
	for name, c := range map[string]struct{ request, status string }{
		"two tokens":        {"GET /api/v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + "\r\nAuthorization: Bearer " + key + "\r\n\r\n", "401"},
		"basic auth":        {"GET /api/v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic " + key + "\r\n\r\n", "401"},
		"two hosts":         {"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", "400"},
		"absolute form":     {"GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "403"},
		"huge header":       {"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "431"},
		"lower-case scheme": {"GET /api/v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nauthorization: bearer " + key + "\r\n\r\n", "200"},
		"NUL in an id":      {"GET /api/v1/sandboxes/%00 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + "\r\n\r\n", "404"},
		"team header":       {"GET /api/v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-Team-ID: x\r\nAuthorization: Bearer " + key + "\r\n\r\n", "400"},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(conn, c.request) // the server may answer before it has read all
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !strings.HasPrefix(resp.Status, c.status) {
			t.Errorf("%s: %s, want %s", name, resp.Status, c.status)
		}
		enveloped := resp.Header.Get("Content-Type") == "application/json" && resp.Header.Get("X-Request-Id") != ""
		if ours := name != "two hosts" && name != "huge header"; ours != enveloped || !ours && (!resp.Close || resp.Header.Get("Content-Type") != outside) {
			t.Errorf("%s: %v", name, resp.Header)
		}
		conn.Close()
	}
}

// A10: attacks on HTTP/2 meet no HTTP/2: the server neither takes its preface nor
// an upgrade to it. (The node's socket speaks it, to us alone.)
func TestA10_NoHTTP2(t *testing.T) {
	t.Parallel()
	i := start(t)
	for name, request := range map[string]string{
		"preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"upgrade": "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(conn, request)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.ProtoMajor != 1 || resp.StatusCode == http.StatusSwitchingProtocols {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
		conn.Close()
	}
}

func TestHealthAndMetrics(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	i.claim(key)
	i.send(request{method: "GET", path: "/healthz"}).want(200, nil)
	i.send(request{method: "GET", path: "/readyz"}).want(200, nil)
	var meta struct {
		GatewayMode string `json:"gateway_mode"`
	}
	i.send(request{method: "GET", path: "/metadata"}).want(200, &meta)
	if meta.GatewayMode != "direct" {
		t.Errorf("%+v", meta)
	}
	metrics := string(i.send(request{method: "GET", path: "/metrics"}).want(200, nil).raw)
	for _, want := range []string{
		`s0_api_claim_seconds_count{kind="warm",outcome="ok"} 1`, `s0_api_claim_phase_seconds_count{phase="node"} 1`,
		`s0_api_claim_phase_seconds_count{phase="store"} 1`, "s0_api_synced_nodes 1", "s0_api_orphans 0", fmt.Sprintf("s0_api_request_seconds_count{route=%q,status=%q} 1", "POST /api/v1/sandboxes", "2xx"),
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("H05: no %s in the metrics", want)
		}
	}
	a := i.send(request{method: "GET", path: "/metrics", header: http.Header{"X-Forwarded-For": {"203.0.113.9"}}, outside: true})
	if a.status != 404 {
		t.Errorf("H05: metrics behind a proxy: %d", a.status)
	}
}
