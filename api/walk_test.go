package api_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// The walk goes through every operation of the contract as every kind of caller.
// What it expects comes from the contract's x-caller and x-permission and from the
// table of roles below; an operation about which those say nothing fails it.

var roles = []string{"admin", "developer", "builder", "viewer"}

// rolePermissions is the contract's table, in its own words.
var rolePermissions = map[string][]string{
	"developer": {
		"sandbox:create", "sandbox:read", "sandbox:write", "sandbox:delete", "template:read", "registry:write",
		"credentialsource:read", "credentialsource:write", "credentialsource:delete",
		"sandboxvolume:create", "sandboxvolume:read", "sandboxvolume:write", "sandboxvolume:delete",
		"sandboxvolumefile:read", "sandboxvolumefile:write", "quota:read",
	},
	"builder": {"template:read", "registry:write"},
	"viewer":  {"sandbox:read", "template:read", "credentialsource:read", "sandboxvolume:read", "sandboxvolumefile:read", "quota:read"},
}

// adminsOnly are the permissions that no other role has.
var adminsOnly = []string{"template:create", "template:write", "template:delete", "apikey:manage", "team:manage", "audit:read"}

// grants reports whether a role has a permission, which must be one of the table's.
func grants(t testing.TB, role, permission string) bool {
	t.Helper()
	if permission == "" {
		return true
	}
	known := slices.Contains(adminsOnly, permission)
	for _, list := range rolePermissions {
		known = known || slices.Contains(list, permission)
	}
	if !known {
		t.Errorf("nobody has said which roles have %s", permission)
	}
	return role == "admin" || slices.Contains(rolePermissions[role], permission)
}

// caller is who sends a request, and what is so about him.
type caller struct {
	name  string
	token string
	team  string // X-Team-ID

	holds   bool   // the token does
	key     bool   // it is an API key
	role    string // in the walked team; "": he is not in it
	foreign bool   // a key of another team
	owner   bool   // of the walked team
	system  bool   // admin of the system
	all     bool   // platform key
}

// expect is what the contract says of a call that names things of the walked team:
// 401, 403 or 404, and 0 when it is let through.
func (c caller) expect(t testing.TB, o operation) int {
	t.Helper()
	who, _ := o.op.Extensions["x-caller"].(string)
	perm, _ := o.op.Extensions["x-permission"].(string)
	people := []string{"user", "user-in-team", "member", "member-or-self", "owner"}
	switch {
	case o.public():
		return 0
	case !c.holds, c.key && slices.Contains(people, who), !c.key && who == "api-key":
		return 401
	}
	in := c.role != "" || c.all
	switch who {
	case "user":
		return unless(in || !choosesTeam[o.op.OperationID], 403)
	case "system-admin":
		return unless(c.system || c.all, 403)
	case "member", "member-or-self":
		if !in {
			return 404
		}
		return unless(grants(t, c.role, perm), 403)
	case "owner":
		if !in {
			return 404
		}
		return unless(c.owner, 403)
	case "", "user-in-team", "api-key":
		if c.foreign {
			return 401
		}
		return unless(in && (c.all || grants(t, c.role, perm)), 403)
	}
	t.Errorf("%s %s is for callers %q, of whom nobody has said what to expect", o.method, o.path, who)
	return 0
}

// choosesTeam are the operations of people that take a team in other ways too.
var choosesTeam = map[string]bool{"getActiveTenant": true}

func unless(ok bool, status int) int {
	if ok {
		return 0
	}
	return status
}

// callers is everybody who may turn up, with ids of the walked team in hand.
func (w *walk) callers() []caller {
	all := []caller{
		{name: "nobody"}, {name: "garbage", token: "abc"}, {name: "unknown key", token: "s0_local_" + strings.Repeat("0", 48)},
		{name: "alg none", token: "eyJhbGciOiJub25lIn0.e30."},
		{name: "platform key", token: w.platform, team: w.ours.id, holds: true, key: true, all: true},
	}
	system := w.system
	system.team = w.ours.id
	stranger := w.theirs.people["owner"]
	stranger.name, stranger.team, stranger.role, stranger.owner = "stranger", w.ours.id, "", false
	strangerKey := w.theirs.keys["admin"]
	strangerKey.name, strangerKey.team, strangerKey.role, strangerKey.foreign = "stranger's key", w.ours.id, "", true
	all = append(all, system, stranger, strangerKey, w.ours.people["owner"])
	for _, role := range roles {
		all = append(all, w.ours.people[role], w.ours.keys[role])
	}
	return all
}

// probe sends a request. What is answered by a stream it leaves unread.
func (w *walk) probe(r request) answer {
	w.t.Helper()
	return w.read(r, func(io.Reader) ([]byte, error) { return nil, nil })
}

// refusal is probe for a request that names what is not there. A WebSocket is
// closed then, and the first frame says why.
func (w *walk) refusal(r request) answer {
	w.t.Helper()
	return w.read(r, func(socket io.Reader) ([]byte, error) {
		frame := make([]byte, 2, 2+125)
		if _, err := io.ReadFull(socket, frame); err != nil {
			return nil, err
		}
		if frame[0] != closeFrame || frame[1] > 125 {
			return nil, fmt.Errorf("frame % x is no close", frame)
		}
		_, err := io.ReadFull(socket, frame[2:2+frame[1]])
		return frame[:2+frame[1]], err
	})
}

const closeFrame = 0x88

func (w *walk) read(r request, socket func(io.Reader) ([]byte, error)) answer {
	w.t.Helper()
	resp, err := checked.RoundTrip(w.request(r))
	if err != nil {
		w.t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	defer resp.Body.Close()
	a := answer{t: w.t, status: resp.StatusCode, header: resp.Header}
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		a.raw, err = socket(resp.Body)
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"):
		return a
	default:
		a.raw, err = io.ReadAll(resp.Body)
	}
	if err != nil {
		w.t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	a.open(r)
	return a
}

func (o operation) String() string { return o.method + " " + o.path }

func (o operation) takesJSON() bool {
	return o.op.RequestBody != nil && o.op.RequestBody.Value.Content["application/json"] != nil
}

// Every route, for every role: who may not is told so whatever he names, and who
// may gets past the guard. The bodies are wrong, so that nothing changes.
func TestA01_RolesOnEveryRoute(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	w.ours.name("sandbox") // which keeps the team from being deleted
	missing := unknown(t)
	callers := w.callers()
	for _, o := range operations(t) {
		r := o.example(t, func(kind string) string {
			if kind == "team" {
				return w.ours.id
			}
			return missing(kind)
		})
		if o.takesJSON() {
			r.body = `{"no_field_of_ours":1}`
		}
		for _, c := range callers {
			want, a := c.expect(t, o), w.probe(c.sends(r))
			refused := a.status == 401 && a.code == "unauthorized" || a.status == 403 && a.code == "forbidden"
			if o.public() {
				refused = a.msg == "authentication required"
			}
			if want == 0 && refused || want != 0 && a.status != want {
				t.Errorf("%s as %s: %d %s, want %d", o, c.name, a.status, a.raw, want)
			}
		}
	}
	w.checkLog()
}

// A01: what is another tenant's is answered exactly like what does not exist, at
// every place of every path; and to its own tenant it is there.
func TestA01_ForeignIDsAreUnknownIDs(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	missing := unknown(t)
	tested := 0
	for _, o := range operations(t) {
		if who := o.op.Extensions["x-caller"]; o.public() || who == "system-admin" { // to him nothing is foreign
			continue
		}
		params := o.params(t)
		for at, p := range params {
			if p.kind == "" {
				continue
			}
			foreign := w.ask(w.ours, o, at, w.theirs.name)
			unknown := w.ask(w.ours, o, at, missing)
			closed := foreign.status == http.StatusSwitchingProtocols
			if foreign.status != 404 && !closed || foreign.status != unknown.status || string(foreign.raw) != string(unknown.raw) {
				t.Errorf("%s, %s: foreign %d %s, unknown %d %s", o, p.in, foreign.status, foreign.raw, unknown.status, unknown.raw)
			}
			tested++
		}
		if len(params) > 0 && o.method == http.MethodGet { // it is there, and has survived
			if a := w.ask(w.theirs, o, len(params), nil); a.status == 404 && a.code == "not_found" {
				t.Errorf("%s: not to be found by who has it: %s", o, a.raw)
			}
		}
	}
	if tested < 60 {
		t.Errorf("only %d places in paths were tested", tested)
	}
	w.checkLog()
}

// ask calls an operation as a tenant's owner. From one parameter on its things
// have the names that `others` gives.
func (w *walk) ask(n *tenant, o operation, from int, others func(string) string) answer {
	w.t.Helper()
	params := o.params(w.t)
	var foreign []string
	for _, p := range params[from:] {
		foreign = append(foreign, p.kind)
	}
	r := o.example(w.t, func(kind string) string {
		if slices.Contains(foreign, kind) {
			return others(kind)
		}
		return n.name(kind)
	})
	by := n.people["owner"]
	if o.op.Extensions["x-caller"] == "api-key" {
		by = n.keys["admin"]
	}
	if from < len(params) {
		return w.refusal(by.sends(r))
	}
	a := w.probe(by.sends(r))
	n.ended(o, params)
	return a
}

// mayFail are the operations whose examples are refused for a reason of their own.
var mayFail = map[string]int{"changePassword": 403, "createRegistryCredentials": 503, "createTemplateFromSandbox": 503, "removeExposedPort": 404, "restoreSandboxRootFS": 409}

// Every route works for who may use it, with what is his: without that, the
// refusals would prove nothing. A03: a field that nobody may set is refused, and
// nothing happens.
func TestA03_EveryRouteWithWhatIsOnesOwn(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	all := operations(t)
	slices.SortFunc(all, func(a, b operation) int { return strings.Compare(order(a), order(b)) })
	for _, o := range all {
		if o.public() {
			continue
		}
		by := w.ours.people["owner"]
		switch o.op.Extensions["x-caller"] {
		case "api-key":
			by = w.ours.keys["admin"]
		case "system-admin":
			by = w.system
		}
		r := by.sends(o.example(t, w.ours.name))
		if body, ok := r.body.(string); ok && o.takesJSON() {
			w.checkForbidden(o, r, body)
		}
		a := w.probe(r)
		w.ours.ended(o, o.params(t))
		if want := mayFail[o.op.OperationID]; want != 0 && a.status == want {
			continue
		}
		if a.status == 401 || a.status == 403 || a.status == 404 && a.code == "not_found" || a.status >= 500 {
			t.Errorf("%s: %d %s", o, a.status, a.raw)
		}
	}
	w.checkLog()
}

// order puts what changes something after what doesn't, and what ends it last.
func order(o operation) string {
	last := map[string]string{"GET": "0", "PUT": "1", "POST": "2", "DELETE": "3"}[o.method]
	return last + o.path
}

// checkForbidden sends fields that only we may set with a body that is right.
func (w *walk) checkForbidden(o operation, r request, body string) {
	w.t.Helper()
	for _, field := range []string{"tenant_id", "node", "generation", "runtime", "privileged", "is_owner", "__proto__"} {
		var fields map[string]any
		if err := json.Unmarshal([]byte(body), &fields); err != nil {
			w.t.Fatalf("%s: the example is no object: %s", o, body)
		}
		if _, ours := fields[field]; ours {
			continue
		}
		fields[field] = "x"
		with := r
		with.body = fields
		if a := w.probe(with); a.status != 400 || a.code != "bad_request" && a.code != "invalid_request" {
			w.t.Errorf("%s with %s: %d %s", o, field, a.status, a.raw)
		}
	}
}

// A07: a token in a URL is none, and what is secret is in no log.
func TestA07_TokensInURLs(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	key := w.ours.keys["admin"].token
	for _, o := range operations(t) {
		if o.public() {
			continue
		}
		r := o.example(t, unknown(t))
		sep := "?"
		if strings.Contains(r.path, "?") {
			sep = "&"
		}
		r.path += sep + "token=" + key + "&access_token=" + key + "&api_key=" + key
		if r.header == nil {
			r.header = http.Header{}
		}
		r.header["Referer"] = []string{"https://elsewhere.example/?token=" + key}
		r.header["Cookie"] = []string{"token=" + key}
		r.header["X-Api-Key"] = []string{key}
		if a := w.probe(r); a.status != 401 || a.code != "unauthorized" {
			t.Errorf("%s: %d %s", o, a.status, a.raw)
		} else if strings.Contains(string(a.raw), key) {
			t.Errorf("%s: the answer repeats the token", o)
		}
	}
	w.checkLog()
}

// checkLog fails when something secret was logged, at whatever level.
func (w *walk) checkLog() {
	w.t.Helper()
	log := w.log.String()
	if !strings.Contains(log, "level=DEBUG msg=request") {
		w.t.Error("A07: nothing was logged of the requests: this proves nothing")
	}
	for _, secret := range w.secrets {
		if at := strings.Index(log, secret); at >= 0 {
			w.t.Errorf("A07: a secret is in the log: …%s", log[max(0, at-200):at])
		}
	}
}

// A02: ids can't be guessed, and one alone opens nothing (see A01).
func TestA02_IDsAreRandom(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	for _, kind := range []string{"team", "user", "api key", "ssh key", "identity"} {
		for _, n := range []*tenant{w.ours, w.theirs} {
			id, err := uuid.Parse(n.name(kind))
			if err != nil || id.Version() != 4 { // 122 random bits
				t.Errorf("%s %s is not random: %v", kind, n.name(kind), err)
			}
		}
	}
	a, b := w.ours.name("sandbox"), w.theirs.name("sandbox")
	same := 0
	for same < min(len(a), len(b)) && a[same] == b[same] {
		same++
	}
	if len(a)-same < 16 { // base32: 80 bits
		t.Errorf("%s and %s differ too little", a, b)
	}
}
