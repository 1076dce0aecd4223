package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
)

// entry is what is logged about a request.
type entry struct {
	id     string // the request's
	client string // its address
	began  time.Time
	team   uuid.UUID
	route  string
	status int
	code   string // of the error that was answered

	inside  bool // an operation inside a sandbox answers
	exposed bool // a tenant's own service answers: its errors are his, not ours
}

type entryKey struct{}

func entryOf(r *http.Request) *entry { return r.Context().Value(entryKey{}).(*entry) }

// recorder sees the status that is sent, and tells the client how long the
// server took for it (https://www.w3.org/TR/server-timing/).
type recorder struct {
	http.ResponseWriter
	entry *entry
}

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.entry.status == 0 && status >= http.StatusOK {
		w.entry.status = status
		w.timing()
	}
	w.ResponseWriter.WriteHeader(status)
}

// timing leaves a tenant's own answer as it is.
func (w *recorder) timing() {
	if !w.entry.exposed {
		w.Header().Set("Server-Timing", fmt.Sprintf("total;dur=%.3f", time.Since(w.entry.began).Seconds()*1000))
	}
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	if w.entry.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap gives http.ResponseController its way to the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// envelope gives every request its id, its line in the log, and an answer even
// when an operation panics.
func (a *API) envelope(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		e := &entry{id: requestID(r), client: clientOf(r, a.cfg.TrustedProxies), began: began}
		rec := &recorder{w, e}
		rc := http.NewResponseController(w)
		rc.SetWriteDeadline(began.Add(replyTimeout))
		// What an operation left of the body is dropped before the next request. There
		// is no deadline while it works: one that passes would end its context.
		defer func() {
			rc.SetReadDeadline(time.Now().Add(drainTimeout))
			if r.Close && e.status != 0 {
				drain(w, r)
			}
		}()
		h := w.Header()
		h.Set("X-Request-Id", e.id)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		r = r.WithContext(context.WithValue(r.Context(), entryKey{}, e))
		defer func() {
			if v := recover(); v != nil {
				a.recovered(rec, r, v)
			}
			a.record(r, e, time.Since(began))
		}()
		next.ServeHTTP(rec, r)
	})
}

// drain drops what is left of the body on a connection that will close, which
// net/http does only for one that stays: bytes that nobody has read when it
// closes reset it, and the client would lose the answer. Of a body that does not
// end, the reader makes the server say goodbye slowly.
func drain(w http.ResponseWriter, r *http.Request) {
	if http.NewResponseController(w).Flush() == nil {
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, drainBytes))
	}
}

// wellFormedID is a request id that may be taken over from a client: into a header,
// a log and a record.
var wellFormedID = regexp.MustCompile(`^[A-Za-z0-9._-]{8,64}$`)

func requestID(r *http.Request) string {
	if own := r.Header.Values("X-Request-Id"); len(own) == 1 && wellFormedID.MatchString(own[0]) {
		return own[0]
	}
	var b [12]byte
	rand.Read(b[:]) // never fails
	return "req-" + hex.EncodeToString(b[:])
}

// recovered answers for an operation that panicked. An answer that has begun can
// only be broken off.
func (a *API) recovered(w *recorder, r *http.Request, v any) {
	if v == http.ErrAbortHandler {
		panic(v)
	}
	a.cfg.Log.Error("an operation panicked", "request", w.entry.id, "route", w.entry.route, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if w.entry.status != 0 {
		panic(http.ErrAbortHandler)
	}
	a.fail(w, r, fmt.Errorf("panic: %v", v))
}

func (a *API) record(r *http.Request, e *entry, d time.Duration) {
	a.timing.WithLabelValues(e.route, strconv.Itoa(e.status/100)+"xx").Observe(d.Seconds())
	if !a.cfg.Log.Enabled(r.Context(), slog.LevelDebug) {
		return
	}
	attrs := []any{"request", e.id, "route", e.route, "status", e.status, "ms", float64(d.Microseconds()) / 1000}
	if e.team != uuid.Nil {
		attrs = append(attrs, "team", e.team)
	}
	a.cfg.Log.Debug("request", attrs...) // neither URL nor headers: they may hold secrets (A07)
}

// answer sends data, or the error if there is one.
func (a *API) answer(w http.ResponseWriter, r *http.Request, status int, data any, err error) {
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.send(w, r, status, struct {
		Success bool `json:"success"`
		Data    any  `json:"data"`
	}{true, data})
}

// fail sends an error. Its cause goes to the log.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := errdefs.From(err)
	status := e.Kind.HTTPStatus()
	entry := entryOf(r)
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		e, status = errdefs.New(errdefs.Unavailable, "the request was given up"), http.StatusServiceUnavailable
	} else {
		a.logFailure(r, err)
	}
	entry.code = e.Code
	if entry.inside && e.Code == errdefs.InvalidArgument.Code() && e.Kind == errdefs.InvalidArgument {
		entry.code = invalidRequest // one word for what is wrong, whoever sees it first
	}
	body := openapi.ErrorEnvelope{Error: openapi.ErrorBody{Code: entry.code, Message: e.Message, Details: e.Details}}
	if status >= 500 {
		body.Error.Details = map[string]any{"request_id": entry.id}
	}
	if e.RetryAfter > 0 || e.Kind == errdefs.Exhausted {
		w.Header().Set("Retry-After", retryAfter(e.RetryAfter))
	}
	a.send(w, r, status, body)
}

// logFailure logs an error that is not its caller's.
func (a *API) logFailure(r *http.Request, err error) {
	e, entry := errdefs.From(err), entryOf(r)
	if status := e.Kind.HTTPStatus(); status >= 500 && (!entry.exposed || e.Code == errdefs.Internal.Code()) {
		a.cfg.Log.Error("request failed", "request", entry.id, "route", entry.route, "team", entry.team, "status", status, "err", err)
	}
}

// serveText sends a document of ours.
func (a *API) serveText(w http.ResponseWriter, r *http.Request, contentType string, b []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		w.Write(b) // a client that is gone needs no answer
	}
}

func (a *API) send(w http.ResponseWriter, r *http.Request, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("an answer of ours must marshal: %v", err))
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(append(b, '\n')) // a client that is gone needs no answer
	}
}

// badParameter is a path, query or header value that the generated code refused.
func badParameter(err error) error {
	name := "parameter"
	if e, ok := errors.AsType[*openapi.InvalidParamFormatError](err); ok {
		name = e.ParamName
	} else if e, ok := errors.AsType[*openapi.RequiredParamError](err); ok {
		return errdefs.New(errdefs.InvalidArgument, "%s is required", e.ParamName)
	} else if e, ok := errors.AsType[*openapi.TooManyValuesForParamError](err); ok {
		name = e.ParamName
	}
	return errdefs.New(errdefs.InvalidArgument, "%s is invalid", name)
}
