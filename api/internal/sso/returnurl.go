package sso

import (
	"fmt"
	"net/url"
	"strings"

	"s0.run/internal/errdefs"
)

const maxReturnURLBytes = 2048

// The parameters that we add to a page's URL.
const (
	paramCode    = "login_code"
	paramError   = "login_error"
	paramMessage = "login_error_message"
)

// returnURLs says to which pages browsers may be sent with a code: to none that
// the operator does not know, or a sign-in would be an open redirect that gives
// the user's session away.
type returnURLs struct {
	own   string          // origin of which every page may
	pages map[string]bool // scheme, host and path
}

func newReturnURLs(public *url.URL, list []string) (returnURLs, error) {
	r := returnURLs{own: origin(public), pages: map[string]bool{}}
	for _, raw := range list {
		u, err := parseReturnURL(raw)
		if err != nil || u.RawQuery != "" {
			return r, fmt.Errorf("return URL %q: want http:// or https:// with a host and a path, nothing more", raw)
		}
		r.pages[page(u)] = true
	}
	return r, nil
}

// check answers the URL if browsers may be sent there.
func (r returnURLs) check(raw string) (*url.URL, error) {
	u, err := parseReturnURL(raw)
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "return_url is invalid")
	}
	if origin(u) != r.own && !r.pages[page(u)] {
		return nil, errdefs.New(errdefs.InvalidArgument, "return_url is not allowed; the operator can allow it")
	}
	return u, nil
}

// parseReturnURL takes only what every browser reads as we do.
func parseReturnURL(raw string) (*url.URL, error) {
	odd := func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("\\\"<>^`{|}", c) }
	if len(raw) > maxReturnURLBytes || strings.ContainsFunc(raw, odd) || strings.Contains(raw, "#") {
		return nil, errInvalidReturnURL
	}
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || u.Opaque != "" {
		return nil, errInvalidReturnURL
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || query.Has(paramCode) || query.Has(paramError) || query.Has(paramMessage) {
		return nil, errInvalidReturnURL
	}
	return u, nil
}

var errInvalidReturnURL = fmt.Errorf("invalid return URL")

// origin is what browsers compare: scheme, host and port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

func page(u *url.URL) string {
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return origin(u) + path
}

// with adds to a URL's query and leaves what it has as it is.
func with(raw string, values url.Values) string {
	sep := "?"
	if strings.Contains(raw, "?") {
		sep = "&"
	}
	return raw + sep + values.Encode()
}
