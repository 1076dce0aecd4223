package sso

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// provider is one OpenID provider and what it says of itself.
type provider struct {
	Provider
	secret   store.Secret
	callback string
	http     *http.Client

	turn chan struct{} // whoever has put something in may look and change what follows
	meta *metadata     // nil: never seen
	at   time.Time     // when it was seen, or the try failed
	err  error         // of the last try
}

// metadata is a provider's discovery document, made useful.
type metadata struct {
	oidc     *oidc.Provider
	verifier *oidc.IDTokenVerifier
	client   oauth2.Config
	userInfo bool
}

func newProvider(settings Provider, callback string, client *http.Client) (*provider, error) {
	secret, err := readSecret(settings.ClientSecretFile)
	if err != nil {
		return nil, fmt.Errorf("OpenID provider %q: %w", settings.ID, err)
	}
	if settings.Name == "" {
		settings.Name = settings.ID
	}
	if len(settings.Scopes) == 0 {
		settings.Scopes = []string{oidc.ScopeOpenID, "email", "profile"}
	}
	return &provider{Provider: settings, secret: secret, callback: callback, http: client, turn: make(chan struct{}, 1)}, nil
}

// discover answers what the provider says of itself. It is asked again now and
// then; while it does not answer, what it said before holds.
func (p *provider) discover(ctx context.Context) (*metadata, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, p.unavailable(ctx.Err())
	}
	age := time.Since(p.at)
	if p.meta != nil && age < fresh {
		return p.meta, nil
	}
	if p.err == nil || age >= pause {
		meta, err := p.fetch(context.WithoutCancel(ctx)) // others want to know too; the client has a timeout
		p.at, p.err = time.Now(), err
		if err == nil {
			p.meta = meta
		}
	}
	if p.meta == nil {
		return nil, p.unavailable(p.err)
	}
	return p.meta, nil
}

func (p *provider) unavailable(cause error) error {
	return errdefs.New(errdefs.Unavailable, "the provider %s does not answer", p.ID).
		WithRetryAfter(pause).WithCause(fmt.Errorf("provider %s: %w", p.ID, cause))
}

// fetch asks the provider about itself.
func (p *provider) fetch(ctx context.Context) (*metadata, error) {
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.http), p.Issuer)
	if err != nil {
		return nil, trim(err)
	}
	var more struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
		Keys    string   `json:"jwks_uri"`
	}
	if err := found.Claims(&more); err != nil {
		return nil, fmt.Errorf("discovery document: %w", trim(err))
	}
	endpoint := found.Endpoint()
	for _, u := range []string{endpoint.AuthURL, endpoint.TokenURL, more.Keys} {
		if err := p.checkEndpoint(u); err != nil {
			return nil, err
		}
	}
	for _, u := range []string{endpoint.DeviceAuthURL, found.UserInfoEndpoint()} {
		if err := p.checkEndpoint(u); u != "" && err != nil {
			return nil, err
		}
	}
	endpoint.AuthStyle = p.authStyle(more.Methods)
	return &metadata{
		oidc: found, verifier: found.Verifier(&oidc.Config{ClientID: p.ClientID}), userInfo: found.UserInfoEndpoint() != "",
		client: oauth2.Config{
			ClientID: p.ClientID, ClientSecret: string(p.secret), Endpoint: endpoint, RedirectURL: p.callback, Scopes: p.Scopes,
		},
	}, nil
}

// checkEndpoint holds what a provider names to what its issuer was held to.
func (p *provider) checkEndpoint(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && strings.HasPrefix(p.Issuer, "http://")) {
		return fmt.Errorf("the discovery document names an endpoint %.200q", raw)
	}
	return nil
}

// authStyle is how the provider takes our secret: the standard's default unless
// it takes only the other.
func (p *provider) authStyle(methods []string) oauth2.AuthStyle {
	if p.secret == "" || len(methods) > 0 && !slices.Contains(methods, "client_secret_basic") {
		return oauth2.AuthStyleInParams
	}
	return oauth2.AuthStyleInHeader
}

// redeem exchanges a code for tokens.
func (p *provider) redeem(ctx context.Context, m *metadata, code, verifier string) (*oauth2.Token, error) {
	token, err := m.client.Exchange(oidc.ClientContext(ctx, p.http), code, oauth2.VerifierOption(verifier))
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		return nil, p.refused(refused.Response.StatusCode, refused.ErrorCode, refused.ErrorDescription)
	}
	if err != nil {
		return nil, p.unavailable(trim(err))
	}
	return token, nil
}

// refused is what a token endpoint's error means to who signs in. What it says
// goes to the log alone.
func (p *provider) refused(status int, code, description string) error {
	cause := fmt.Errorf("provider %s answered %d %.100q: %.300q", p.ID, status, code, description)
	switch {
	case status >= 500 || status == http.StatusTooManyRequests:
		return p.unavailable(cause)
	case code == "invalid_grant":
		return errStale.WithCause(cause)
	case code == "access_denied":
		return errDenied.WithCause(cause)
	}
	return errdefs.New(errdefs.BadGateway, "the provider %s refuses this server: an operator has to look at its configuration", p.ID).WithCause(cause)
}

var (
	errStale = errdefs.New(errdefs.InvalidArgument, "this sign-in has ended, was used, or began in another browser: begin again")
	// errDenied is the user's own word, or the provider's about the user.
	errDenied = errdefs.New(errdefs.PermissionDenied, "the sign-in was refused at the provider")
)

// trim bounds an error that quotes what a provider sent.
func trim(err error) error {
	const most = 500
	if err == nil || len(err.Error()) <= most {
		return err
	}
	return fmt.Errorf("%.500q…", err.Error())
}
