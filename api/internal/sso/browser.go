package sso

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/uuid"
	"golang.org/x/oauth2"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// Departure sends a browser to a provider.
type Departure struct {
	URL    string
	Cookie *http.Cookie // which the browser shows when it comes back
}

// Depart begins a sign-in in a browser. Without a return URL the browser is
// answered tokens when it comes back.
func (s *Service) Depart(ctx context.Context, id, returnURL string) (Departure, error) {
	p, err := s.provider(id)
	if err != nil {
		return Departure{}, err
	}
	if returnURL != "" {
		if _, err := s.returns.check(returnURL); err != nil {
			return Departure{}, err
		}
	}
	m, err := p.discover(ctx)
	if err != nil {
		return Departure{}, err
	}
	state, browser := newSecret(), newSecret()
	err = s.store.BeginBrowserLogin(ctx, store.BrowserLogin{
		StateHash: hash(state), BrowserHash: hash(browser), Provider: id, ReturnURL: returnURL,
	}, browserLife)
	if err != nil {
		return Departure{}, err
	}
	return Departure{
		URL: m.client.AuthCodeURL(state, oidc.Nonce(derive(browser, forNonce)),
			oauth2.S256ChallengeOption(derive(browser, forVerifier))),
		Cookie: s.cookie(state, browser, int(browserLife.Seconds())),
	}, nil
}

// cookie binds a sign-in to the browser that began it. Each has its own, so that
// nothing that was in the browser before is believed. Scripts can't read it, and
// over https no other server can set it.
func (s *Service) cookie(state, value string, maxAge int) *http.Cookie {
	secure := s.public.Scheme == "https"
	c := &http.Cookie{
		Name: s.CookieName(state), Value: value, Path: "/auth/oidc/", MaxAge: maxAge,
		HttpOnly: true, Secure: secure, SameSite: http.SameSiteLaxMode, // providers send browsers back from another site
	}
	if secure {
		c.Path = "/" // what the name's prefix asks for
	}
	return c
}

// CookieName is the name of a sign-in's cookie.
func (s *Service) CookieName(state string) string {
	name := "s0-login-" + hex.EncodeToString(hash(state)[:8])
	if s.public.Scheme == "https" {
		return "__Host-" + name
	}
	return name
}

// EndCookie makes the browser forget a sign-in's cookie.
func (s *Service) EndCookie(state string) *http.Cookie { return s.cookie(state, "", -1) }

// Arrival is what a browser brings back from a provider.
type Arrival struct {
	State  string
	Cookie string // value of the cookie named [Service.CookieName]; empty: it has none
	Code   string
	Issuer string // of who sends it, where the provider says so (RFC 9207)
	Error  string // instead of a code
	Reason string // of the error
}

// Outcome is who came back, and where they go from here.
type Outcome struct {
	User uuid.UUID
	page string
	code string
}

// Page is where the browser is sent, with a code or with what went wrong; empty
// when it is answered instead.
func (o Outcome) Page(err error) string {
	switch {
	case o.page == "":
		return ""
	case err != nil:
		e := errdefs.From(err)
		return with(o.page, url.Values{paramError: {e.Code}, paramMessage: {e.Message}})
	}
	return with(o.page, url.Values{paramCode: {o.code}})
}

// Arrive finishes a sign-in in a browser, once. Outcome knows its page also when
// there is an error, unless it is about the sign-in's being none.
func (s *Service) Arrive(ctx context.Context, id string, a Arrival) (out Outcome, err error) {
	p, err := s.provider(id)
	if err != nil {
		return out, err
	}
	if !validSecret(a.State) || !validSecret(a.Cookie) {
		return out, errStale
	}
	out.page, err = s.store.TakeBrowserLogin(ctx, store.BrowserLogin{StateHash: hash(a.State), BrowserHash: hash(a.Cookie), Provider: id})
	if errdefs.Is(err, errdefs.NotFound) {
		return out, errStale
	}
	if err != nil {
		return out, err
	}
	if out.User, err = s.arrived(ctx, p, a); err != nil || out.page == "" {
		return out, err
	}
	out.code = newSecret()
	return out, s.store.AddLoginCode(ctx, store.LoginCode{Hash: hash(out.code), User: out.User, ReturnURL: out.page}, codeLife)
}

// arrived finds out who is back.
func (s *Service) arrived(ctx context.Context, p *provider, a Arrival) (uuid.UUID, error) {
	if a.Issuer != "" && a.Issuer != p.Issuer {
		return uuid.Nil, p.untrue(fmt.Errorf("it came from %.200q", a.Issuer))
	}
	if err := p.departed(a); err != nil {
		return uuid.Nil, err
	}
	m, err := p.discover(ctx)
	if err != nil {
		return uuid.Nil, err
	}
	token, err := p.redeem(ctx, m, a.Code, derive(a.Cookie, forVerifier))
	if err != nil {
		return uuid.Nil, err
	}
	account, err := p.account(ctx, m, token, derive(a.Cookie, forNonce))
	if err != nil {
		return uuid.Nil, err
	}
	user, err := s.store.Identify(ctx, account, p.provision())
	if err == nil {
		s.noteSignIn(p, user, "browser")
	}
	return user, err
}

const maxCodeBytes = 4 << 10

// departed is what a provider's refusal means.
func (p *provider) departed(a Arrival) error {
	cause := fmt.Errorf("provider %s sent back %.100q: %.300q", p.ID, a.Error, a.Reason)
	switch {
	case a.Error == "access_denied" || a.Error == "login_required" || a.Error == "consent_required" || a.Error == "interaction_required":
		return errDenied.WithCause(cause)
	case a.Error == "temporarily_unavailable" || a.Error == "server_error":
		return p.unavailable(cause)
	case a.Error != "":
		return p.refused(http.StatusBadRequest, a.Error, a.Reason)
	case a.Code == "" || len(a.Code) > maxCodeBytes:
		return errStale
	}
	return nil
}

// Exchange ends a code that a page was given, and answers who signed in.
func (s *Service) Exchange(ctx context.Context, code, returnURL string) (uuid.UUID, error) {
	if !validSecret(code) {
		return uuid.Nil, errCode
	}
	user, err := s.store.TakeLoginCode(ctx, hash(code), returnURL)
	if errdefs.Is(err, errdefs.NotFound) {
		return uuid.Nil, errCode
	}
	return user, err
}

var errCode = errdefs.New(errdefs.Unauthenticated, "the login code has ended, was used, or is another page's: begin again")
