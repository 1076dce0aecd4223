package sso

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/mail"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	maxSubjectBytes = 255 // OpenID Connect Core, section 2
	maxEmailBytes   = 254 // RFC 5321
	maxNameBytes    = 100
)

// claims is what an ID token or the user info endpoint says of somebody.
type claims struct {
	Email    string    `json:"email"`
	Verified looseBool `json:"email_verified"`
	Name     string    `json:"name"`
}

// looseBool is a bool that some providers put in quotes.
type looseBool bool

// UnmarshalJSON implements json.Unmarshaler.
func (b *looseBool) UnmarshalJSON(text []byte) error {
	*b = string(text) == "true" || string(text) == `"true"`
	return nil
}

// account verifies what a provider has answered. An empty nonce expects none.
func (p *provider) account(ctx context.Context, m *metadata, token *oauth2.Token, nonce string) (store.Account, error) {
	ctx = oidc.ClientContext(ctx, p.http)
	raw, _ := token.Extra("id_token").(string)
	id, err := m.verifier.Verify(ctx, raw)
	if err != nil {
		return store.Account{}, p.untrue(err)
	}
	if nonce != "" && subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 {
		return store.Account{}, p.untrue(errors.New("the ID token was made for another sign-in"))
	}
	var c claims
	if err := id.Claims(&c); err != nil {
		return store.Account{}, p.untrue(err)
	}
	if m.userInfo && (c.Email == "" || !bool(c.Verified)) {
		if c, err = p.askUserInfo(ctx, m, token, id.Subject); err != nil {
			return store.Account{}, err
		}
	}
	return p.accountOf(id.Subject, c)
}

func (p *provider) untrue(cause error) error {
	return errdefs.New(errdefs.BadGateway, "the answer of the provider %s does not hold", p.ID).
		WithCause(fmt.Errorf("provider %s: %w", p.ID, trim(cause)))
}

// askUserInfo asks for what is not in the ID token.
func (p *provider) askUserInfo(ctx context.Context, m *metadata, token *oauth2.Token, subject string) (c claims, err error) {
	info, err := m.oidc.UserInfo(ctx, oauth2.StaticTokenSource(token))
	switch {
	case err != nil:
		return c, p.unavailable(trim(err))
	case info.Subject != subject:
		return c, p.untrue(errors.New("the user info is another user's"))
	}
	if err := info.Claims(&c); err != nil {
		return c, p.untrue(err)
	}
	return c, nil
}

// accountOf takes what is sound of what a provider says.
func (p *provider) accountOf(subject string, c claims) (store.Account, error) {
	if subject == "" || len(subject) > maxSubjectBytes || !printable(subject) {
		return store.Account{}, p.untrue(fmt.Errorf("subject %.300q", subject))
	}
	a := store.Account{Provider: p.ID, Issuer: p.Issuer, Subject: subject}
	if !bool(c.Verified) || !validEmail(c.Email) {
		return a, nil
	}
	if !p.speaksFor(c.Email) {
		return a, errdefs.New(errdefs.PermissionDenied, "your email address's domain may not sign in through the provider %s", p.ID)
	}
	a.Email, a.Name = c.Email, c.Name
	if a.Name == "" || len(a.Name) > maxNameBytes || !printable(a.Name) {
		a.Name, _, _ = strings.Cut(c.Email, "@")
		a.Name = a.Name[:min(len(a.Name), maxNameBytes)]
	}
	return a, nil
}

// speaksFor reports whether the operator believes the provider about an address.
func (p *provider) speaksFor(email string) bool {
	domain := email[strings.LastIndexByte(email, '@')+1:]
	return slices.ContainsFunc(p.EmailDomains, func(d string) bool { return d == "*" || strings.EqualFold(d, domain) })
}

// validEmail takes plain addresses in ASCII alone: two that look alike are two.
func validEmail(email string) bool {
	if len(email) > maxEmailBytes || strings.ContainsFunc(email, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return false
	}
	parsed, err := mail.ParseAddress(email)
	return err == nil && parsed.Address == email
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
