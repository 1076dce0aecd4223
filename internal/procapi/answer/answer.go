// Package answer is the frame of who serves procapi: requests are decoded strictly, and
// answers, errors above all, have one shape. It keeps no state.
package answer

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// NDJSON is the type of answers that are one JSON object a line.
const NDJSON = "application/x-ndjson"

// A Handler that returns an error has not answered yet.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Serve turns a handler's error into the answer. failed is told of errors that are nobody
// else's fault, with their causes.
func Serve(h Handler, failed func(r *http.Request, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		if errdefs.Is(err, errdefs.Internal) && r.Context().Err() == nil {
			failed(r, err)
		}
		Refuse(w, err)
	}
}

// Refuse answers an error.
func Refuse(w http.ResponseWriter, err error) {
	e := errdefs.From(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(max(1, e.RetryAfter/time.Second))))
	}
	Write(w, e.Kind.HTTPStatus(), procapi.Error{Code: e.Code, Message: e.Message})
}

// Write answers v as JSON.
func Write(w http.ResponseWriter, status int, v any) {
	b, err := Encode(v)
	if err != nil { // a type of ours that JSON can't have
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the other end is gone, which its connection's reader sees
}

// OK answers v.
func OK(w http.ResponseWriter, v any) error {
	Write(w, http.StatusOK, v)
	return nil
}

// Done is the answer of calls that have nothing to tell, such as {"deleted":true}.
func Done(w http.ResponseWriter, what string) error { return OK(w, map[string]bool{what: true}) }

// Line writes one of many answers.
func Line(w http.ResponseWriter, v any) error {
	b, err := Encode(v) // ends in a newline
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// Invalid is the error of a request that makes no sense.
func Invalid(format string, args ...any) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", format, args...)
}

// Query is a query parameter that appears at most once.
func Query(r *http.Request, name string) (string, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", Invalid("malformed query")
	}
	if len(values[name]) > 1 {
		return "", Invalid("%s appears twice", name)
	}
	return values.Get(name), nil
}

// Flag is a query parameter that is true or false.
func Flag(r *http.Request, name string) (bool, error) {
	v, err := Query(r, name)
	if err != nil || v == "" {
		return false, err
	}
	flag, err := strconv.ParseBool(v)
	if err != nil {
		return false, Invalid("%s: want true or false", name)
	}
	return flag, nil
}

// isTooBig tells a body beyond its limit from one that broke off.
func isTooBig(err error) bool {
	var e *http.MaxBytesError
	return errors.As(err, &e)
}
