// Package errdefs defines the error kinds that cross s0's process boundaries.
//
// An [Error] carries a kind (what a caller may do about it), a stable code
// (what the REST contract calls it) and a message that is safe to show to a
// tenant. The cause stays on the side where it happened: it is logged there and
// never serialised. The package owns the one mapping from kinds to HTTP
// statuses and imports nothing but the standard library.
package errdefs

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Kind says what a caller may do about an error. The zero Kind is Internal, so
// that an error nobody classified is never mistaken for the caller's fault.
type Kind uint8

// The kinds, each with the HTTP status that [Kind.HTTPStatus] gives it.
const (
	Internal         Kind = iota // 500: a defect or a broken dependency; opaque to the caller
	InvalidArgument              // 400
	Unauthenticated              // 401
	PermissionDenied             // 403
	NotFound                     // 404
	MethodNotAllowed             // 405
	Timeout                      // 408: the operation's own deadline passed
	Conflict                     // 409: the state does not allow it
	Gone                         // 410: it existed and has ended
	TooLarge                     // 413
	Unprocessable                // 422
	Exhausted                    // 429: retry after a while
	BadGateway                   // 502: a peer's answer made no sense
	Unavailable                  // 503: retry
	GatewayTimeout               // 504: a peer's answer did not come
)

var kinds = [...]struct {
	status int
	code   string
}{
	Internal:         {http.StatusInternalServerError, "internal_error"},
	InvalidArgument:  {http.StatusBadRequest, "bad_request"},
	Unauthenticated:  {http.StatusUnauthorized, "unauthorized"},
	PermissionDenied: {http.StatusForbidden, "forbidden"},
	NotFound:         {http.StatusNotFound, "not_found"},
	MethodNotAllowed: {http.StatusMethodNotAllowed, "bad_request"},
	Timeout:          {http.StatusRequestTimeout, "unavailable"},
	Conflict:         {http.StatusConflict, "conflict"},
	Gone:             {http.StatusGone, "not_found"},
	TooLarge:         {http.StatusRequestEntityTooLarge, "bad_request"},
	Unprocessable:    {http.StatusUnprocessableEntity, "bad_request"},
	Exhausted:        {http.StatusTooManyRequests, "quota_exceeded"},
	BadGateway:       {http.StatusBadGateway, "unavailable"},
	Unavailable:      {http.StatusServiceUnavailable, "unavailable"},
	GatewayTimeout:   {http.StatusGatewayTimeout, "unavailable"},
}

// HTTPStatus is the status with which an error of this kind is answered.
func (k Kind) HTTPStatus() int { return k.entry().status }

// Code is the contract's code for errors of this kind that carry none of their own.
func (k Kind) Code() string { return k.entry().code }

func (k Kind) entry() struct {
	status int
	code   string
} {
	if int(k) < len(kinds) {
		return kinds[k]
	}
	return kinds[Internal]
}

// Error is an error that may be shown to a tenant: Code, Message and Details only.
type Error struct {
	Kind       Kind
	Code       string         // the contract's code; never empty on errors made by this package
	Message    string         // safe for the tenant
	RetryAfter time.Duration  // > 0 on errors that pass by themselves; sent in whole seconds, at least 1
	Details    map[string]any // what programs may want to know more, safe for the tenant; nil: nothing
	cause      error
}

// New makes an error of a kind with the kind's own code.
func New(kind Kind, format string, args ...any) *Error {
	return WithCode(kind, kind.Code(), format, args...)
}

// WithCode makes an error with a code of its own, such as "context_not_found".
func WithCode(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithCause returns a copy that wraps cause: for logs and errors.Is, never for tenants.
func (e *Error) WithCause(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// WithRetryAfter returns a copy that tells the caller when to come back.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// WithDetails returns a copy that tells programs more than the message.
func (e *Error) WithDetails(details map[string]any) *Error {
	c := *e
	c.Details = details
	return &c
}

// Error is the text for logs; it includes the cause.
func (e *Error) Error() string {
	if e.cause != nil {
		return e.Message + ": " + e.cause.Error()
	}
	return e.Message
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.cause }

// From finds the Error in err's chain. An error that has none becomes an opaque
// Internal one that keeps err as its cause; nil stays nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return New(Internal, "internal error").WithCause(err)
}

// Is reports whether err carries the kind. Unclassified errors are Internal.
func Is(err error, kind Kind) bool { return err != nil && From(err).Kind == kind }
