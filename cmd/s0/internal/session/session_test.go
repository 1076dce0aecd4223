package session_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"s0.run/cmd/s0/internal/config"
	"s0.run/cmd/s0/internal/session"
)

// What another s0 got while this one was on its way is used, not renewed again.
func TestRenewedElsewhere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	var seen string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/auth/refresh" {
			t.Error("a refresh token was used twice")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		seen = r.Header.Get("Authorization")
		json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"teams": []any{}}})
	}))
	defer server.Close()
	save(t, path, config.Profile{APIURL: server.URL, GatewayMode: "direct", Token: "old", RefreshToken: "old", ExpiresAt: 1})
	s := open(t, path)
	save(t, path, config.Profile{APIURL: server.URL, GatewayMode: "direct", Token: "new", RefreshToken: "new", ExpiresAt: time.Now().Add(time.Hour).Unix()})
	c, err := s.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ListTeams(t.Context()); err != nil || seen != "Bearer new" {
		t.Errorf("called with %q, %v", seen, err)
	}
}

// A token goes to nobody but the server that gave it, also when the profile has
// become another server's on the way.
func TestRenewAfterASignInElsewhere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was called", r.URL.Path)
	}))
	defer server.Close()
	save(t, path, config.Profile{APIURL: server.URL, GatewayMode: "direct", Token: "old", RefreshToken: "old", ExpiresAt: 1})
	s := open(t, path)
	save(t, path, config.Profile{APIURL: "https://s0.example.com", GatewayMode: "direct", Token: "new", RefreshToken: "new", ExpiresAt: 1})
	if _, err := s.Client(t.Context()); !errors.Is(err, session.ErrSignedOut) {
		t.Errorf("got %v", err)
	}
}

// A server that can't be reached does not end a session.
func TestRenewWithoutServer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	save(t, path, config.Profile{APIURL: "http://127.0.0.1:1", Token: "old", RefreshToken: "old", ExpiresAt: 1})
	s := open(t, path)
	if _, err := s.Client(t.Context()); err == nil || errors.Is(err, session.ErrSignedOut) {
		t.Errorf("got %v", err)
	}
	if f, err := config.Load(path); err != nil || f.Profile("").RefreshToken != "old" {
		t.Errorf("the profile lost its token: %+v, %v", f.Profile(""), err)
	}
}

func open(t *testing.T, path string) *session.Session {
	t.Helper()
	s, err := session.Open(session.Options{ConfigPath: path, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func save(t *testing.T, path string, p config.Profile) {
	t.Helper()
	f := &config.File{Profiles: map[string]*config.Profile{config.DefaultProfile: &p}}
	if err := f.Save(path); err != nil {
		t.Error(err)
	}
}
