package sso

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"s0.run/api/internal/auth"
	"s0.run/api/internal/store"
)

// Settings are the operator's, as their file has them.
type Settings struct {
	// PublicURL is where browsers find this server. It is the beginning of the
	// callback URLs that providers must know: <public-url>/auth/oidc/<id>/callback.
	PublicURL string `yaml:"public-url"`
	// ReturnURLs are pages, beside those of this server itself, that may sign people
	// in and receive a code for it. A page's query is its own.
	ReturnURLs []string   `yaml:"return-urls"`
	Providers  []Provider `yaml:"providers"`
}

// Provider is one provider's settings.
type Provider struct {
	ID               string     `yaml:"id"`   // part of the callback URL
	Name             string     `yaml:"name"` // for people; defaults to the id
	Issuer           string     `yaml:"issuer"`
	ClientID         string     `yaml:"client-id"`
	ClientSecretFile string     `yaml:"client-secret-file"` // none: a public client
	Scopes           []string   `yaml:"scopes"`             // defaults to openid, email, profile
	EmailDomains     []string   `yaml:"email-domains"`      // whose addresses it speaks for; "*": all
	Device           bool       `yaml:"device"`             // sign-in on devices without a browser
	Provision        *Provision `yaml:"provision"`          // what becomes of who is new; absent: they are refused
}

// Provision says where new users go.
type Provision struct {
	Team string `yaml:"team"` // slug
	Role string `yaml:"role"` // defaults to developer
}

var (
	idPattern     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
	domainPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

const (
	maxProviders   = 32
	maxSecretBytes = 4 << 10
)

// Check refuses settings that can't be meant.
func (s Settings) Check() error {
	if len(s.Providers) > maxProviders {
		return fmt.Errorf("%d OpenID providers: want at most %d", len(s.Providers), maxProviders)
	}
	seen := map[string]bool{"builtin": true}
	for _, p := range s.Providers {
		if seen[p.ID] {
			return fmt.Errorf("OpenID provider %q: its id is taken", p.ID)
		}
		seen[p.ID] = true
		if err := p.check(); err != nil {
			return fmt.Errorf("OpenID provider %q: %w", p.ID, err)
		}
	}
	return nil
}

func (p Provider) check() error {
	if !idPattern.MatchString(p.ID) {
		return errors.New("id: want up to 32 lower-case letters, digits and dashes")
	}
	if err := checkIssuer(p.Issuer); err != nil {
		return err
	}
	if p.ClientID == "" {
		return errors.New("client-id is required")
	}
	if p.ClientSecretFile != "" && !filepath.IsAbs(p.ClientSecretFile) {
		return fmt.Errorf("client-secret-file %q: want an absolute path", p.ClientSecretFile)
	}
	if len(p.Scopes) > 0 && !slices.Contains(p.Scopes, "openid") {
		return errors.New("scopes: openid must be among them")
	}
	if len(p.EmailDomains) == 0 {
		return errors.New("email-domains is required: the domains whose addresses this provider speaks for, or \"*\"")
	}
	for _, d := range p.EmailDomains {
		if d != "*" && !domainPattern.MatchString(strings.ToLower(d)) {
			return fmt.Errorf("email-domains: %q is no domain", d)
		}
	}
	return p.Provision.check()
}

func (p *Provision) check() error {
	switch {
	case p == nil:
		return nil
	case p.Team == "":
		return errors.New("provision: team is required")
	case p.Role != "" && !auth.ValidRole(p.Role):
		return fmt.Errorf("provision: there is no role %q", p.Role)
	}
	return nil
}

func (p Provider) provision() store.Provision {
	if p.Provision == nil {
		return store.Provision{}
	}
	role := p.Provision.Role
	if role == "" {
		role = auth.RoleDeveloper
	}
	return store.Provision{Team: p.Provision.Team, Role: role}
}

// checkIssuer refuses what could be read and changed on its way.
func checkIssuer(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("issuer %q: want https://host/path", raw)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return fmt.Errorf("issuer %q: want https; http only on this machine", raw)
	}
	return nil
}

func loopback(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

func parsePublicURL(raw string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(raw, "/"))
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.Path != "" {
		return nil, fmt.Errorf("public URL %q: want http://host or https://host", raw)
	}
	return u, nil
}

// readSecret reads a client's secret. Nobody else may.
func readSecret(path string) (store.Secret, error) {
	if path == "" {
		return "", nil
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", err
	case info.Mode().Perm()&0o077 != 0:
		return "", fmt.Errorf("client secret %s: others may read it (mode %04o); chmod 600 it", path, info.Mode().Perm())
	case info.Size() > maxSecretBytes:
		return "", fmt.Errorf("client secret %s: longer than %d bytes", path, maxSecretBytes)
	}
	b, err := os.ReadFile(path)
	secret := strings.TrimSpace(string(b))
	if err == nil && secret == "" {
		err = fmt.Errorf("client secret %s: empty", path)
	}
	return store.Secret(secret), err
}
