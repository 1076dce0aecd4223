package images

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
	"s0.run/internal/publicnet"
)

// tokenRegistry has one manifest, for whoever brings the token that its realm
// gives to anybody. What a test says of the realm is what the registry says.
type tokenRegistry struct {
	host  string
	realm string
	asked atomic.Int64 // for tokens
	blob  string       // its digest
}

func sum(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func newTokenRegistry(t *testing.T) *tokenRegistry {
	t.Helper()
	r := &tokenRegistry{}
	manifest, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest})
	if err != nil {
		t.Fatal(err)
	}
	r.blob = sum(manifest)
	mux := http.NewServeMux()
	mux.HandleFunc("/token", func(w http.ResponseWriter, q *http.Request) {
		r.asked.Add(1)
		fmt.Fprintf(w, `{"token":"for %s"}`, q.URL.Query().Get("scope"))
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Authorization") != "Bearer for repository:a/b:pull" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test",scope="repository:a/b:pull"`, r.realm))
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", r.blob)
		_, _ = w.Write(manifest)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	r.host = strings.TrimPrefix(s.URL, "http://")
	r.realm = s.URL + "/token"
	return r
}

func (r *tokenRegistry) fetch(t *testing.T) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	im := New(Config{PlainHTTPHosts: []string{r.host}, Log: slog.New(slog.DiscardHandler)})
	b, err := im.resolvedManifest(ctx, newProgress(im.limits), r.host+"/a/b:1")
	return string(b), err
}

// As the big public registries do: nobody is let in without a token, which
// anybody gets.
func TestRegistryThatDemandsAToken(t *testing.T) {
	t.Parallel()
	r := newTokenRegistry(t)
	got, err := r.fetch(t)
	if err != nil || sum([]byte(got)) != r.blob {
		t.Errorf("manifest %q (%v)", got, err)
	}
	if r.asked.Load() == 0 {
		t.Error("nobody asked for a token: the test proves nothing")
	}
}

// The realm is the registry's word. It must not make the node ask itself.
func TestD12_RealmIsBounded(t *testing.T) {
	t.Parallel()
	var reached atomic.Int64
	count := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached.Add(1)
		fmt.Fprint(w, `{"token":"x"}`)
	})
	plain, tls := httptest.NewServer(count), httptest.NewTLSServer(count)
	defer plain.Close()
	defer tls.Close()
	_, port, _ := net.SplitHostPort(plain.Listener.Addr().String())
	_, tlsPort, _ := net.SplitHostPort(tls.Listener.Addr().String())
	for name, realm := range map[string]string{
		"another host without TLS": "http://localhost:" + port + "/token",
		"loopback by name":         "https://localhost:" + tlsPort + "/token",
		"loopback by address":      "https://[::ffff:127.0.0.2]:" + tlsPort + "/token",
		"metadata":                 "https://169.254.169.254/token",
		"no address":               "file:///etc/passwd",
	} {
		r := newTokenRegistry(t)
		r.realm = realm
		if _, err := r.fetch(t); err == nil {
			t.Errorf("%s: a token was taken", name)
		} else if !errors.Is(err, publicnet.ErrNotPublic) && !strings.Contains(err.Error(), "points to") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nor by a redirect of its own token server.
	r := newTokenRegistry(t)
	elsewhere := httptest.NewServer(http.RedirectHandler("http://localhost:"+port+"/token", http.StatusFound))
	defer elsewhere.Close()
	r.realm = elsewhere.URL + "/token"
	if _, err := r.fetch(t); err == nil || !strings.Contains(err.Error(), "points to") {
		t.Errorf("redirected: %v", err)
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached this machine", n)
	}
}

// A token server's answer is bounded: it is read into memory.
func TestD12_EndlessTokenEnds(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"token":"`)
		for range 4 * maxTokenBytes / 1024 {
			if _, err := io.WriteString(w, strings.Repeat("x", 1024)); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	r := newTokenRegistry(t)
	r.realm = s.URL
	if _, err := r.fetch(t); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("an endless token: %v", err)
	}
}

// What a tenant names is asked only when the operator lets images come from there,
// and only at a public address unless the operator has named the very host.
func TestE13_OnlyRegistriesThatTheOperatorNamed(t *testing.T) {
	t.Parallel()
	var reached atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "https://")
	_, port, _ := net.SplitHostPort(host)
	for name, c := range map[string]struct {
		allowed imageref.Registries
		host    string
		want    string
		asked   bool
	}{
		"not named":             {imageref.Public, host, "not one that this node may pull from", false},
		"any public":            {imageref.Registries{"*"}, host, "private network", false},
		"any public, by a name": {imageref.Registries{"*"}, "localhost:" + port, "private network", false},
		"another port":          {imageref.Registries{host[:len(host)-1]}, host, "not one that", false},
		"named":                 {imageref.Registries{host}, host, "can't be pulled now", true}, // its certificate is nobody's
	} {
		before := reached.Load()
		im := New(Config{Registries: c.allowed, Log: slog.New(slog.DiscardHandler)})
		_, err := im.Resolve(t.Context(), c.host+"/a/b:1")
		if err == nil || !strings.Contains(errdefs.From(err).Message, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if reached.Load() != before {
			t.Errorf("%s: the registry was asked", name)
		}
		if dialled := strings.Contains(fmt.Sprint(err), "certificate"); dialled != c.asked {
			t.Errorf("%s: dialled %v: %v", name, dialled, err)
		}
	}
}

// The node's credentials go to their registry, to nobody else.
func TestCredentialsGoToTheirRegistry(t *testing.T) {
	t.Parallel()
	var saw atomic.Value
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		saw.Store(fmt.Sprint(user, ":", password, ok))
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	for registry, want := range map[string]string{host: "node:secrettrue", "other.example": ":false"} {
		im := New(Config{
			PlainHTTPHosts: []string{host}, Log: slog.New(slog.DiscardHandler),
			Credentials: func(asked string) (string, string) {
				if asked == registry {
					return "node", "secret"
				}
				return "", ""
			},
		})
		_, err := im.Resolve(t.Context(), host+"/a/b:1")
		if got := saw.Load(); got != want {
			t.Errorf("credentials of %s: it saw %v, want %v", registry, got, want)
		}
		if !errdefs.Is(err, errdefs.Unprocessable) || strings.Contains(err.Error(), "secret") {
			t.Errorf("refused: %v", err)
		}
	}
}
