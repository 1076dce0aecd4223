package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	connectrpc "connectrpc.com/connect"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
)

type forkedSandbox struct {
	ID            string
	TemplateID    string `json:"template_id"`
	Status        string
	Paused        bool
	AutoResume    bool      `json:"auto_resume"`
	Generation    int       `json:"runtime_generation"`
	ExpiresAt     time.Time `json:"expires_at"`
	HardExpiresAt time.Time `json:"hard_expires_at"`
	Services      []struct{ ID string }
}

type forkAnswer struct {
	Source    string `json:"source_sandbox_id"`
	Sandbox   forkedSandbox
	Sandboxes []forkedSandbox
}

func forkRequest(token, id, body string) request {
	return request{method: "POST", path: "/api/v1/sandboxes/" + id + "/fork", token: token, body: body}
}

func (i *instance) fork(token, id, body string) (f forkAnswer) {
	i.t.Helper()
	i.send(forkRequest(token, id, body)).want(201, &f)
	if f.Source != id || f.Sandbox.Status != "paused" || !f.Sandbox.Paused || f.Sandbox.ID == id {
		i.t.Fatalf("fork of %s: %+v", id, f)
	}
	return f
}

func (i *instance) get(token, id string) (sb forkedSandbox) {
	i.t.Helper()
	i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id, token: token}).want(200, &sb)
	return sb
}

func TestFork(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	var c struct {
		SandboxID string `json:"sandbox_id"`
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key,
		body: `{"template":"default","config":{"env_vars":{"A":"1"},"ttl":600,"hard_ttl":1200,"auto_resume":false,"services":[{"id":"web","port":8080}]}}`}).want(201, &c)
	source := i.get(key, c.SandboxID)

	for _, body := range []string{"", "{}", `{"config":{}}`} {
		child := i.fork(key, source.ID, body).Sandbox
		if child.TemplateID != source.TemplateID || child.AutoResume || len(child.Services) != 1 || child.Services[0].ID != "web" {
			t.Errorf("a child has another config: %+v", child)
		}
		if !child.ExpiresAt.IsZero() || !child.HardExpiresAt.IsZero() {
			t.Errorf("the time of a child that has never run goes by: %+v", child)
		}
	}
	many := i.fork(key, source.ID, `{"config":{"ttl":60,"hard_ttl":90,"memory":true},"count":4}`)
	ids := map[string]bool{}
	for _, child := range many.Sandboxes {
		ids[child.ID] = true
	}
	if len(ids) != 4 || many.Sandboxes[0].ID != many.Sandbox.ID {
		t.Fatalf("four children: %+v", many)
	}
	before := time.Now()
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + many.Sandbox.ID + "/resume", token: key}).want(200, nil)
	child := i.get(key, many.Sandbox.ID)
	if child.Status != "running" || child.ExpiresAt.Before(before.Add(30*time.Second)) || child.HardExpiresAt.Before(before.Add(60*time.Second)) || child.HardExpiresAt.After(before.Add(10*time.Minute)) {
		t.Errorf("a child that runs: %+v", child)
	}
	hard := child.HardExpiresAt
	for _, verb := range []string{"pause", "resume"} { // the hard ttl goes on
		i.send(request{method: "POST", path: "/api/v1/sandboxes/" + child.ID + "/" + verb, token: key}).want(200, nil)
	}
	if again := i.get(key, child.ID); !again.HardExpiresAt.Equal(hard) {
		t.Errorf("the hard ttl began again: %v, then %v", hard, again.HardExpiresAt)
	}
	if sb := i.get(key, source.ID); sb.Status != "running" || sb.Generation != source.Generation {
		t.Errorf("the source: %+v", sb)
	}
	grand := i.fork(key, many.Sandboxes[1].ID, "")
	if sb := i.node.Sandboxes()[grand.Sandbox.ID]; sb == nil || sb.GetState() != "paused" {
		t.Errorf("a child of a child at its node: %v", sb)
	}
}

func TestForkRefusals(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	for _, bad := range []string{
		`{"count":0}`, `{"count":17}`, `{"count":-1}`, `{"count":1.5}`, `{"config":{"ttl":-1}}`, `{"config":{"ttl":11,"hard_ttl":10}}`,
		`{"config":{"env_vars":{}}}`, `{"memory":true}`, `[]`, `x`,
	} {
		i.send(forkRequest(key, id, bad)).refused(400, "bad_request")
	}
	i.send(forkRequest(i.key("viewer"), id, "")).refused(403, "forbidden")
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
	i.send(forkRequest(key, id, "")).refused(404, "not_found")
}

func TestG11_ForkOfAnotherTeamsSandbox(t *testing.T) {
	t.Parallel()
	i := start(t)
	id := i.claim(i.key("admin"))
	missing := i.send(forkRequest(i.key("admin"), unknown(t)("sandbox"), "")).refused(404, "not_found")
	before := len(i.node.Sandboxes())
	foreign := i.send(forkRequest(i.stranger(), id, `{"count":2}`)).refused(404, "not_found")
	if foreign.msg != missing.msg {
		t.Errorf("another team's sandbox says %q, none %q", foreign.msg, missing.msg)
	}
	if after := len(i.node.Sandboxes()); after != before {
		t.Errorf("the node has %d sandboxes, before %d", after, before)
	}
}

func TestA16_ForksAreIdempotent(t *testing.T) {
	t.Parallel()
	var lose atomic.Bool
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.AfterFork = func(*nodeapi.ForkRequest) error {
			if lose.Swap(false) {
				return connectrpc.NewError(connectrpc.CodeUnavailable, errors.New("the answer was lost"))
			}
			return nil
		}
	})
	key := i.key("developer")
	id := i.claim(key)
	keyed := func(body string) request {
		r := forkRequest(key, id, body)
		r.header = http.Header{"Idempotency-Key": {"once"}}
		return r
	}
	var first, second forkAnswer
	lose.Store(true)
	i.send(keyed(`{"count":3}`)).refused(503, "unavailable") // nothing is left of it
	i.send(keyed(`{"count":3}`)).want(201, &first)
	i.send(keyed(`{"count":3}`)).want(201, &second)
	list := func(f forkAnswer) (ids []string) {
		for _, sb := range f.Sandboxes {
			ids = append(ids, sb.ID)
		}
		return ids
	}
	if a, b := list(first), list(second); len(a) != 3 || !slices.Equal(a, b) {
		t.Errorf("the same call answered %v and %v", a, b)
	}
	i.send(keyed(`{"count":2}`)).refused(422, "bad_request")
	other := keyed("")
	other.path, other.body = "/api/v1/sandboxes", `{"template":"default"}`
	i.send(other).refused(422, "bad_request")
	if n := len(i.node.Sandboxes()); n != 4 {
		t.Errorf("the node has %d sandboxes, want the source and three children", n)
	}
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + first.Sandboxes[2].ID, token: key}).want(200, nil)
	i.send(keyed(`{"count":3}`)).refused(409, "conflict")
}

// Both or neither: a fork whose rows can't be stored leaves nothing at its node.
func TestG05_ForkIsUndone(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	exec(t, i.dsn, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'on purpose'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON sandboxes FOR EACH ROW WHEN (NEW.status = 'paused') EXECUTE FUNCTION refuse()`)
	a := i.send(forkRequest(key, id, `{"count":3}`)).refused(500, "internal_error")
	if strings.Contains(a.msg, "purpose") {
		t.Errorf("the cause is shown: %s", a.msg)
	}
	if n := len(i.node.Sandboxes()); n != 1 {
		t.Errorf("the node has %d sandboxes", n)
	}
	if n := i.count("SELECT count(*) FROM sandboxes"); n != 1 {
		t.Errorf("there are %d rows", n)
	}
	exec(t, i.dsn, "DROP TRIGGER refuse ON sandboxes")
	i.fork(key, id, "")
}

// A child's events go where its source's do.
func TestForkInheritsTheWebhook(t *testing.T) {
	t.Parallel()
	i := start(t, privateHooks)
	h := newHook(t)
	key := i.key("developer")
	child := i.fork(key, i.claimHooked(key, h, ""), "").Sandbox.ID
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + child + "/resume", token: key}).want(200, nil)
	fakenode.Eventually(t, "the hook hears of the child", func() bool { return slices.Contains(h.types(child), "sandbox.resumed") })
}

func (i *instance) count(sql string) (n int) {
	i.t.Helper()
	conn := connect(i.t, i.dsn)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(context.Background(), sql).Scan(&n); err != nil {
		i.t.Fatal(fmt.Errorf("%s: %w", sql, err))
	}
	return n
}

// A node's refusal of an image comes with its reason, and with what can be done.
func TestG10_ResumeRefusalSaysWhy(t *testing.T) {
	t.Parallel()
	const why = "the sandbox was saved by another version; its files can be resumed without its memory"
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.OnResume = func(*nodeapi.ResumeRequest) error {
			err := connectrpc.NewError(connectrpc.CodeFailedPrecondition, errors.New(why))
			err.Meta().Set(nodeapi.CodeHeader, nodeapi.CodeMemoryDiffers)
			return err
		}
	})
	key := i.key("developer")
	path := "/api/v1/sandboxes/" + i.claim(key)
	i.send(request{method: "POST", path: path + "/pause", token: key}).want(200, nil)
	if a := i.send(request{method: "POST", path: path + "/resume", token: key}).refused(409, nodeapi.CodeMemoryDiffers); a.msg != why {
		t.Errorf("it says %q", a.msg)
	}
	var sb forkedSandbox
	if i.send(request{method: "GET", path: path, token: key}).want(200, &sb); !sb.Paused {
		t.Errorf("after the refusal: %+v", sb)
	}
}
