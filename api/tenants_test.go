package api_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"s0.run/api"
	"s0.run/api/internal/auth"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/s0test/volumetest"
	"s0.run/internal/sandbox"
)

// walk is a server with two tenants on it, for tests of who may do what.
type walk struct {
	*instance
	signer       *auth.Signer
	system       caller // a person
	platform     string
	ours, theirs *tenant
	secrets      []string // what must not be in any log
}

func open(c *api.Config, n *fakenode.Node) {
	c.AllowRegistration = true
	withNetwork(c, n)
	withVolumes(c, n)
}

// withFiles has the files of volumes be some.
func withFiles(t testing.TB) option {
	return func(_ *api.Config, n *fakenode.Node) {
		dirs := volumetest.New(t)
		n.Volumes.Files, n.Volumes.Copy = dirs.Files, dirs.Copy
	}
}

func newWalk(t *testing.T) *walk {
	t.Helper()
	w := &walk{instance: start(t, open, withFiles(t))}
	key, err := auth.LoadKey(w.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if w.signer, err = auth.NewSigner(key); err != nil {
		t.Fatal(err)
	}
	w.system = caller{name: "system admin", token: w.signIn(), holds: true, system: true}
	w.platform = w.create("/api-keys", w.system, `{"name":"p","scope":"platform"}`, "key")
	w.secrets = []string{w.pass, w.system.token, w.platform}
	w.ours, w.theirs = w.tenant("ours"), w.tenant("theirs")
	return w
}

// tenant is a team with its people, its keys and what they have made.
type tenant struct {
	w      *walk
	id     string
	people map[string]caller // by role, and "owner"
	keys   map[string]caller
	made   map[string]string // the ids of things, by kind
}

func (w *walk) tenant(name string) *tenant {
	w.t.Helper()
	n := &tenant{w: w, people: map[string]caller{}, keys: map[string]caller{}, made: map[string]string{}}
	owner := w.person()
	n.id = w.create("/teams", owner, fmt.Sprintf(`{"name":%q}`, name), "id")
	owner.name, owner.team, owner.role, owner.owner = "owner", n.id, "admin", true
	n.people["owner"] = owner
	for _, role := range roles {
		p := w.person()
		w.create("/teams/"+n.id+"/members", owner, fmt.Sprintf(`{"email":%q,"role":%q}`, p.name, role), "id")
		n.people[role] = caller{name: role, token: p.token, team: n.id, holds: true, role: role}
		key := w.create("/api-keys", owner, fmt.Sprintf(`{"name":"k","roles":[%q]}`, role), "key")
		n.keys[role] = caller{name: role + " key", token: key, team: n.id, holds: true, key: true, role: role}
		w.secrets = append(w.secrets, key)
	}
	return n
}

// noPassword is a hash that no password has.
const noPassword = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// person is somebody new, named by his email. He is put straight into the database,
// since a password costs as much as a hundred requests (see TestRegistration).
func (w *walk) person() caller {
	w.t.Helper()
	conn := connect(w.t, w.dsn)
	defer conn.Close(context.Background())
	email := uuid.NewString() + "@example.com"
	var id uuid.UUID
	err := conn.QueryRow(context.Background(), "INSERT INTO users (email, name, password_hash) VALUES ($1, 'Somebody', $2) RETURNING id", email, noPassword).Scan(&id)
	if err != nil {
		w.t.Fatal(err)
	}
	token, _, err := w.signer.Sign(id, nil, false)
	if err != nil {
		w.t.Fatal(err)
	}
	w.secrets = append(w.secrets, token)
	return caller{name: email, token: token, holds: true}
}

func (c caller) sends(r request) request {
	r.token = c.token
	r.header = r.header.Clone()
	if c.team != "" {
		if r.header == nil {
			r.header = http.Header{}
		}
		r.header["X-Team-Id"] = []string{c.team}
	}
	return r
}

// create makes something and answers one field of it.
func (w *walk) create(path string, by caller, body, field string) string {
	w.t.Helper()
	var out map[string]any
	w.send(by.sends(request{method: "POST", path: path, body: body})).want(201, &out)
	s, _ := out[field].(string)
	if s == "" {
		w.t.Fatalf("POST %s: no %s in %v", path, field, out)
	}
	return s
}

// name gives the id of something of the tenant's, which is made when there is none.
func (n *tenant) name(kind string) string {
	if n.made[kind] == "" {
		n.made[kind] = n.make(kind)
	}
	return n.made[kind]
}

func (n *tenant) make(kind string) string {
	n.w.t.Helper()
	owner := n.people["owner"]
	switch kind {
	case "team":
		return n.id
	case "owner":
		return n.user(owner)
	case "candidate": // who may become a member
		return n.w.person().name
	case "user":
		return n.user(n.w.person())
	case "member":
		return n.w.create("/teams/"+n.id+"/members", owner, fmt.Sprintf(`{"email":%q,"role":"viewer"}`, n.w.person().name), "user_id")
	case "region":
		return n.w.create("/regions", n.w.system, fmt.Sprintf(`{"id":"r-%s","regional_gateway_url":"https://example.com"}`, uuid.NewString()[:8]), "id")
	case "api key":
		return n.w.create("/api-keys", owner, `{"name":"k"}`, "id")
	case "ssh key":
		return n.w.create("/users/me/ssh-keys", owner, fmt.Sprintf(`{"name":"k","public_key":%q}`, newSSHKey(n.w.t)), "id")
	case "identity":
		return n.identity(n.user(owner))
	case "template":
		return n.w.create("/api/v1/templates", owner, fmt.Sprintf(`{"template_id":"t-%s","spec":{"mainContainer":{"image":"x","resources":{"memory":"1Gi"}}}}`, uuid.NewString()[:8]), "template_id")
	case "sandbox":
		return n.w.create("/api/v1/sandboxes", owner, `{"template":"default"}`, "sandbox_id")
	case "credential source":
		return n.w.create("/api/v1/credential-sources", owner, fmt.Sprintf(`{"name":"src-%s","resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"x"}}}}`, uuid.NewString()[:8]), "name")
	case "snapshot":
		return n.w.create("/api/v1/sandboxes/"+n.name("sandbox")+"/snapshots", owner, `{}`, "id")
	case "volume", "mounted":
		id := n.w.create("/api/v1/sandboxvolumes", owner, `{"access_mode":"ROX"}`, "id")
		n.w.send(owner.sends(request{method: "POST", path: "/api/v1/sandboxvolumes/" + id + "/files?path=a", body: "x"})).want(200, nil)
		n.w.send(owner.sends(request{method: "PUT", path: "/api/v1/sandboxvolumes/" + id + "/sync/replicas/laptop", body: `{}`})).want(200, nil)
		return id
	case "sync conflict":
		var sent struct {
			Conflicts []struct{ ID string }
		}
		n.w.send(owner.sends(request{ // of a, which the volume has already
			method: "POST", path: "/api/v1/sandboxvolumes/" + n.name("volume") + "/sync/replicas/laptop/changes",
			body: `{"request_id":"` + uuid.NewString() + `","base_seq":0,"changes":[{"event_type":"create","path":"/a","content_base64":"eQ=="}]}`,
		})).want(200, &sent)
		if len(sent.Conflicts) != 1 {
			n.w.t.Fatalf("%+v", sent)
		}
		return sent.Conflicts[0].ID
	case "volume snapshot":
		return n.w.create("/api/v1/sandboxvolumes/"+n.name("volume")+"/snapshots", owner, `{"name":"s"}`, "id")
	case "mount":
		var m struct {
			ID string `json:"mount_session_id"`
		}
		n.w.send(owner.sends(request{
			method: "POST", path: "/api/v1/sandboxes/" + n.name("sandbox") + "/sandboxvolumes/mount",
			body: fmt.Sprintf(`{"sandboxvolume_id":%q,"mount_point":"/m"}`, n.name("mounted")),
		})).want(200, &m)
		return m.ID
	case "context":
		return n.w.create("/api/v1/sandboxes/"+n.name("sandbox")+"/contexts", owner, `{"type":"repl"}`, "id")
	case "session":
		return n.w.create("/api/v1/sandboxes/"+n.name("sandbox")+"/sessions", owner, `{"command":["sleep","1000"]}`, "id")
	}
	n.w.t.Fatalf("nobody has said how to make a %s: see tenant.make", kind)
	return ""
}

func (n *tenant) user(c caller) string {
	n.w.t.Helper()
	var u struct{ ID string }
	n.w.send(c.sends(request{method: "GET", path: "/users/me"})).want(200, &u)
	return u.ID
}

// identity gives a user a way to sign in beside his password.
func (n *tenant) identity(user string) string {
	n.w.t.Helper()
	conn := connect(n.w.t, n.w.dsn)
	defer conn.Close(context.Background())
	var id string
	err := conn.QueryRow(context.Background(), `INSERT INTO user_identities (user_id, provider, issuer, subject)
		VALUES ($1, 'elsewhere', 'https://elsewhere.example', gen_random_uuid()::text) RETURNING id::text`, user).Scan(&id)
	if err != nil {
		n.w.t.Fatal(err)
	}
	return id
}

func newSSHKey(t testing.TB) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// ended forgets what an operation may have ended, so that the next one finds one
// that lives.
func (n *tenant) ended(o operation, params []param) {
	if o.method != http.MethodDelete && !strings.HasSuffix(o.path, "/deactivate") || len(params) == 0 {
		return
	}
	last := params[len(params)-1].kind
	if last == "team" { // it has a sandbox, and is still there
		return
	}
	delete(n.made, last)
	if last == "sandbox" {
		delete(n.made, "context")
		delete(n.made, "session")
		delete(n.made, "mount")
	}
	if last == "volume" {
		delete(n.made, "volume snapshot")
		delete(n.made, "sync conflict")
	}
}

// unknown gives ids that nothing has ever had.
func unknown(t testing.TB) func(kind string) string {
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	return func(kind string) string {
		switch kind {
		case "sandbox":
			return string(id)
		case "context":
			return "ctx-" + uuid.NewString()[:8]
		case "session":
			return "sess-" + uuid.NewString()[:12]
		case "template":
			return "t-" + uuid.NewString()[:8]
		case "credential source":
			return "src-" + uuid.NewString()[:8]
		case "candidate":
			return uuid.NewString() + "@example.com"
		}
		return uuid.NewString()
	}
}
