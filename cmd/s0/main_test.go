package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts check what s0 does on its own side: which server it calls as whom,
// what it keeps, how it explains failures. What sandboxes do is tested against a
// real server in test/e2e.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"s0": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"SERVER", "OTHER"} {
				server := httptest.NewServer(controlPlane(strings.ToLower(name)))
				env.Defer(server.Close)
				env.Setenv(name, server.URL)
			}
			for name, mode := range map[string]string{"REGIONS": "global", "OLD": ""} {
				server := httptest.NewServer(gateway(mode))
				env.Defer(server.Close)
				env.Setenv(name, server.URL)
			}
			env.Setenv("CLOSED", "http://127.0.0.1:1") // a port that no other test's server is given
			env.Setenv("HOME", env.WorkDir+"/home")
			return nil
		},
	})
}

// controlPlane is a server that tells how it was called: its user's name is the
// token, its only sandbox's template the team.
func controlPlane(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metadata", func(w http.ResponseWriter, _ *http.Request) {
		success(w, 200, map[string]any{"gateway_mode": "direct", "service": name})
	})
	mux.HandleFunc("GET /auth/providers", func(w http.ResponseWriter, _ *http.Request) {
		success(w, 200, map[string]any{"providers": []any{map[string]any{
			"id": "builtin", "name": "Password", "type": "builtin", "browser_login_enabled": false, "device_login_enabled": false,
		}}})
	})
	mux.HandleFunc("POST /auth/login", login)
	mux.HandleFunc("POST /auth/refresh", refresh)
	mux.HandleFunc("POST /auth/logout", signedIn(func(w http.ResponseWriter, _ *http.Request) {
		success(w, 200, map[string]any{"message": "logged out"})
	}))
	mux.HandleFunc("GET /users/me", signedIn(func(w http.ResponseWriter, r *http.Request) {
		success(w, 200, user(name, bearer(r)))
	}))
	mux.HandleFunc("GET /teams", signedIn(func(w http.ResponseWriter, _ *http.Request) {
		success(w, 200, map[string]any{"teams": []any{team("team-1", "first"), team("team-2", "second")}})
	}))
	mux.HandleFunc("POST /api-keys", signedIn(createKey))
	mux.HandleFunc("GET /api/v1/sandboxes", signedIn(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("status") == "failed" {
			success(w, 200, map[string]any{"count": 0, "has_more": false, "sandboxes": []any{}})
			return
		}
		success(w, 200, map[string]any{"count": 7, "has_more": true, "sandboxes": []any{map[string]any{
			"id": "local-abc", "template_id": r.Header.Get("X-Team-ID"), "status": "running", "paused": false, "runtime_generation": 1,
			"cluster_id": nil, "created_at": time.Now().Add(-5 * time.Minute), "updated_at": time.Now(),
			"expires_at": time.Now().Add(3*time.Hour + time.Minute), "hard_expires_at": time.Time{},
		}}})
	}))
	mux.HandleFunc("GET /api/v1/sandboxes/{id}", signedIn(fail))
	mux.HandleFunc("GET /api/v1/sandboxes/{id}/contexts", signedIn(contexts))
	mux.HandleFunc("GET /api/v1/sandboxes/{id}/sessions", signedIn(sessions))
	mux.HandleFunc("PUT /api/v1/sandboxes/{id}/sessions/{session}", signedIn(echo))
	mux.HandleFunc("POST /api/v1/sandboxes/{id}/sessions", signedIn(echo))
	mux.HandleFunc("GET /api/v1/sandboxes/{id}/sessions/{session}", signedIn(func(w http.ResponseWriter, _ *http.Request) {
		success(w, 200, session())
	}))
	mux.HandleFunc("POST /api/v1/sandboxes/{id}/sessions/{session}/inputs", signedIn(echo))
	mux.HandleFunc("POST /api/v1/sandboxes", signedIn(echo))
	mux.HandleFunc("POST /api/v1/sandboxvolumes", signedIn(echo))
	mux.HandleFunc("POST /api/v1/sandboxvolumes/{id}/{path...}", signedIn(echo))
	mux.HandleFunc("POST /api/v1/sandboxes/{id}/sandboxvolumes/mount", signedIn(echo))
	mux.HandleFunc("POST /api/v1/templates", signedIn(echo))
	return mux
}

// gateway is a server of a mode; one without a mode does not know the question.
func gateway(mode string) http.Handler {
	mux := http.NewServeMux()
	if mode != "" {
		mux.HandleFunc("GET /metadata", func(w http.ResponseWriter, _ *http.Request) {
			success(w, 200, map[string]any{"gateway_mode": mode})
		})
	}
	mux.HandleFunc("GET /users/me", signedIn(func(w http.ResponseWriter, r *http.Request) {
		success(w, 200, user("gateway", bearer(r)))
	}))
	return mux
}

func success(w http.ResponseWriter, status int, data any) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"success": true, "data": data})
}

func failure(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("X-Request-Id", "req-1")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"success":false,"error":{"code":%q,"message":%q}}`, code, message)
}

func bearer(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

func signedIn(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if t := bearer(r); t == "" || t == "expired" {
			failure(w, 401, "unauthorized", "invalid token")
			return
		}
		next(w, r)
	}
}

func login(w http.ResponseWriter, r *http.Request) {
	var in struct{ Email, Password string }
	if json.NewDecoder(r.Body).Decode(&in) != nil || in.Password != "correct horse" {
		failure(w, 401, "unauthorized", "wrong email address or password")
		return
	}
	expires := time.Now().Add(15 * time.Minute)
	if strings.HasPrefix(in.Email, "short") {
		expires = time.Now().Add(time.Second) // within what s0 takes for ended
	}
	success(w, 200, map[string]any{
		"access_token": "access-1", "refresh_token": "refresh-1", "expires_at": expires.Unix(), "user": user("", in.Email),
	})
}

func refresh(w http.ResponseWriter, r *http.Request) {
	var in struct {
		RefreshToken string `json:"refresh_token"`
	}
	if json.NewDecoder(r.Body).Decode(&in) != nil || in.RefreshToken != "refresh-1" {
		failure(w, 401, "unauthorized", "invalid refresh token")
		return
	}
	success(w, 200, map[string]any{
		"access_token": "access-2", "refresh_token": "refresh-2", "expires_at": time.Now().Add(15 * time.Minute).Unix(), "user": user("", ""),
	})
}

func user(server, name string) map[string]any {
	return map[string]any{
		"id": "user-1", "email": name + "@" + server, "name": name, "email_verified": true, "is_admin": true,
		"created_at": time.Now(), "updated_at": time.Now(),
	}
}

func team(id, slug string) map[string]any {
	return map[string]any{"id": id, "name": "Team " + slug, "slug": slug, "created_at": time.Now(), "updated_at": time.Now()}
}

func contexts(w http.ResponseWriter, r *http.Request) {
	success(w, 200, map[string]any{"contexts": []any{map[string]any{
		"id": "ctx-of-" + r.PathValue("id"), "type": "cmd", "command": []string{"sleep", "\x1b[2J60"}, "running": true, "paused": false, "created_at": time.Now(),
	}}})
}

func sessions(w http.ResponseWriter, _ *http.Request) {
	success(w, 200, map[string]any{"sessions": []any{session()}})
}

func session() map[string]any {
	return map[string]any{
		"id": "sess-1", "phase": "running", "spec_version": 1, "restart_count": 2, "runtime_generation": 1,
		"created_at": time.Now(), "updated_at": time.Now(), "last_activity_at": time.Now(), "cursor": map[string]any{"earliest": 1, "latest": 9},
		"spec": map[string]any{"command": []string{"old"}, "name": "web", "env": map[string]any{"A": "1"}, "io": map[string]any{"mode": "pipes"}},
	}
}

func createKey(w http.ResponseWriter, r *http.Request) {
	var in map[string]any
	json.NewDecoder(r.Body).Decode(&in)
	success(w, 201, map[string]any{
		"id": "key-1", "name": in["name"], "scope": "team", "roles": in["roles"], "team_id": r.Header.Get("X-Team-ID"),
		"key": "s0_local_secret", "expires_at": time.Time{}, "created_at": time.Now(),
	})
}

// fail answers with the failure that the sandbox's id names.
func fail(w http.ResponseWriter, r *http.Request) {
	switch id := r.PathValue("id"); id {
	case "busy":
		w.Header().Set("Retry-After", "3")
		failure(w, 429, "quota_exceeded", "too many sandboxes")
	case "forbidden":
		failure(w, 403, "forbidden", "insufficient permissions")
	case "proxy":
		w.WriteHeader(502)
		fmt.Fprint(w, "<html>Bad Gateway</html>")
	default:
		failure(w, 404, "not_found", "sandbox not found")
	}
}

// echo answers 400 with the request's body for a message.
func echo(w http.ResponseWriter, r *http.Request) {
	var in any
	json.NewDecoder(r.Body).Decode(&in)
	b, _ := json.Marshal(in)
	failure(w, 400, "bad_request", string(b))
}
