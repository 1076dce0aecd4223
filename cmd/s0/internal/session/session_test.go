package session_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"s0.run/cmd/s0/internal/config"
	"s0.run/cmd/s0/internal/session"
)

// Two s0 that start together have the same refresh token, and only one of them
// can use it. The other finds what the first one got.
func TestRenewedElsewhere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	var seen string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/auth/refresh":
			save(t, path, config.Profile{APIURL: "http://" + r.Host, GatewayMode: "direct", Token: "new", RefreshToken: "new", ExpiresAt: time.Now().Add(time.Hour).Unix()})
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"success":false,"error":{"code":"unauthorized","message":"invalid refresh token"}}`)
		default:
			seen = r.Header.Get("Authorization")
			json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"teams": []any{}}})
		}
	}))
	defer server.Close()
	save(t, path, config.Profile{APIURL: server.URL, GatewayMode: "direct", Token: "old", RefreshToken: "old", ExpiresAt: 1})

	s, err := session.Open(session.Options{ConfigPath: path, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ListTeams(t.Context()); err != nil || seen != "Bearer new" {
		t.Errorf("called with %q, %v", seen, err)
	}
}

// A server that can't be reached does not end a session.
func TestRenewWithoutServer(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(nil)
	server.Close()
	path := filepath.Join(t.TempDir(), "config.yaml")
	save(t, path, config.Profile{APIURL: server.URL, Token: "old", RefreshToken: "old", ExpiresAt: 1})
	s, err := session.Open(session.Options{ConfigPath: path, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client(t.Context()); err == nil || errors.Is(err, session.ErrSignedOut) {
		t.Errorf("got %v", err)
	}
	if f, err := config.Load(path); err != nil || f.Profile("").RefreshToken != "old" {
		t.Errorf("the profile lost its token: %+v, %v", f.Profile(""), err)
	}
}

func save(t *testing.T, path string, p config.Profile) {
	t.Helper()
	f := &config.File{Profiles: map[string]*config.Profile{config.DefaultProfile: &p}}
	if err := f.Save(path); err != nil {
		t.Error(err)
	}
}
