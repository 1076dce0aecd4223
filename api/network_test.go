package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
)

// withNetwork has the node enforce policies, and netd's keys beside the server's own.
func withNetwork(c *api.Config, n *fakenode.Node) {
	n.NetworkPolicy = true
	file, err := sealed.Ensure(keyDir(c.KeyFile))
	if err != nil {
		panic(err)
	}
	c.CredentialKeyFile = file
}

func keyDir(keyFile string) string { return filepath.Join(filepath.Dir(keyFile), "credentials") }

// opened is what netd would find of a source in what the node was told.
func (i *instance) opened(team, sandbox, source string) (values map[string]string, version int64) {
	i.t.Helper()
	ring, err := sealed.ReadKeyring(keyDir(i.keyFile))
	if err != nil {
		i.t.Fatal(err)
	}
	for _, c := range nodeapi.CredentialsFromWire(i.node.Network(sandbox).GetCredentials()) {
		if c.Source != source {
			continue
		}
		s, err := ring.OpenSecret(sealed.Of{Team: team, Source: c.Source, Kind: c.Kind, Version: c.Version}, c.Blob)
		if err != nil {
			i.t.Fatalf("source %s, version %d: %v", source, c.Version, err)
		}
		return s.Values, c.Version
	}
	return nil, 0
}

// teamOf is the team of a key.
func (i *instance) teamOf(key string) string {
	i.t.Helper()
	var current struct {
		Key struct {
			Team string `json:"team_id"`
		} `json:"api_key"`
	}
	i.send(request{method: "GET", path: "/api-keys/current", token: key}).want(200, &current)
	return current.Key.Team
}

func (i *instance) makeSource(key, name, token string) {
	i.t.Helper()
	i.send(request{method: "POST", path: "/api/v1/credential-sources", token: key,
		body: fmt.Sprintf(`{"name":%q,"resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":%q}}}}`, name, token)}).want(201, nil)
}

func (i *instance) claimBody(key, body string) string {
	i.t.Helper()
	var made struct {
		ID string `json:"sandbox_id"`
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: body}).want(201, &made)
	return made.ID
}

func boundPolicy(source string) string {
	return `{"mode":"block-all","egress":{"allowedDomains":["api.example"],"credentialRules":[{"name":"r","credentialRef":"k","protocol":"https","domains":["api.example"]}]},
		"credentialBindings":[{"ref":"k","sourceRef":"` + source + `","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"Bearer {{ .token }}"}]}}}]}`
}

func TestNetworkPolicyOverTheAPI(t *testing.T) {
	t.Parallel()
	i := start(t, withNetwork)
	key := i.key("admin")
	id := i.claimBody(key, `{"template":"default"}`)
	path := "/api/v1/sandboxes/" + id + "/network"
	a := i.send(request{method: "GET", path: path, token: key})
	a.want(200, nil)
	if string(a.data) != `{"credentialBindings":[],"mode":"allow-all"}` {
		t.Errorf("the default policy: %s", a.data)
	}
	i.send(request{method: "PUT", path: path, token: key, body: string(a.data)}).want(200, nil)

	i.makeSource(key, "hub", "one")
	i.send(request{method: "PUT", path: path, token: key, body: boundPolicy("hub")}).want(200, nil)
	if told := i.node.Network(id); !strings.Contains(string(told.GetPolicy()), "api.example") {
		t.Errorf("the node was told %s", told.GetPolicy())
	}
	a = i.send(request{method: "GET", path: path, token: key})
	i.send(request{method: "PUT", path: path, token: key, body: string(a.data)}).want(200, nil)
	if b := i.send(request{method: "GET", path: path, token: key}); string(a.data) != string(b.data) {
		t.Errorf("putting what was got changes it:\n%s\n%s", a.data, b.data)
	}

	// Bindings that are absent stay, [] clears them; a rule without its binding is refused.
	i.send(request{method: "PUT", path: path, token: key, body: `{"mode":"block-all"}`}).want(200, nil)
	if got := i.bindings(key, path); got != 1 {
		t.Errorf("%d bindings after a policy without", got)
	}
	i.send(request{method: "PUT", path: path, token: key, body: strings.Split(boundPolicy("hub"), `,
		"credentialBindings"`)[0] + `,"credentialBindings":[]}`}).refused(400, "bad_request")
	i.send(request{method: "PUT", path: path, token: key, body: `{"mode":"block-all","credentialBindings":[]}`}).want(200, nil)
	if got := i.bindings(key, path); got != 0 {
		t.Errorf("%d bindings after they were cleared", got)
	}
	for body, field := range map[string]string{
		`{}`:                    "mode",
		`{"mode":"allow-some"}`: "mode",
		`{"mode":"block-all","egress":{"allowedCidrs":["1.2.3.4/99"]}}`:                                           "egress.allowedCidrs[0]",
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"x","failurePolicy":"fail-closed"}]}}`: "egress.credentialRules[0]",
		boundPolicy("nobody"): "credentialBindings[0].sourceRef",
	} {
		a := i.send(request{method: "PUT", path: path, token: key, body: body})
		if a.refused(400, "bad_request"); !strings.Contains(a.text(), field) {
			t.Errorf("%s: %s", body, a.text())
		}
	}
}

func (i *instance) bindings(key, path string) int {
	i.t.Helper()
	var p struct {
		Bindings []json.RawMessage `json:"credentialBindings"`
	}
	i.send(request{method: "GET", path: path, token: key}).want(200, &p)
	return len(p.Bindings)
}

// A claim's policy lies over its template's; both kinds of update change it, also
// while the sandbox is paused.
func TestNetworkPolicyOfClaimsAndTemplates(t *testing.T) {
	t.Parallel()
	i := start(t, withNetwork)
	key := i.key("admin")
	i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: `{"template_id":"walled","spec":{"mainContainer":{"image":"image","resources":{"memory":"1Gi"}},
		"network":{"mode":"block-all","egress":{"trafficRules":[{"name":"pypi","action":"allow","domains":["pypi.example"]}]}}}}`}).want(201, nil)
	i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: `{"template_id":"broken","spec":{"mainContainer":{"image":"image","resources":{"memory":"1Gi"}},
		"network":{"mode":"block-all","egress":{"deniedCidrs":["8.8.8.8/32"]}}}}`}).refused(400, "bad_request")
	for body, want := range map[string][]string{
		`{"template":"walled"}`: {"block-all", "pypi.example"},
		`{"template":"walled","config":{"network":{"mode":"block-all","egress":{"trafficRules":[{"name":"git","action":"allow","domains":["git.example"]}]}}}}`: {"pypi.example", "git.example"},
		`{"template":"walled","config":{"network":{"mode":"allow-all"}}}`:                                                                                       {"allow-all", "pypi.example"},
	} {
		id := i.claimBody(key, body)
		a := i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id + "/network", token: key})
		for _, text := range want {
			if !strings.Contains(string(a.data), text) || !strings.Contains(string(i.node.Network(id).GetPolicy()), text) {
				t.Errorf("%s: %s; the node was told %s", body, a.data, i.node.Network(id).GetPolicy())
			}
		}
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"walled","config":{"network":{"mode":"allow-all","egress":{"deniedPorts":[{"port":25}]}}}}`}).
		refused(400, "bad_request") // beside the template's rules

	id := i.claimBody(key, `{"template":"default"}`)
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/pause", token: key}).want(200, nil)
	i.send(request{method: "PUT", path: "/api/v1/sandboxes/" + id, token: key, body: `{"config":{"network":{"mode":"block-all"}}}`}).want(200, nil)
	if told := i.node.Network(id); !strings.Contains(string(told.GetPolicy()), "block-all") {
		t.Errorf("the paused sandbox's node was told %s", told.GetPolicy())
	}
}

// R5: a policy that nothing would enforce is never accepted.
func TestE22_NoPolicyWhereNothingEnforcesIt(t *testing.T) {
	t.Parallel()
	i := start(t, func(c *api.Config, n *fakenode.Node) { withNetwork(c, n); n.NetworkPolicy = false })
	key := i.key("admin")
	id := i.claimBody(key, `{"template":"default"}`)
	const unavailable = "network policy is unavailable in this deployment"
	for _, r := range []request{
		{method: "PUT", path: "/api/v1/sandboxes/" + id + "/network", body: `{"mode":"block-all"}`},
		{method: "PUT", path: "/api/v1/sandboxes/" + id, body: `{"config":{"network":{"mode":"block-all"}}}`},
		{method: "POST", path: "/api/v1/sandboxes", body: `{"template":"default","config":{"network":{"mode":"block-all"}}}`},
	} {
		r.token = key
		if a := i.send(r); a.status != 503 || a.text() != unavailable {
			t.Errorf("%s %s: %d %s", r.method, r.path, a.status, a.raw)
		}
	}
	i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id + "/network", token: key}).want(200, nil)
}

func TestF11_CredentialSourcesAreWriteOnly(t *testing.T) {
	t.Parallel()
	const canary = "s0-canary-5ecret"
	i := start(t, withNetwork)
	key := i.key("developer")
	team := i.teamOf(key)
	sources := "/api/v1/credential-sources"
	if a := i.send(request{method: "GET", path: sources, token: key}); string(a.data) != "[]" {
		t.Errorf("no sources are %s", a.data)
	}
	i.makeSource(key, "hub", canary)
	i.send(request{method: "POST", path: sources, token: key, body: `{"name":"hub","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"x"}}}}`}).refused(409, "conflict")
	id := i.claimBody(key, `{"template":"default","config":{"network":`+boundPolicy("hub")+`}}`)
	if values, version := i.opened(team, id, "hub"); values["token"] != canary || version != 1 {
		t.Errorf("netd finds version %d", version)
	}
	i.send(request{method: "DELETE", path: sources + "/hub", token: key}).refused(409, "conflict")
	var got struct {
		Version int64 `json:"currentVersion"`
	}
	i.send(request{method: "PUT", path: sources + "/hub", token: key, body: `{"resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"` + canary + `-2"}}}}`}).want(200, &got)
	if got.Version != 2 {
		t.Errorf("version %d", got.Version)
	}
	for body, message := range map[string]string{
		`{"resolverKind":"static_username_password","spec":{"staticUsernamePassword":{"username":"u","password":"` + canary + `"}}}`: "resolverKind",
		`{"name":"other","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"` + canary + `"}}}}`:            "name",
		`{"resolverKind":"static_headers","spec":{"staticUsernamePassword":{"username":"u","password":"` + canary + `"}}}`:           "spec",
		`{"resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"` + canary + `\n"}}}}`:                         "staticHeaders",
		`{"resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"` + canary + ` x":"v"}}}}`:                             "staticHeaders",
		`{"resolverKind":"static_ssh_private_key","spec":{"staticSSHPrivateKey":{"privateKeyPem":"` + canary + `"}}}`:                "privateKeyPem",
	} {
		a := i.send(request{method: "PUT", path: sources + "/hub", token: key, body: body})
		if a.refused(400, "bad_request"); !strings.Contains(a.text(), message) || strings.Contains(string(a.raw), canary) {
			t.Errorf("%s: %s", body, a.raw)
		}
	}
	for _, path := range []string{sources, sources + "/hub", "/api/v1/sandboxes/" + id, "/api/v1/sandboxes/" + id + "/network", "/api/v1/audit"} {
		if a := i.send(request{method: "GET", path: path, token: i.key("admin")}); a.status != 200 || strings.Contains(string(a.raw), canary) {
			t.Errorf("GET %s: %d %s", path, a.status, a.raw)
		}
	}
	// F10: neither logs nor the database have it.
	if strings.Contains(i.log.String(), canary) {
		t.Error("the log has the secret")
	}
	if dump := i.dump(); strings.Contains(dump, canary) || !strings.Contains(dump, "credential_sources") {
		t.Error("F10: the database's dump has the secret, or is none")
	}
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
	fakenode.Eventually(t, "the binding is gone with its sandbox", func() bool {
		return i.send(request{method: "DELETE", path: sources + "/hub", token: key}).status == 200
	})
	i.send(request{method: "GET", path: sources + "/hub", token: key}).refused(404, "not_found")
}

// dump is everything that the database has, as text; bytea as its own bytes, too.
func (i *instance) dump() string {
	i.t.Helper()
	pgDump := "/usr/lib/postgresql/15/bin/pg_dump"
	if _, err := os.Stat(pgDump); err != nil {
		if pgDump, err = osexec.LookPath("pg_dump"); err != nil {
			i.t.Fatal(err)
		}
	}
	out, err := osexec.Command(pgDump, i.dsn).CombinedOutput()
	if err != nil {
		i.t.Fatalf("pg_dump: %v: %s", err, out)
	}
	conn := connect(i.t, i.dsn)
	defer conn.Close(context.Background())
	rows, err := conn.Query(context.Background(), "SELECT sealed FROM credential_sources")
	if err != nil {
		i.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			i.t.Fatal(err)
		}
		out = append(out, b...)
	}
	return string(out)
}

// F12: a new version reaches the nodes of all sandboxes that are bound, also when
// the node was away at first, and paused ones.
func TestF12_RotationReachesNodes(t *testing.T) {
	t.Parallel()
	i := start(t, withNetwork)
	key := i.key("admin")
	team := i.teamOf(key)
	i.makeSource(key, "hub", "one")
	var ids []string
	for range 3 {
		ids = append(ids, i.claimBody(key, `{"template":"default","config":{"network":`+boundPolicy("hub")+`}}`))
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + ids[2] + "/pause", token: key}).want(200, nil)
	for version, token := range map[int64]string{2: "two"} {
		i.send(request{method: "PUT", path: "/api/v1/credential-sources/hub", token: key, body: `{"name":"hub","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"` + token + `"}}}}`}).want(200, nil)
		for _, id := range ids {
			fakenode.Eventually(t, "the node of "+id+" has the new version", func() bool {
				values, got := i.opened(team, id, "hub")
				return got == version && values["token"] == token
			})
			if p, err := policy.Parse(i.node.Network(id).GetPolicy()); err != nil || p.Mode != policy.BlockAll {
				t.Errorf("the policy of %s was changed with it: %v", id, err)
			}
		}
	}
}

// text is what a refusal says.
func (a answer) text() string {
	var e struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(a.raw, &e); err != nil {
		a.t.Fatalf("%s: %v", a.raw, err)
	}
	return e.Error.Message
}
