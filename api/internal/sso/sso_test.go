package sso

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"s0.run/internal/errdefs"
)

// wantKind checks an error's kind, and that a tenant learns no more than a few
// words of it.
func wantKind(t *testing.T, what string, err error, kind errdefs.Kind) {
	t.Helper()
	if !errdefs.Is(err, kind) {
		t.Errorf("%s: %v, want %d", what, err, kind.HTTPStatus())
		return
	}
	if e := errdefs.From(err); strings.Contains(e.Message, "secret") || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "at-secret") {
		t.Errorf("%s: the error gives away %v", what, err)
	}
}

func TestASignIn(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := f.service()
	if err := f.arrive(s); err != nil {
		t.Fatal(err)
	}
	// The secret goes as the standard says.
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("client:"+url.QueryEscape(secret)))
	if f.auth[0] != want {
		t.Errorf("Authorization %q, want %q", f.auth[0], want)
	}
	if n := f.count("/.well-known/openid-configuration"); n != 1 {
		t.Errorf("the provider was asked about itself %d times", n)
	}
}

// A05: a token that is not exactly what was asked for signs nobody in.
func TestA05_FalseIDTokens(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := f.service()
	past := time.Now().Add(-time.Hour).Unix()
	for name, claims := range map[string]jwt.MapClaims{
		"another nonce": {"nonce": "another"}, "no nonce": {"nonce": nil}, "another audience": {"aud": "other"}, "another issuer": {"iss": "https://evil.test"},
		"expired": {"exp": past}, "no subject": {"sub": nil}, "long subject": {"sub": strings.Repeat("x", 300)}, "odd subject": {"sub": "a\x00b"},
		"not yet": {"nbf": time.Now().Add(time.Hour).Unix()},
	} {
		f.set(func(f *fake) { f.claims = claims })
		wantKind(t, name, f.arrive(s), errdefs.BadGateway)
	}
	f.set(func(f *fake) { f.claims = nil })
	for name, signed := range map[string]func(jwt.MapClaims) string{
		"unsigned": func(c jwt.MapClaims) string {
			return sign(t, jwt.SigningMethodNone, c, jwt.UnsafeAllowNoneSignatureType)
		},
		"signed by us": func(c jwt.MapClaims) string { return sign(t, jwt.SigningMethodHS256, c, []byte(secret)) },
		"signed with the public key": func(c jwt.MapClaims) string {
			return sign(t, jwt.SigningMethodHS256, c, x509.MarshalPKCS1PublicKey(&key().PublicKey))
		},
		"changed":     func(c jwt.MapClaims) string { return "x" + sign(t, jwt.SigningMethodRS256, c, key()) },
		"none at all": func(jwt.MapClaims) string { return "" },
		"no token":    func(jwt.MapClaims) string { return "at-secret" },
		"cut signature": func(c jwt.MapClaims) string {
			return strings.TrimRight(sign(t, jwt.SigningMethodRS256, c, key()), "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_-")
		},
	} {
		f.set(func(f *fake) { f.signed = signed })
		wantKind(t, name, f.arrive(s), errdefs.BadGateway)
	}
}

func TestWhatIsBelievedOfAnAddress(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := f.service()
	for name, c := range map[string]struct {
		claims jwt.MapClaims
		info   map[string]any
		kind   errdefs.Kind
		ok     bool
	}{
		"verified":                {claims: jwt.MapClaims{"sub": "1", "email": "one@example.com"}, ok: true},
		"verified, in quotes":     {claims: jwt.MapClaims{"sub": "2", "email": "two@example.com", "email_verified": "true"}, ok: true},
		"unverified":              {claims: jwt.MapClaims{"sub": "3", "email": "three@example.com", "email_verified": false}, info: map[string]any{"sub": "3"}, kind: errdefs.PermissionDenied},
		"no word":                 {claims: jwt.MapClaims{"sub": "4", "email": "four@example.com", "email_verified": nil}, info: map[string]any{"sub": "4"}, kind: errdefs.PermissionDenied},
		"odd word":                {claims: jwt.MapClaims{"sub": "5", "email": "five@example.com", "email_verified": "yes"}, info: map[string]any{"sub": "5"}, kind: errdefs.PermissionDenied},
		"user info says it":       {claims: jwt.MapClaims{"sub": "6", "email": nil}, info: map[string]any{"sub": "6", "email": "six@example.com", "email_verified": true}, ok: true},
		"another's user info":     {claims: jwt.MapClaims{"sub": "7", "email": nil}, info: map[string]any{"sub": "6", "email": "seven@example.com", "email_verified": true}, kind: errdefs.BadGateway},
		"two halves":              {claims: jwt.MapClaims{"sub": "8", "email": "eight@example.com", "email_verified": false}, info: map[string]any{"sub": "8", "email": "other@example.com"}, kind: errdefs.PermissionDenied},
		"another domain":          {claims: jwt.MapClaims{"sub": "9", "email": "nine@example.org"}, kind: errdefs.PermissionDenied},
		"a domain below":          {claims: jwt.MapClaims{"sub": "10", "email": "ten@sub.example.com"}, kind: errdefs.PermissionDenied},
		"two at signs":            {claims: jwt.MapClaims{"sub": "11", "email": "a@evil.test@example.com"}, kind: errdefs.PermissionDenied},
		"a name and an address":   {claims: jwt.MapClaims{"sub": "12", "email": "X <x@example.com>"}, kind: errdefs.PermissionDenied},
		"letters that look alike": {claims: jwt.MapClaims{"sub": "13", "email": "аdmin@example.com"}, kind: errdefs.PermissionDenied},
		"a domain in capitals":    {claims: jwt.MapClaims{"sub": "14", "email": "x@EXAMPLE.COM"}, ok: true},
		"the first user":          {claims: jwt.MapClaims{"sub": "15", "email": "ADMIN@example.com"}, ok: true},
	} {
		f.set(func(f *fake) { f.claims, f.info = c.claims, c.info })
		if err := f.arrive(s); c.ok && err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !c.ok {
			wantKind(t, name, err, c.kind)
		}
	}
}

// What a provider says of itself is held to what the operator said of it.
func TestDiscoveryIsNotBelievedBlindly(t *testing.T) {
	t.Parallel()
	for name, document := range map[string]map[string]any{
		"another issuer": {"issuer": "https://evil.test"}, "no token endpoint": {"token_endpoint": ""}, "a file": {"jwks_uri": "file:///etc/passwd"},
		"a huge document": {"padding": strings.Repeat("x", providerBytes)}, "odd types": {"token_endpoint": 7},
	} {
		f := newFake(t)
		f.document = document
		p, err := newProvider(f.settings().Providers[0], "https://s0.example.com/cb", newHTTPClient())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.discover(t.Context()); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := &provider{Provider: Provider{Issuer: "https://login.example.com"}}
	if err := p.checkEndpoint("http://login.example.com/token"); err == nil {
		t.Error("an https issuer may send our secret over http")
	}
}

// A provider that is away is not asked by everybody at once, is asked again, and
// what it said before holds meanwhile.
func TestDiscoveryIsRemembered(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	p, err := newProvider(f.settings().Providers[0], "https://s0.example.com/cb", newHTTPClient())
	if err != nil {
		t.Fatal(err)
	}
	const path = "/.well-known/openid-configuration"
	f.set(func(f *fake) { f.document = map[string]any{"issuer": ""} })
	for range 5 {
		if _, err := p.discover(t.Context()); !errdefs.Is(err, errdefs.Unavailable) {
			t.Fatal(err)
		}
	}
	if n := f.count(path); n != 1 {
		t.Errorf("asked %d times within the pause", n)
	}
	f.set(func(f *fake) { f.document = nil })
	p.at = p.at.Add(-pause)
	if _, err := p.discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Close()
	p.at = p.at.Add(-fresh)
	if _, err := p.discover(t.Context()); err != nil {
		t.Errorf("while it is away: %v", err)
	}
}

// What a token endpoint answers becomes the right word; what it says in detail is
// not the tenant's.
func TestRefusalsOfTheTokenEndpoint(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := f.service()
	says := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			w.Write([]byte(body))
		}
	}
	for name, c := range map[string]struct {
		token http.HandlerFunc
		kind  errdefs.Kind
	}{
		"stale code":   {says(400, `{"error":"invalid_grant","error_description":"secret detail"}`), errdefs.InvalidArgument},
		"wrong client": {says(401, `{"error":"invalid_client"}`), errdefs.BadGateway},
		"down":         {says(500, `<html>at-secret</html>`), errdefs.Unavailable},
		"busy":         {says(429, ``), errdefs.Unavailable},
		"garbage":      {says(200, `at-secret`), errdefs.Unavailable},
		"endless":      {says(200, `{"access_token":"`+strings.Repeat("x", providerBytes)+`"}`), errdefs.Unavailable},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.test/", http.StatusTemporaryRedirect)
		}, errdefs.BadGateway},
		"without a word": {says(400, ``), errdefs.BadGateway},
	} {
		f.set(func(f *fake) { f.token = c.token })
		wantKind(t, name, f.arrive(s), c.kind)
	}
}

// The provider's wish to be asked less often is the client's duty from then on.
func TestADeviceIsSlowedDown(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := f.service()
	f.device = `{"device_code":"dc","user_code":"U","verification_uri":"https://login.example.com/d","expires_in":600,"interval":1}`
	d, err := s.StartDevice(t.Context(), "fake")
	if err != nil || d.Interval != time.Second {
		t.Fatalf("%+v, %v", d, err)
	}
	f.set(func(f *fake) {
		f.token = func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			json.NewEncoder(w).Encode(map[string]string{"error": "slow_down"})
			if r.FormValue("device_code") != "dc" || r.FormValue("grant_type") != deviceGrant {
				t.Errorf("asked for %v", r.Form)
			}
		}
	})
	deadline := time.Now().Add(time.Minute)
	for f.count("/token") == 0 { // the first look is due after a second of the database's
		state, err := s.PollDevice(t.Context(), "fake", d.ID)
		if err != nil || state.Status != SlowDown || time.Now().After(deadline) {
			t.Fatalf("%+v, %v", state, err)
		}
		if f.count("/token") == 1 && state.Interval != 6*time.Second {
			t.Errorf("the interval is %s", state.Interval)
		}
	}
	if state, err := s.PollDevice(t.Context(), "fake", d.ID); err != nil || state.Status != SlowDown || f.count("/token") != 1 {
		t.Errorf("%+v, %v: it was asked again", state, err)
	}
}

func TestDeviceAuthorizationsAreChecked(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := f.service()
	for name, answer := range map[string]string{
		"no code": `{"user_code":"U","verification_uri":"https://x.test","expires_in":60}`, "not a page": `{"device_code":"d","user_code":"U","verification_uri":"javascript:x","expires_in":60}`,
		"escapes":      `{"device_code":"d","user_code":"\u001b[2J","verification_uri":"https://x.test","expires_in":60}`,
		"over":         `{"device_code":"d","user_code":"U","verification_uri":"https://x.test","expires_in":0}`,
		"long code":    `{"device_code":"` + strings.Repeat("d", 3000) + `","user_code":"U","verification_uri":"https://x.test","expires_in":60}`,
		"odd complete": `{"device_code":"d","user_code":"U","verification_uri":"https://x.test","verification_uri_complete":"ftp://x.test","expires_in":60}`,
	} {
		f.set(func(f *fake) { f.device = answer })
		_, err := s.StartDevice(t.Context(), "fake")
		wantKind(t, name, err, errdefs.BadGateway)
	}
}

// A20: over https the cookie is this server's alone.
func TestA20_TheCookieOverHTTPS(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := f.service()
	d, err := s.Depart(t.Context(), "fake", "")
	if err != nil {
		t.Fatal(err)
	}
	c := d.Cookie
	if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
		t.Errorf("cookie %+v", c)
	}
	if err := c.Valid(); err != nil {
		t.Error(err)
	}
}
