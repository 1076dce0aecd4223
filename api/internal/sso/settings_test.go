package sso

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettingsAreChecked(t *testing.T) {
	t.Parallel()
	good := func() Provider {
		return Provider{ID: "corp", Issuer: "https://login.example.com/realm", ClientID: "c", EmailDomains: []string{"example.com"}}
	}
	if err := (Settings{Providers: []Provider{good()}}).Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Provider){
		"id":                 func(p *Provider) { p.ID = "Corp/x" },
		"taken":              func(p *Provider) { p.ID = "builtin" },
		"want https":         func(p *Provider) { p.Issuer = "http://login.example.com" },
		"issuer":             func(p *Provider) { p.Issuer = "login.example.com" },
		"client-id":          func(p *Provider) { p.ClientID = "" },
		"email-domains":      func(p *Provider) { p.EmailDomains = nil },
		"no domain":          func(p *Provider) { p.EmailDomains = []string{"*.example.com"} },
		"openid":             func(p *Provider) { p.Scopes = []string{"email"} },
		"team is required":   func(p *Provider) { p.Provision = &Provision{} },
		"there is no role":   func(p *Provider) { p.Provision = &Provision{Team: "t", Role: "root"} },
		"client-secret-file": func(p *Provider) { p.ClientSecretFile = "secret" },
	} {
		p := good()
		change(&p)
		if err := (Settings{Providers: []Provider{p}}).Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if err := (Settings{Providers: []Provider{good(), good()}}).Check(); err == nil {
		t.Error("two providers have one id")
	}
}

func TestASecretIsNobodyElses(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	for mode, want := range map[os.FileMode]bool{0o600: true, 0o640: false, 0o604: false} {
		if err := os.WriteFile(path, []byte(" s\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		got, err := readSecret(path)
		if (err == nil) != want || want && string(got) != "s" {
			t.Errorf("mode %o: %q, %v", mode, string(got), err)
		}
	}
}

// FuzzReturnURL: whatever is let through leads to a page that the operator knows.
func FuzzReturnURL(f *testing.F) {
	public, err := url.Parse("https://s0.example.com")
	if err != nil {
		f.Fatal(err)
	}
	r, err := newReturnURLs(public, []string{"https://console.test/in"})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		"https://s0.example.com/x?y=1", "https://console.test/in", "https://console.test@evil.test/in", "https://evil.test\\@s0.example.com", "//evil.test",
		"https://s0.example.com:443/", "https://s0.example.com.evil.test/", "https://[::1]/", "https://s0.example.com%2eevil.test/", "HTTPS://S0.EXAMPLE.COM",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if _, err := r.check(raw); err != nil {
			return
		}
		lower := strings.ToLower(raw)
		for _, known := range []string{"https://s0.example.com", "https://console.test"} {
			rest, ok := strings.CutPrefix(lower, known)
			rest = strings.TrimPrefix(rest, ":443")
			if ok && (rest == "" || strings.ContainsRune("/?:", rune(rest[0]))) {
				return
			}
		}
		t.Errorf("%q was let through", raw)
	})
}

func TestSealsOpenWithTheirSecretAlone(t *testing.T) {
	t.Parallel()
	a, b := newSecret(), newSecret()
	sealed := seal(a, "code")
	if got, err := unseal(a, sealed); err != nil || got != "code" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := unseal(b, sealed); err == nil {
		t.Error("another secret opens it")
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := unseal(a, sealed); err == nil {
		t.Error("it opens after a change")
	}
	if _, err := unseal(a, nil); err == nil {
		t.Error("nothing opens")
	}
	if derive(a, forNonce) == derive(a, forVerifier) || derive(a, forNonce) == derive(b, forNonce) || !validSecret(a) {
		t.Error("what follows from secrets does not differ")
	}
}
