package compat

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/internal/s0test"
)

// patience with one call, a pause of a whole sandbox among them.
const patience = 2 * time.Minute

// caller speaks as clients that exist do, with nothing of ours between.
type caller struct {
	*testing.T
	server, token string
}

// answer is one answer. Data is the envelope's.
type answer struct {
	status int
	header http.Header
	data   json.RawMessage
	code   string // of an error
}

// send makes a call; a header of Content-Type alone goes without a body.
func (c caller) send(method, path, body string, header ...string) answer {
	c.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(c.Context(), method, c.server+path, reader)
	if err != nil {
		c.Fatal(err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Client{Timeout: patience}).Do(req)
	if err != nil {
		c.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		c.Fatal(err)
	}
	var envelope struct {
		Data  json.RawMessage
		Error struct{ Code string }
	}
	if err := json.Unmarshal(raw, &envelope); err != nil {
		envelope.Data = raw // a file, or one of the routes without an envelope
	}
	return answer{status: resp.StatusCode, header: resp.Header, data: envelope.Data, code: envelope.Error.Code}
}

// must makes a call that has to succeed with a status, and decodes its data.
func (c caller) must(want int, into any, method, path, body string, header ...string) {
	c.Helper()
	a := c.send(method, path, body, header...)
	if a.status != want {
		c.Fatalf("%s %s: %d %s %s, want %d", method, path, a.status, a.code, a.data, want)
	}
	if into == nil {
		return
	}
	if err := json.Unmarshal(a.data, into); err != nil {
		c.Fatalf("%s %s: %v in %s", method, path, err, a.data)
	}
}

// signedIn is the first user, as a person.
func (c caller) signedIn() caller {
	c.Helper()
	var in struct {
		AccessToken string `json:"access_token"`
	}
	c.must(200, &in, "POST", "/auth/login", fmt.Sprintf(`{"email":"admin@example.com","password":%q}`, s0test.AdminPassword))
	c.token = in.AccessToken
	return c
}

type named struct {
	ID        string `json:"id"`
	SandboxID string `json:"sandbox_id"`
	PodName   string `json:"pod_name"`
	Status    string `json:"status"`
}

func (c caller) claim(body string) (path string, claimed named) {
	c.Helper()
	c.must(http.StatusCreated, &claimed, "POST", "/api/v1/sandboxes", body)
	path = "/api/v1/sandboxes/" + claimed.SandboxID
	c.Cleanup(func() {
		req, _ := http.NewRequest("DELETE", c.server+path, nil)
		req.Header.Set("Authorization", "Bearer "+c.token)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	})
	return path, claimed
}

// testHabits is the contract's list of what unmodified clients trip over (rest.md, 2.5), by
// its numbers. Those that are missing here need more than a call or two: 8 and the volumes'
// part of 3 and 11 are with the volumes, 14 and 15 in package e2e as well, 18 in package api
// (TestRequestTimeout), and 4 and 19 are what the checker between holds every answer of
// this package against.
func testHabits(t *testing.T, s *s0test.Stack, server string) {
	base := caller{T: t, server: server, token: s.Key()}
	path, claimed := base.claim(`{"template":"default"}`)
	for _, row := range []struct {
		name string
		test func(c caller)
	}{
		{"1 and 2: a first user with one team, and no X-Team-ID", func(c caller) { firstUser(c) }},
		{"3: bare arrays, never null", func(c caller) { bareArrays(c) }},
		{"5: a claim is listed at once", func(c caller) { listedAtOnce(c) }},
		{"9: a listed template makes another", func(c caller) { templateFromList(c) }},
		{"10: a network policy is put as it was got", func(c caller) { networkAsGot(c, path) }},
		{"11: calls without a body", func(c caller) { withoutBody(c, path) }},
		{"12: a directory with an empty body, a deletion by query", func(c caller) { emptyBodies(c, path) }},
		{"13: an upgrade with two Connection headers", func(c caller) { twoConnections(c, path) }},
		{"14 and 15: a WebSocket after the end", func(c caller) { afterTheEnd(c, path) }},
		{"17: code without its last newline", func(c caller) { withoutNewline(c, path) }},
		{"20: Retry-After is a number of seconds", func(c caller) { retryAfter(c) }},
		{"21: a source without its name, bindings that stay", func(c caller) { absentKeeps(c, path) }},
		{"22: empty clears, absent keeps", func(c caller) { emptyClears(c, path) }},
		{"25: relative paths are below /workspace", func(c caller) { relativePaths(c, path) }},
		{"26: GET /metadata", func(c caller) { metadata(c) }},
		{"27: quotas answer in the dimension asked for", func(c caller) { dimensions(c) }},
		{"28: metrics in both places", func(c caller) { bothMetrics(c, path) }},
		{"29: a key's prefix", func(c caller) { keyPrefix(c) }},
		{"30: a file of 100 MiB, and not of more", func(c caller) { largestFile(c, path) }},
		// These end the sandbox's life, so they are last.
		{"24: a snapshot and a fork leave no trace", func(c caller) { sameSandbox(c, path, claimed) }},
		{"6, 7, 16 and 23: a pause, what it keeps, and changes meanwhile", func(c caller) { throughAPause(c, path) }},
	} {
		t.Run(row.name, func(t *testing.T) { row.test(caller{T: t, server: server, token: base.token}) })
	}
}

func firstUser(c caller) {
	as := c.signedIn()
	var teams struct{ Teams []named }
	as.must(200, &teams, "GET", "/teams", "")
	if len(teams.Teams) != 1 {
		c.Errorf("%d teams", len(teams.Teams))
	}
	as.must(200, nil, "GET", "/api/v1/sandboxes", "")
}

func bareArrays(c caller) {
	for _, path := range []string{"/api/v1/sandboxvolumes", "/api/v1/credential-sources"} {
		var all []json.RawMessage
		if a := c.send("GET", path, ""); a.status != 200 || json.Unmarshal(a.data, &all) != nil || all == nil {
			c.Errorf("%s: %d %s", path, a.status, a.data)
		}
	}
}

func listedAtOnce(c caller) {
	_, claimed := c.claim(`{"template":"default"}`)
	var list struct{ Sandboxes []named }
	c.must(200, &list, "GET", "/api/v1/sandboxes?status=running&limit=200", "")
	for _, sb := range list.Sandboxes {
		if sb.ID == claimed.SandboxID {
			return
		}
	}
	c.Errorf("%s is not among %+v", claimed.SandboxID, list.Sandboxes)
}

func templateFromList(c caller) {
	var list struct {
		Templates []struct {
			TemplateID string `json:"template_id"`
			Spec       json.RawMessage
		}
	}
	c.must(200, &list, "GET", "/api/v1/templates", "")
	for _, tpl := range list.Templates {
		if tpl.TemplateID == "default" {
			c.must(201, nil, "POST", "/api/v1/templates", fmt.Sprintf(`{"template_id":"habits","spec":%s}`, tpl.Spec))
			c.must(200, nil, "DELETE", "/api/v1/templates/habits", "")
			return
		}
	}
	c.Fatal("there is no template default")
}

func networkAsGot(c caller, path string) {
	got := c.send("GET", path+"/network", "")
	var policy struct{ Mode string }
	if err := json.Unmarshal(got.data, &policy); err != nil || policy.Mode != "allow-all" {
		c.Errorf("%d %s", got.status, got.data)
	}
	c.must(200, nil, "PUT", path+"/network", string(got.data))
	if again := c.send("GET", path+"/network", ""); !bytes.Equal(again.data, got.data) {
		c.Errorf("%s became %s", got.data, again.data)
	}
}

func withoutBody(c caller, path string) {
	for name, how := range map[string]struct{ body, contentType string }{
		"nothing": {}, "an empty object": {"{}", "application/json"}, "a content type alone": {"", "application/json"},
	} {
		header := []string{}
		if how.contentType != "" {
			header = []string{"Content-Type", how.contentType}
		}
		var snapshot, forked struct {
			ID      string
			Sandbox named
		}
		c.must(200, nil, "POST", path+"/refresh", how.body, header...)
		c.must(201, &snapshot, "POST", path+"/snapshots", how.body, header...)
		c.must(200, nil, "DELETE", "/api/v1/sandbox-rootfs-snapshots/"+snapshot.ID, "")
		c.must(201, &forked, "POST", path+"/fork", how.body, header...)
		if forked.Sandbox.Status != "paused" {
			c.Errorf("%s: a fork is %s", name, forked.Sandbox.Status)
		}
		c.must(200, nil, "DELETE", "/api/v1/sandboxes/"+forked.Sandbox.ID, "")
	}
}

func emptyBodies(c caller, path string) {
	c.must(201, nil, "POST", path+"/files?path=made/deep&mkdir=true&recursive=true", "", "Content-Type", "application/octet-stream")
	c.must(200, nil, "DELETE", path+"/files?path=made", "")
	c.must(200, nil, "DELETE", path+"/files?path=made", "") // also when it is missing
}

// twoConnections upgrades as a client does that copies all of its headers.
func twoConnections(c caller, path string) {
	u, _ := url.Parse(c.server)
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		c.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET %s/contexts/ctx-00000000/ws HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: keep-alive\r\nAccept: */*\r\nUser-Agent: x\r\n"+
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n", path, u.Host, c.token)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		c.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		c.Errorf("%s", resp.Status)
	}
}

func afterTheEnd(c caller, path string) {
	var done struct {
		ID, State string
		ExitCode  *int `json:"exit_code"`
	}
	c.must(201, &done, "POST", path+"/contexts", `{"type":"cmd","cmd":{"command":["sh","-c","echo out; echo err >&2; exit 3"]},"wait_until_done":true}`)
	if done.ExitCode == nil || *done.ExitCode != 3 {
		c.Fatalf("%+v", done)
	}
	conn, _, err := websocket.DefaultDialer.DialContext(c.Context(), "ws"+strings.TrimPrefix(c.server, "http")+path+"/contexts/"+done.ID+"/ws",
		http.Header{"Authorization": {"Bearer " + c.token}})
	if err != nil {
		c.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	said := map[string]string{}
	for {
		var frame struct {
			Type, Source, Data string
			RequestID          string `json:"request_id"`
			ExitCode           *int   `json:"exit_code"`
		}
		if err := conn.ReadJSON(&frame); err != nil {
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				c.Error(err)
			}
			break
		}
		said[frame.Source] += frame.Data
		if frame.Type == "done" && (frame.RequestID != "" || frame.ExitCode == nil || *frame.ExitCode != 3) {
			c.Errorf("done: %+v", frame)
		}
	}
	if said["stdout"] != "out\n" || said["stderr"] != "err\n" {
		c.Errorf("%q", said)
	}
}

func withoutNewline(c caller, path string) {
	var repl named
	c.must(201, &repl, "POST", path+"/contexts", `{"type":"repl","repl":{"alias":"python"}}`)
	var ran struct {
		OutputRaw string `json:"output_raw"`
	}
	c.must(200, &ran, "POST", path+"/contexts/"+repl.ID+"/exec", `{"data":"6*7"}`)
	if !strings.Contains(ran.OutputRaw, "42") || strings.Contains(ran.OutputRaw, "_S0_> ") {
		c.Errorf("%q", ran.OutputRaw)
	}
	c.must(200, nil, "DELETE", path+"/contexts/"+repl.ID, "")
}

// retryAfter has a quota refuse.
func retryAfter(c caller) {
	as := c.signedIn()
	var teams struct{ Teams []named }
	as.must(200, &teams, "GET", "/teams", "")
	limit := "/internal/v1/teams/" + teams.Teams[0].ID + "/quotas/active_sandboxes"
	as.must(200, nil, "PUT", limit, `{"limit_value":0}`)
	defer as.must(200, nil, "DELETE", limit, "")
	refused := c.send("POST", "/api/v1/sandboxes", `{"template":"default"}`)
	if seconds, err := strconv.Atoi(refused.header.Get("Retry-After")); refused.status != 429 || refused.code != "quota_exceeded" || err != nil || seconds < 1 {
		c.Errorf("%d %s, Retry-After: %q", refused.status, refused.code, refused.header.Get("Retry-After"))
	}
}

func absentKeeps(c caller, path string) {
	source := `"resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"secret-of-the-habits"}}}`
	c.must(201, nil, "POST", "/api/v1/credential-sources", `{"name":"habits",`+source+`}`)
	c.must(200, nil, "PUT", "/api/v1/credential-sources/habits", `{`+source+`}`)
	bound := `{"mode":"allow-all","credentialBindings":[{"ref":"b","sourceRef":"habits","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"X-Token","valueTemplate":"{{ .token }}"}]}}}]}`
	c.must(200, nil, "PUT", path+"/network", bound)
	bindings := func() int {
		var policy struct{ CredentialBindings []json.RawMessage }
		c.must(200, &policy, "GET", path+"/network", "")
		return len(policy.CredentialBindings)
	}
	c.must(200, nil, "PUT", path+"/network", `{"mode":"allow-all"}`)
	if n := bindings(); n != 1 {
		c.Errorf("%d bindings where they were absent", n)
	}
	c.must(200, nil, "PUT", path+"/network", `{"mode":"allow-all","credentialBindings":[]}`)
	if n := bindings(); n != 0 {
		c.Errorf("%d bindings where there were to be none", n)
	}
	c.must(200, nil, "DELETE", "/api/v1/credential-sources/habits", "")
}

func emptyClears(c caller, path string) {
	put := func(body string) (variable string, ends bool) {
		c.must(200, nil, "PUT", path, body)
		var sb struct {
			ExpiresAt time.Time `json:"expires_at"`
		}
		c.must(200, &sb, "GET", path, "")
		var ran struct{ Stdout string }
		c.must(201, &ran, "POST", path+"/contexts", `{"type":"cmd","cmd":{"command":["sh","-c","echo $HABIT"]},"wait_until_done":true}`)
		return strings.TrimSpace(ran.Stdout), !sb.ExpiresAt.IsZero()
	}
	for _, step := range []struct {
		body, variable string
		ends           bool
	}{
		{`{"config":{"env_vars":{"HABIT":"1"},"ttl":3600}}`, "1", true},
		{`{"config":{"ttl":0}}`, "1", false},
		{`{"config":{"env_vars":{}}}`, "", false},
	} {
		if variable, ends := put(step.body); variable != step.variable || ends != step.ends {
			c.Errorf("%s: %q, ends: %v", step.body, variable, ends)
		}
	}
}

func relativePaths(c caller, path string) {
	c.must(200, nil, "POST", path+"/files?path=here.txt", "x", "Content-Type", "application/octet-stream")
	if a := c.send("GET", path+"/files?path=/workspace/here.txt", ""); a.status != 200 || string(a.data) != "x" {
		c.Errorf("%d %q", a.status, a.data)
	}
}

func metadata(c caller) {
	c.token = ""
	var said struct {
		GatewayMode string `json:"gateway_mode"`
		Service     string
	}
	c.must(200, &said, "GET", "/metadata", "")
	if said.GatewayMode != "direct" || said.Service == "" {
		c.Errorf("%+v", said)
	}
}

func dimensions(c caller) {
	for _, name := range []string{"egress", "network_egress_bytes", "ingress", "network_ingress_bytes", "api_requests"} {
		var quota struct{ Dimension, Kind, Source string }
		c.must(200, &quota, "GET", "/api/v1/quotas/"+name, "")
		if quota.Dimension != name || quota.Kind == "" || quota.Source == "" {
			c.Errorf("%s: %+v", name, quota)
		}
	}
}

func bothMetrics(c caller, path string) {
	for _, at := range []string{"/metrics", "/observability/metrics"} {
		c.must(200, nil, "GET", path+at, "")
	}
}

func keyPrefix(c caller) {
	c = c.signedIn()
	var made struct{ ID, Key string }
	c.must(201, &made, "POST", "/api-keys", `{"name":"habits","roles":["viewer"],"expires_in":"30d"}`)
	if !regexp.MustCompile(`^s0_[a-z0-9-]+_[0-9a-f]{48}$`).MatchString(made.Key) {
		c.Errorf("a key like %.8q…", made.Key)
	}
	c.must(200, nil, "DELETE", "/api-keys/"+made.ID, "")
}

func largestFile(c caller, path string) {
	const most = 100 << 20
	body := strings.Repeat("0", most)
	c.must(200, nil, "POST", path+"/files?path=large", body, "Content-Type", "application/octet-stream")
	if a := c.send("POST", path+"/files?path=larger", body+"0", "Content-Type", "application/octet-stream", "Expect", "100-continue"); a.status != 413 || a.code != "file_too_large" {
		c.Errorf("%d %s", a.status, a.code)
	}
	c.must(200, nil, "DELETE", path+"/files?path=large", "")
}

func sameSandbox(c caller, path string, claimed named) {
	var snapshot, forked struct {
		ID      string
		Sandbox named
	}
	c.must(201, &snapshot, "POST", path+"/snapshots", `{"name":"s"}`)
	c.must(201, &forked, "POST", path+"/fork", "")
	c.must(200, nil, "DELETE", "/api/v1/sandboxes/"+forked.Sandbox.ID, "")
	c.must(200, nil, "DELETE", "/api/v1/sandbox-rootfs-snapshots/"+snapshot.ID, "")
	var now named
	c.must(200, &now, "GET", path, "")
	if now.PodName != claimed.PodName || now.Status != "running" {
		c.Errorf("%+v became %+v", claimed, now)
	}
}

func throughAPause(c caller, path string) {
	var repl named
	c.must(201, &repl, "POST", path+"/contexts", `{"type":"repl","repl":{"alias":"python"}}`)
	exec := func(code string) string {
		var ran struct {
			OutputRaw string `json:"output_raw"`
		}
		c.must(200, &ran, "POST", path+"/contexts/"+repl.ID+"/exec", fmt.Sprintf(`{"data":%s}`, strconv.Quote(code)))
		return ran.OutputRaw
	}
	exec("kept = 41; n = open('/tmp/kept', 'w').write('durable')")
	var paused struct {
		Paused bool
		Status string
	}
	c.must(200, &paused, "POST", path+"/pause", "")
	if !paused.Paused || paused.Status != "paused" {
		c.Errorf("%+v", paused)
	}
	c.must(200, nil, "PUT", path, `{"config":{"ttl":0}}`)
	c.must(200, nil, "POST", path+"/resume", "")
	if out := exec("print(kept + 1, open('/tmp/kept').read())"); !strings.Contains(out, "42 durable") {
		c.Errorf("%q", out)
	}
}
