package e2e_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// A receiver is a tenant's webhook on loopback. It dedupes by event id, as
// receivers must.
type receiver struct {
	t      *testing.T
	stack  *s0test.Stack
	url    string
	secret string

	mu  sync.Mutex
	got []hookEvent
}

type hookEvent struct {
	ID      string         `json:"event_id"`
	Type    string         `json:"event_type"`
	Sandbox string         `json:"sandbox_id"`
	Payload map[string]any `json:"payload"`
}

func newReceiver(t *testing.T, s *s0test.Stack) *receiver {
	t.Helper()
	r := &receiver{t: t, stack: s, secret: "whsec_e2e"}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	r.url = srv.URL
	return r
}

func (r *receiver) ServeHTTP(_ http.ResponseWriter, req *http.Request) {
	raw, err := io.ReadAll(req.Body)
	var e hookEvent
	if err != nil || json.Unmarshal(raw, &e) != nil {
		r.t.Errorf("body %q: %v", raw, err)
		return
	}
	mac := hmac.New(sha256.New, []byte(r.secret))
	mac.Write(raw)
	if sig := req.Header.Get("X-Sandbox0-Signature"); sig != hex.EncodeToString(mac.Sum(nil)) {
		r.t.Errorf("%s is signed %q", e.ID, sig)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.got, func(o hookEvent) bool { return o.ID == e.ID && o.Sandbox == e.Sandbox }) {
		r.got = append(r.got, e)
	}
}

// wait waits for an event of a sandbox that fits.
func (r *receiver) wait(id, eventType string, fits func(map[string]any) bool) hookEvent {
	r.t.Helper()
	var found hookEvent
	r.stack.Eventually(eventType+" of "+id, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range r.got {
			if e.Sandbox == id && e.Type == eventType && (fits == nil || fits(e.Payload)) {
				found = e
				return nil
			}
		}
		return fmt.Errorf("got %v", r.got)
	})
	return found
}

func (u *user) claimHooked(r *receiver, watchDir string) (id string) {
	u.t.Helper()
	return u.claimed(client.ClaimRequest{Template: "default", Config: &client.SandboxConfig{
		Webhook: &client.WebhookConfig{URL: &r.url, Secret: &r.secret, WatchDir: &watchDir},
	}})
}

const publish = "http://localhost:49983/api/v1/webhook/publish"

// TestWebhooks: what happens to a sandbox and in it reaches its tenant's receiver,
// signed and in order, from processes, files and the agent inside; also when the
// server, or the sandbox, dies meanwhile.
func TestWebhooks(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 2, Flags: []string{"--webhook-allow-private"}})
	u, r := newUser(t, s), newReceiver(t, s)
	id := u.claimHooked(r, "watched")
	if e := r.wait(id, "sandbox.ready", nil); e.Payload["http_port"] != 49983.0 || e.Payload["sandbox_id"] != id {
		t.Errorf("%+v", e)
	}

	t.Run("processes", func(t *testing.T) {
		ran := u.run(id, "sh", "-c", "echo to out; echo to err >&2; exit 3")
		mine := func(p map[string]any) bool { return p["process_id"] == ran.ID }
		started := r.wait(id, "process.started", mine)
		ended := r.wait(id, "process.crashed", mine)
		if p := started.Payload; p["process_type"] != "cmd" || fmt.Sprint(p["command"]) != "[sh -c echo to out; echo to err >&2; exit 3]" || p["pid"] != ended.Payload["pid"] {
			t.Errorf("%+v", started)
		}
		if p := ended.Payload; p["exit_code"] != 3.0 || p["stdout_preview"] != "to out\n" || p["stderr_preview"] != "to err\n" || p["state"] != "crashed" {
			t.Errorf("%+v", ended)
		}
		fine := u.run(id, "true")
		r.wait(id, "process.exited", func(p map[string]any) bool { return p["process_id"] == fine.ID && p["exit_code"] == 0.0 })
		wait, secret := true, "canary"
		if _, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{
			Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"true", "with-env"}}, WaitUntilDone: &wait, EnvVars: map[string]string{"TOKEN": secret},
		}); err != nil {
			t.Fatal(err)
		}
		e := r.wait(id, "process.started", func(p map[string]any) bool { return strings.Contains(fmt.Sprint(p["command"]), "with-env") })
		if got := fmt.Sprint(e.Payload); strings.Contains(got, secret) || !strings.Contains(got, "TOKEN") {
			t.Errorf("names of variables, never values: %s", got)
		}
	})

	t.Run("an agent inside", func(t *testing.T) {
		out := u.run(id, "curl", "-sS", "-w", " %{http_code}", "-d", `{"event_id":"step-1","payload":{"progress":0.5}}`, publish)
		if got := *out.Stdout; !strings.Contains(got, `"event_id":"step-1"`) || !strings.HasSuffix(got, " 202") {
			t.Errorf("curl says %s, %s", got, *out.Stderr)
		}
		if e := r.wait(id, "agent.event", nil); e.ID != "step-1" || e.Payload["progress"] != 0.5 {
			t.Errorf("%+v", e)
		}
		python := u.python(id)
		u.exec(id, python, "import json, urllib.request as q")
		u.exec(id, python, fmt.Sprintf(`a = q.urlopen(%q, json.dumps({"payload": {"from": "python"}}).encode())`, publish))
		u.wantExec(id, python, "a.status", "202")
		r.wait(id, "agent.event", func(p map[string]any) bool { return p["from"] == "python" })
	})

	t.Run("watched files", func(t *testing.T) {
		u.run(id, "sh", "-c", "mkdir -p watched/deep && sleep 0.1 && echo x > watched/deep/file && echo x > not-watched")
		r.wait(id, "file.modified", func(p map[string]any) bool { return p["path"] == "/workspace/watched/deep/file" })
		u.write(id, "watched/by-api", "x")
		r.wait(id, "file.modified", func(p map[string]any) bool { return p["path"] == "/workspace/watched/by-api" })
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range r.got {
			if strings.Contains(fmt.Sprint(e.Payload["path"]), "not-watched") {
				t.Errorf("%+v", e)
			}
		}
	})

	t.Run("TestX39_ServerDies", func(t *testing.T) {
		// Events that come while nobody can take them are told afterwards, once each.
		u.run(id, "sh", "-c", "(sleep 1; for i in 1 2 3 4 5; do curl -sS -d '{\"event_id\":\"away-'$i'\",\"payload\":{}}' "+publish+"; done; touch told) >/dev/null 2>&1 &")
		s.Kill()
		s.Up()
		var want []string
		for i := range 5 {
			want = append(want, fmt.Sprint("away-", i+1))
		}
		r.wait(id, "agent.event", func(map[string]any) bool { return r.has(id, "away-5") })
		r.mu.Lock()
		defer r.mu.Unlock()
		var got []string
		for _, e := range r.got {
			if strings.HasPrefix(e.ID, "away-") {
				got = append(got, e.ID)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("told %v", got)
		}
	})

	t.Run("TestX29_KillSentry", func(t *testing.T) {
		pids := s.Pids("sentry", id)
		if len(pids) == 0 {
			t.Fatal("no sentry was found")
		}
		for _, p := range pids {
			if err := syscall.Kill(p, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if e := r.wait(id, "sandbox.deleted", nil); e.ID != "evt_sandbox_deleted_"+id {
			t.Errorf("%+v", e)
		}
	})

	t.Run("the list says the same", func(t *testing.T) {
		var actions []string
		opts := client.SandboxEventsOptions{Limit: 10}
		s.Eventually("every event to be listed as delivered", func() error {
			actions, opts.Cursor = nil, ""
			for {
				page, err := u.c.ListSandboxEvents(u.ctx(), id, opts)
				if err != nil {
					return err
				}
				for _, e := range page.Events {
					actions = append(actions, e.Action)
					if d := fmt.Sprint(e.Attributes["webhook_delivery"]); !strings.Contains(d, "state:delivered") {
						return fmt.Errorf("%s: %s", e.EventID, d)
					}
				}
				if page.NextCursor == nil {
					return nil
				}
				opts.Cursor = *page.NextCursor
			}
		})
		for _, want := range []string{"sandbox.ready", "process.started", "process.crashed", "agent.event", "file.modified", "sandbox.deleted"} {
			if !slices.Contains(actions, want) {
				t.Errorf("%s is missing in %v", want, actions)
			}
		}
		if actions[0] != "sandbox.ready" || actions[len(actions)-1] != "sandbox.deleted" {
			t.Errorf("the order is %v", actions)
		}
	})
}

func (r *receiver) has(sandbox, event string) bool {
	return slices.ContainsFunc(r.got, func(e hookEvent) bool { return e.Sandbox == sandbox && e.ID == event })
}

// TestA17_LoopbackIsNotForWebhooks: without the operator's consent nothing of this
// machine is reached.
func TestA17_LoopbackIsNotForWebhooks(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 1})
	u, r := newUser(t, s), newReceiver(t, s)
	_, err := u.c.CreateSandbox(u.ctx(), client.ClaimRequest{Template: "default", Config: &client.SandboxConfig{Webhook: &client.WebhookConfig{URL: &r.url}}})
	if refused := (*client.APIError)(nil); !errors.As(err, &refused) || refused.StatusCode != 400 {
		t.Errorf("claiming: %v", err)
	}
	if len(r.got) != 0 {
		t.Errorf("reached: %v", r.got)
	}
}
