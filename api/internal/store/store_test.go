package store_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

func open(t *testing.T) (*store.Store, *pgx.Conn) {
	t.Helper()
	return openAt(t, s0test.Postgres(t))
}

func openAt(t *testing.T, dsn string) (*store.Store, *pgx.Conn) {
	t.Helper()
	s, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return s, conn
}

func newSandbox(t testing.TB, team uuid.UUID) store.NewSandbox {
	t.Helper()
	id, err := sandbox.NewID("test")
	if err != nil {
		t.Fatal(err)
	}
	return store.NewSandbox{
		ID: id, TeamID: team, UserID: uuid.New(), ClaimID: uuid.New(), TemplateID: "default",
		Node: "n1", Generation: 1, Config: json.RawMessage(`{}`), MemoryBytes: 1 << 30,
	}
}

func insert(t *testing.T, s *store.Store, n store.NewSandbox) store.Sandbox {
	t.Helper()
	sb, err := s.InsertSandbox(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func TestMigrationsRunOnceAndTolerateANewerSchema(t *testing.T) {
	t.Parallel()
	dsn := s0test.Postgres(t)
	var wg sync.WaitGroup
	for range 4 { // replicas that start at once
		wg.Go(func() {
			s, err := store.Open(t.Context(), dsn)
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		})
	}
	wg.Wait()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "INSERT INTO schema_migrations (version, name) VALUES (9999, 'from the future')"); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatalf("X40: an older replica must start on a newer schema: %v", err)
	}
	s.Close()
}

func TestFirstAdminIsCreatedOnce(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	admin := store.FirstAdmin{Email: "Admin@example.com", Name: "Admin", PasswordHash: "h", TeamName: "Default", TeamSlug: "default", RegionID: "local"}
	var created atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ok, err := s.CreateFirstAdmin(t.Context(), admin)
			if err != nil {
				t.Error(err)
			}
			if ok {
				created.Add(1)
			}
		})
	}
	wg.Wait()
	if created.Load() != 1 {
		t.Fatalf("created %d times", created.Load())
	}
	u, err := s.UserByEmail(t.Context(), "aDMIN@EXAMPLE.com")
	if err != nil || !u.IsAdmin {
		t.Fatalf("user %+v: %v", u, err)
	}
	grants, err := s.Grants(t.Context(), u.ID)
	if err != nil || len(grants) != 1 || grants[0].Role != "admin" || grants[0].HomeRegionID != "local" {
		t.Fatalf("grants %+v: %v", grants, err)
	}
	teams, err := s.Teams(t.Context(), u.ID)
	if err != nil || len(teams) != 1 || teams[0].OwnerID != u.ID {
		t.Fatalf("teams %+v: %v", teams, err)
	}
}

// bootstrap makes the first user and its team.
func bootstrap(t *testing.T, s *store.Store) (store.User, uuid.UUID) {
	t.Helper()
	_, err := s.CreateFirstAdmin(t.Context(), store.FirstAdmin{Email: "a@example.com", Name: "A", PasswordHash: "h1", TeamName: "T", TeamSlug: "t", RegionID: "local"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.UserByEmail(t.Context(), "a@example.com")
	if err != nil {
		t.Fatal(err)
	}
	grants, err := s.Grants(t.Context(), u.ID)
	if err != nil {
		t.Fatal(err)
	}
	return u, grants[0].TeamID
}

func TestA06_RefreshTokenIsUsedOnce(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	u, _ := bootstrap(t, s)
	first, second, third := []byte("first"), []byte("second"), []byte("third")
	if err := s.AddRefreshToken(t.Context(), u, first, time.Hour); err != nil {
		t.Fatal(err)
	}
	got, err := s.RotateRefreshToken(t.Context(), first, second, time.Hour)
	if err != nil || got != u.ID {
		t.Fatalf("user %v: %v", got, err)
	}
	if _, err := s.RotateRefreshToken(t.Context(), first, third, time.Hour); !errors.Is(err, store.ErrTokenReused) {
		t.Fatalf("second use: %v", err)
	}
	if _, err := s.RotateRefreshToken(t.Context(), second, third, time.Hour); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("the family must have ended with the second use: %v", err)
	}
}

func TestRefreshTokensEndWithThePassword(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	u, _ := bootstrap(t, s)
	if err := s.AddRefreshToken(t.Context(), u, []byte("x"), time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := s.ChangePassword(t.Context(), u.ID, "not the hash", "h2"); !errdefs.Is(err, errdefs.Conflict) {
		t.Fatalf("a stale hash must not change the password: %v", err)
	}
	if err := s.ChangePassword(t.Context(), u.ID, "h1", "h2"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RotateRefreshToken(t.Context(), []byte("x"), []byte("y"), time.Hour); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("the token must have ended with the password: %v", err)
	}
	u.PasswordHash = "h2"
	for _, tok := range []string{"p", "q"} {
		if err := s.AddRefreshToken(t.Context(), u, []byte(tok), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.EndRefreshTokens(t.Context(), u.ID, []byte("p")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RotateRefreshToken(t.Context(), []byte("p"), []byte("z"), time.Hour); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("p must have ended: %v", err)
	}
	if _, err := s.RotateRefreshToken(t.Context(), []byte("q"), []byte("z"), time.Hour); err != nil {
		t.Fatalf("q must live: %v", err)
	}
	if err := s.EndRefreshTokens(t.Context(), u.ID, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RotateRefreshToken(t.Context(), []byte("z"), []byte("w"), time.Hour); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("z must have ended: %v", err)
	}
}

func TestAPIKeys(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	u, team := bootstrap(t, s)
	foreign := uuid.New()
	k, err := s.CreateAPIKey(t.Context(), team, store.APIKey{CreatedBy: u.ID, Name: "k", Scope: "team", Roles: []string{"admin"}, Prefix: "p1", Hash: []byte("h")}, time.Hour)
	if err != nil || k.ExpiresAt == nil || !k.Active || k.Expired {
		t.Fatalf("%+v: %v", k, err)
	}
	forever, err := s.CreateAPIKey(t.Context(), team, store.APIKey{CreatedBy: u.ID, Name: "k", Scope: "team", Roles: []string{"viewer"}, Prefix: "p2", Hash: []byte("h")}, 0)
	if err != nil || forever.ExpiresAt != nil {
		t.Fatalf("%+v: %v", forever, err)
	}
	if got, err := s.APIKeyByPrefix(t.Context(), "p1"); err != nil || !bytes.Equal(got.Hash, []byte("h")) {
		t.Fatalf("%+v: %v", got, err)
	}
	for name, err := range map[string]error{
		"deactivate": s.DeactivateAPIKey(t.Context(), foreign, k.ID),
		"delete":     s.DeleteAPIKey(t.Context(), foreign, k.ID),
	} {
		if !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("A01: %s by a foreign team: %v", name, err)
		}
	}
	if err := s.DeactivateAPIKey(t.Context(), team, k.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.TouchAPIKey(t.Context(), team, forever.ID); err != nil {
		t.Fatal(err)
	}
	keys, err := s.APIKeys(t.Context(), team)
	if err != nil || len(keys) != 2 || keys[0].LastUsedAt == nil || keys[1].Active {
		t.Fatalf("%+v: %v", keys, err)
	}
	if err := s.DeleteAPIKey(t.Context(), team, k.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.APIKeyByID(t.Context(), k.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("deleted key: %v", err)
	}
}

func TestTemplatesPreferTheTeamsOwn(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	u, team := bootstrap(t, s)
	for _, spec := range []string{`{"v":1}`, `{"v":2}`} {
		if err := s.PutPublicTemplate(t.Context(), "default", json.RawMessage(spec), ""); err != nil {
			t.Fatal(err)
		}
	}
	public, err := s.Template(t.Context(), team, "default")
	if err != nil || public.TeamID != nil || string(public.Spec) != `{"v": 2}` {
		t.Fatalf("%s %v: %v", public.Spec, public.TeamID, err)
	}
	if _, err := s.CreateTemplate(t.Context(), team, u.ID, "default", json.RawMessage(`{"v":3}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateTemplate(t.Context(), team, u.ID, "default", json.RawMessage(`{}`)); !errdefs.Is(err, errdefs.Conflict) {
		t.Fatalf("duplicate: %v", err)
	}
	own, err := s.Template(t.Context(), team, "default")
	if err != nil || own.TeamID == nil || *own.TeamID != team {
		t.Fatalf("%+v: %v", own, err)
	}
	if foreign, err := s.Template(t.Context(), uuid.New(), "default"); err != nil || foreign.TeamID != nil {
		t.Fatalf("A01: another team sees %+v: %v", foreign, err)
	}
	list, err := s.Templates(t.Context(), team)
	if err != nil || len(list) != 2 || list[0].TeamID == nil {
		t.Fatalf("%+v: %v", list, err)
	}
	if _, err := s.UpdateTemplate(t.Context(), uuid.New(), "default", json.RawMessage(`{}`)); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("A01: update by a foreign team: %v", err)
	}
	if err := s.DeleteTemplate(t.Context(), team, "default"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteTemplate(t.Context(), team, "default"); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("the public template must not be deletable by a team: %v", err)
	}
}

func TestListenTellsAboutChanges(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	u, team := bootstrap(t, s)
	ctx, stop := context.WithCancel(t.Context())
	changes, done := make(chan string, 16), make(chan error, 1)
	go func() { done <- s.Listen(ctx, func(table string) { changes <- table }) }()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-changes:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("no notification; want %q", want)
		}
	}
	expect("")
	k, err := s.CreateAPIKey(ctx, team, store.APIKey{CreatedBy: u.ID, Name: "k", Scope: "team", Roles: []string{"admin"}, Prefix: "p", Hash: []byte("h")}, 0)
	if err != nil {
		t.Fatal(err)
	}
	expect(store.TableAPIKeys)
	if err := s.TouchAPIKey(ctx, team, k.ID); err != nil { // no change that matters
		t.Fatal(err)
	}
	if err := s.PutPublicTemplate(ctx, "default", json.RawMessage(`{}`), ""); err != nil {
		t.Fatal(err)
	}
	expect(store.TableTemplates)
	if _, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Fatal("a lost connection must end the listening")
	}
	stop()
}
