package e2e_test

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// testTenants: another team's key finds nothing of a sandbox that is there (A01).
func testTenants(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	repl := u.python(id)
	u.write(id, "secret.txt", "mine")
	other := stranger(t, u)
	unknown := s.Cluster + "-" + strings.Repeat("a", 26)
	for name, call := range map[string]func(id string) error{
		"get":    func(id string) error { _, err := other.GetSandbox(u.ctx(), id); return err },
		"status": func(id string) error { _, err := other.GetSandboxStatus(u.ctx(), id); return err },
		"update": func(id string) error {
			_, err := other.UpdateSandbox(u.ctx(), id, client.SandboxUpdateConfig{})
			return err
		},
		"refresh": func(id string) error { _, err := other.RefreshSandbox(u.ctx(), id, nil); return err },
		"list":    func(id string) error { _, err := other.ListContexts(u.ctx(), id); return err },
		"exec":    func(id string) error { _, err := other.ExecContext(u.ctx(), id, repl, "1"); return err },
		"read":    func(id string) error { _, err := other.ReadFile(u.ctx(), id, "secret.txt"); return err },
		"write":   func(id string) error { return other.WriteFile(u.ctx(), id, "secret.txt", strings.NewReader("yours")) },
		"attach":  func(id string) error { _, err := other.Attach(u.ctx(), id, repl); return err },
		"delete":  func(id string) error { return other.DeleteSandbox(u.ctx(), id) },
	} {
		foreign, missing := call(id), call(unknown)
		if !isStatus(foreign, 404) || strings.ReplaceAll(message(foreign), id, unknown) != message(missing) {
			t.Errorf("%s: a foreign sandbox answers %v, an unknown one %v", name, foreign, missing)
		}
	}
	list, err := other.ListSandboxes(u.ctx(), client.ListSandboxesOptions{})
	if must(u, "listing", list, err).Count != 0 {
		t.Errorf("another team's list holds %+v", list)
	}
	if got := u.read(id, "secret.txt"); got != "mine" {
		t.Errorf("the file holds %q", got)
	}
	u.wantExec(id, repl, "print(6 * 7)", "42")
}

func message(err error) string {
	var e *client.APIError
	if errors.As(err, &e) {
		return e.Code + ": " + e.Message
	}
	return ""
}

// stranger makes another team with an admin's key, straight in the database:
// there is no API for teams yet. The key's row moves to the new team.
func stranger(t *testing.T, u *user) *client.Client {
	t.Helper()
	login, err := u.c.Login(u.ctx(), "admin@example.com", s0test.AdminPassword)
	must(u, "signing in", login, err)
	person, err := client.New(client.Config{BaseURL: u.stack.URL, Token: login.AccessToken})
	must(u, "signing in", person, err)
	key, err := person.CreateAPIKey(u.ctx(), client.CreateAPIKeyRequest{Name: "stranger", Roles: []client.Role{"admin"}})
	must(u, "making a key", key, err)
	socket := url.QueryEscape(filepath.Join(u.stack.RunDir, "postgres"))
	conn, err := pgx.Connect(u.ctx(), "postgres:///s0?user=s0&host="+socket)
	must(u, "connecting to the database", conn, err)
	defer conn.Close(context.Background())
	team := uuid.New()
	for _, sql := range []string{
		"INSERT INTO teams (id, name, slug, owner_id, home_region_id) SELECT $1::uuid, 'Other', ($1::uuid)::text, id, 'local' FROM users LIMIT 1",
		"UPDATE api_keys SET team_id = $1, updated_at = now(), roles = roles WHERE name = 'stranger'",
	} {
		tag, err := conn.Exec(u.ctx(), sql, team)
		must(u, "making a team", tag, err)
	}
	other, err := client.New(client.Config{BaseURL: u.stack.URL, Token: key.Key})
	return must(u, "another team's client", other, err)
}

// testREPLs: every REPL that the default image has keeps its state.
func testREPLs(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	for alias, lines := range map[string][3]string{
		"python":     {"x = 41", "print(x + 1)", "42"},
		"javascript": {"let x = 41", "x + 1", "42"},
		"bash":       {"x=41", "echo $((x + 1))", "42"},
		"perl":       {"$x = 41;", `print $x + 1, "\n";`, "42"},
		"sqlite":     {"create table t as select 41 as x;", "select x + 1 from t;", "42"},
		"redis-cli":  {"help @nothing", "help", "redis-cli"},
	} {
		repl, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{Type: client.ContextTypeREPL, REPL: &client.REPLRequest{Alias: &alias}})
		must(u, "starting "+alias, repl, err)
		u.exec(id, repl.ID, lines[0])
		if got := u.exec(id, repl.ID, lines[1]); !strings.Contains(got, lines[2]) {
			t.Errorf("%s: %q prints %q, want %q", alias, lines[1], got, lines[2])
		}
	}
}
