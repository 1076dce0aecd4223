package exposure

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strings"

	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
)

// auth is what a route asks of its callers. The zero value asks nothing.
type auth struct {
	header string // the one that is looked at; "": none
	bearer bool   // its value is `Bearer <token>`
	sum    []byte // SHA-256 of the credential
}

// newAuth reads what was checked when it was stored; what can't be read lets
// nobody in.
func newAuth(a *openapi.ServiceRouteAuth) auth {
	if a == nil || a.Mode == nil || *a.Mode == openapi.ServiceRouteAuthModeNone {
		return auth{}
	}
	out, sum := auth{header: "Authorization", bearer: true}, a.BearerTokenSha256
	if *a.Mode == openapi.ServiceRouteAuthModeHeader && a.HeaderName != nil {
		out, sum = auth{header: http.CanonicalHeaderKey(*a.HeaderName)}, a.HeaderValueSha256
	}
	if sum != nil {
		out.sum, _ = hex.DecodeString(*sum)
	}
	return out
}

var errUnauthorized = errdefs.New(errdefs.Unauthenticated, "the route needs a credential")

// check compares the credential. There must be exactly one.
func (a auth) check(answer, h http.Header) error {
	if a.header == "" {
		return nil
	}
	values := h.Values(a.header)
	ok := len(values) == 1
	var credential string
	if ok {
		credential = values[0]
	}
	if a.bearer {
		scheme, token, _ := strings.Cut(credential, " ")
		ok = ok && strings.EqualFold(scheme, "Bearer")
		credential = strings.TrimSpace(token)
	}
	sum := sha256.Sum256([]byte(credential))
	if subtle.ConstantTimeCompare(sum[:], a.sum) == 1 && ok {
		return nil
	}
	if a.bearer {
		answer.Set("WWW-Authenticate", "Bearer")
	}
	return errUnauthorized
}
