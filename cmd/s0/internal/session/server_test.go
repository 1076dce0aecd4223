//go:build linux

package session_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"s0.run/api"
	"s0.run/cmd/s0/internal/config"
	"s0.run/cmd/s0/internal/session"
	"s0.run/internal/s0test"
)

// serve runs an API server over a real database, without a node: people sign in
// without one. It returns its URL and the first user's password.
func serve(t *testing.T, dsn string) (url, password string) {
	t.Helper()
	dir := t.TempDir()
	ready, done := make(chan string, 1), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		done <- api.Run(ctx, api.Config{
			Listen: "127.0.0.1:0", DatabaseURL: dsn, Nodes: []string{filepath.Join(dir, "nobody.sock")},
			KeyFile: filepath.Join(dir, "key"), Log: slog.New(slog.DiscardHandler),
			OnBootstrap: func(_, p string) { password = p }, Ready: func(addr string) { ready <- addr },
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("api: %v", err)
		}
	})
	select {
	case addr := <-ready:
		return "http://" + addr, password
	case err := <-done:
		done <- nil
		t.Fatalf("api: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("api: not ready")
	}
	return "", ""
}

// signIn makes a configuration file with a session in it.
func signIn(t *testing.T, dsn string) (path string) {
	t.Helper()
	url, password := serve(t, dsn)
	path = filepath.Join(t.TempDir(), "config.yaml")
	save(t, path, config.Profile{APIURL: url})
	s := open(t, path)
	c, err := s.Anonymous()
	if err != nil {
		t.Fatal(err)
	}
	login, err := c.Login(t.Context(), "admin@example.com", password)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SignIn(t.Context(), login); err != nil {
		t.Fatal(err)
	}
	return path
}

// expire puts an access token into the profile that has ended, and says so.
func expire(t *testing.T, path string) config.Profile {
	t.Helper()
	f, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	p := f.Profile("")
	p.Token, p.ExpiresAt = "ended", 1
	if err := f.Save(path); err != nil {
		t.Fatal(err)
	}
	return *p
}

// Two s0 that start when the access token has ended have one refresh token, which
// works once and ends the whole session when it comes a second time.
func TestSessionsThatRenewAtOnceGoOn(t *testing.T) {
	t.Parallel()
	path := signIn(t, s0test.Postgres(t))
	for range 3 {
		expire(t, path)
		sessions := []*session.Session{open(t, path), open(t, path), open(t, path), open(t, path)}
		var wg sync.WaitGroup
		for _, s := range sessions {
			wg.Go(func() {
				c, err := s.Client(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := c.ListTeams(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// What another s0 has renewed is not undone by one that changes something else.
func TestUseTeamKeepsWhatWasRenewedMeanwhile(t *testing.T) {
	t.Parallel()
	path := signIn(t, s0test.Postgres(t))
	early := open(t, path)
	before := expire(t, path)
	if _, err := open(t, path).Client(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := early.UseTeam(t.Context(), "a team"); err != nil {
		t.Fatal(err)
	}
	f, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if p := f.Profile(""); p.CurrentTeamID != "a team" || p.RefreshToken == before.RefreshToken {
		t.Errorf("%+v", p)
	}
}

// Signing out ends the session at the server also when the access token has ended
// before.
func TestSignOutAfterTheAccessTokenHasEnded(t *testing.T) {
	t.Parallel()
	dsn := s0test.Postgres(t)
	path := signIn(t, dsn)
	expire(t, path)
	if err := open(t, path).SignOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	f, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if p := f.Profile(""); p.Token != "" || p.RefreshToken != "" {
		t.Errorf("%+v", p)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var left int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM refresh_tokens").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d refresh tokens are left at the server, %v", left, err)
	}
	if err := open(t, path).SignOut(t.Context()); !errors.Is(err, session.ErrSignedOut) {
		t.Errorf("twice: %v", err)
	}
}

// A session that the server has ended is no reason to keep its tokens.
func TestSignOutOfASessionThatHasEnded(t *testing.T) {
	t.Parallel()
	path := signIn(t, s0test.Postgres(t))
	before := expire(t, path)
	anonymous, err := open(t, path).Anonymous()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := anonymous.RefreshToken(t.Context(), before.RefreshToken); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).SignOut(t.Context()); err != nil {
		t.Errorf("%v", err)
	}
}
