// Package sso signs people in through OpenID providers: in a browser
// (authorization code with PKCE) or on a device that has none (device
// authorization, RFC 8628).
//
// It says which user somebody is; what a session is made of is package identity's.
// What is under way lives in the database, so that any replica may finish it;
// only what providers publish about themselves is kept in memory. Of a sign-in
// the database has hashes, and what its secrets can open: nonce and PKCE verifier
// follow from the browser's cookie, and a provider's device code is sealed with
// the id that only the device has. The package starts no goroutine, asks a
// provider only when somebody signs in through it, and never sends a token or a
// code to an address that the operator has not named.
package sso

import (
	"cmp"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	// browserLife is how long somebody may take at the provider: they may have to
	// find a second factor, or be asked for a new password.
	browserLife = 10 * time.Minute
	// codeLife is how long a page may take to exchange a code that it was given.
	codeLife = time.Minute
	// maxDeviceLife bounds what a provider says of its device codes.
	maxDeviceLife = 30 * time.Minute

	callTimeout   = 10 * time.Second // of one request to a provider: somebody waits
	providerBytes = 1 << 20          // of one answer; key sets and discovery documents are a few KiB
	fresh         = time.Hour        // that what a provider says of itself is believed; its keys are looked up as needed
	pause         = 5 * time.Second  // before a provider that did not answer is asked about itself again
)

// Config names what the Service works with.
type Config struct {
	Settings  Settings
	PublicURL string // where browsers find this server unless the settings say
	Store     *store.Store
	Log       *slog.Logger
}

// Service is safe for concurrent use.
type Service struct {
	store     *store.Store
	log       *slog.Logger
	public    *url.URL
	returns   returnURLs
	providers []*provider // in the operator's order
}

// New makes a Service. Providers need not be up.
func New(cfg Config) (*Service, error) {
	if err := cfg.Settings.Check(); err != nil {
		return nil, err
	}
	public, err := parsePublicURL(cmp.Or(cfg.Settings.PublicURL, cfg.PublicURL))
	if err != nil {
		return nil, err
	}
	s := &Service{store: cfg.Store, log: cfg.Log, public: public}
	if s.returns, err = newReturnURLs(public, cfg.Settings.ReturnURLs); err != nil {
		return nil, err
	}
	client := newHTTPClient()
	for _, settings := range cfg.Settings.Providers {
		p, err := newProvider(settings, s.callback(settings.ID), client)
		if err != nil {
			return nil, err
		}
		s.providers = append(s.providers, p)
	}
	return s, nil
}

// callback is where a provider sends browsers back.
func (s *Service) callback(id string) string {
	return strings.TrimSuffix(s.public.String(), "/") + "/auth/oidc/" + id + "/callback"
}

// PublicHost is the name under which browsers find this server.
func (s *Service) PublicHost() string { return s.public.Hostname() }

// A Method is one way to sign in.
type Method struct {
	ID, Name string
	Device   bool // also on a device without a browser
}

// Methods lists the providers.
func (s *Service) Methods() []Method {
	var list []Method
	for _, p := range s.providers {
		list = append(list, Method{ID: p.ID, Name: p.Name, Device: p.Device})
	}
	return list
}

// Known fails for a provider that there is not.
func (s *Service) Known(id string) error {
	_, err := s.provider(id)
	return err
}

func (s *Service) provider(id string) (*provider, error) {
	for _, p := range s.providers {
		if p.ID == id {
			return p, nil
		}
	}
	return nil, errdefs.New(errdefs.NotFound, "there is no such provider")
}

// newHTTPClient makes the client for all providers. It follows no redirect: a
// provider names its endpoints itself.
func newHTTPClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxResponseHeaderBytes = 64 << 10
	t.MaxConnsPerHost = 16
	return &http.Client{
		Transport: limited{t}, Timeout: callTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// limited bounds answers.
type limited struct{ next http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, providerBytes)
	}
	return resp, err
}

func (s *Service) noteSignIn(p *provider, user uuid.UUID, how string) {
	s.log.Info("signed in through a provider", "provider", p.ID, "user", user, "how", how)
}
