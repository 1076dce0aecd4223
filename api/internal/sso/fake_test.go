package sso

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"s0.run/api/internal/store"
	"s0.run/internal/s0test"
)

// key signs the fake's tokens; making one takes long.
var key = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

const secret = "top secret/+ %"

// fake is a provider that lies as a test wants it to. The real one is in package
// api's tests.
type fake struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	document map[string]any // discovery; nil: as it should be
	nonce    string         // of the sign-in under way
	claims   jwt.MapClaims  // put over those of a good ID token
	info     map[string]any // user info
	signed   func(jwt.MapClaims) string
	token    http.HandlerFunc // instead of a good answer
	device   string           // device authorization's answer
	asked    map[string]int
	auth     []string // the token endpoint's Authorization headers
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{t: t, asked: map[string]int{}, claims: jwt.MapClaims{}}
	f.signed = func(c jwt.MapClaims) string { return sign(t, jwt.SigningMethodRS256, c, key()) }
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func sign(t *testing.T, method jwt.SigningMethod, c jwt.MapClaims, with any) string {
	t.Helper()
	token := jwt.NewWithClaims(method, c)
	token.Header["kid"] = "k"
	s, err := token.SignedString(with)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// set changes the fake.
func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fake) count(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[path]
}

// ServeHTTP implements http.Handler.
func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[r.URL.Path]++
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		f.discover(w)
	case "/keys":
		k := key().PublicKey
		e := base64.RawURLEncoding.EncodeToString(big.NewInt(int64(k.E)).Bytes())
		json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "kid": "k", "use": "sig", "alg": "RS256", "n": base64.RawURLEncoding.EncodeToString(k.N.Bytes()), "e": e,
		}}})
	case "/token":
		f.auth = append(f.auth, r.Header.Get("Authorization"))
		if f.token != nil {
			f.token(w, r)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"access_token": "at", "token_type": "Bearer", "id_token": f.signed(f.idToken())})
	case "/userinfo":
		json.NewEncoder(w).Encode(f.info)
	case "/device":
		w.Write([]byte(f.device))
	default:
		http.NotFound(w, r)
	}
}

func (f *fake) discover(w http.ResponseWriter) {
	doc := map[string]any{
		"issuer": f.URL, "authorization_endpoint": f.URL + "/auth", "token_endpoint": f.URL + "/token", "jwks_uri": f.URL + "/keys",
		"userinfo_endpoint": f.URL + "/userinfo", "device_authorization_endpoint": f.URL + "/device",
		"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
	}
	for k, v := range f.document {
		doc[k] = v
	}
	json.NewEncoder(w).Encode(doc)
}

func (f *fake) idToken() jwt.MapClaims {
	now := time.Now()
	c := jwt.MapClaims{
		"iss": f.URL, "aud": "client", "sub": "subject", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
		"nonce": f.nonce, "email": "a@example.com", "email_verified": true, "name": "A",
	}
	for k, v := range f.claims {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

// service signs people in through the fake.
func (f *fake) service() *Service {
	f.t.Helper()
	db, err := store.Open(f.t.Context(), s0test.Postgres(f.t))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(db.Close)
	_, err = db.CreateFirstAdmin(f.t.Context(), store.FirstAdmin{Email: "admin@example.com", Name: "A", TeamName: "T", TeamSlug: "default", RegionID: "local"})
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := New(Config{Settings: f.settings(), PublicURL: "https://s0.example.com", Store: db, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fake) settings() Settings {
	f.t.Helper()
	file := filepath.Join(f.t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return Settings{Providers: []Provider{{
		ID: "fake", Issuer: f.URL, ClientID: "client", ClientSecretFile: file, EmailDomains: []string{"Example.com"}, Device: true,
		Provision: &Provision{Team: "default"},
	}}}
}

// arrive goes through a whole sign-in in a browser; the fake's tokens have the
// right nonce unless it was told another.
func (f *fake) arrive(s *Service) error {
	f.t.Helper()
	d, err := s.Depart(f.t.Context(), "fake", "")
	if err != nil {
		return err
	}
	u, err := url.Parse(d.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	state := u.Query().Get("state")
	f.set(func(f *fake) { f.nonce = u.Query().Get("nonce") })
	out, err := s.Arrive(f.t.Context(), "fake", Arrival{State: state, Cookie: d.Cookie.Value, Code: "code"})
	if err == nil && out.User.String() == "" {
		f.t.Error("nobody has signed in")
	}
	return err
}
