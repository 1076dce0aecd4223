// Package rpc serves procapi's HTTP API inside the sandbox.
//
// It decodes requests strictly, calls the packages that do the work, and encodes
// what they answer: one handler for each path, one shape for errors. Its only
// state is which generation the sandbox is. It listens nowhere; whoever has the
// connection to the host serves the handler on it.
package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/procd/internal/contexts"
	"s0.run/procd/internal/events"
	"s0.run/procd/internal/logbook"
	"s0.run/procd/internal/sessions"
	"s0.run/procd/internal/tunnel"
	"s0.run/procd/internal/warm"
	"s0.run/procd/internal/watch"
)

// Config of the API. All fields are required.
type Config struct {
	Version  string
	BootID   string
	Contexts *contexts.Table
	Sessions *sessions.Table
	Warm     *warm.Manager
	Identify func(hostname string) // gives the sandbox its name, as far as it can
	HangUp   func()                // closes the connection to the host; it will be dialled again
	Events   *events.Queue
	WatchDir func(dir string) // makes changes below a directory events; "": of none
	Logs     *logbook.Book
	Log      *slog.Logger
}

type server struct {
	cfg      Config
	identity identity
	tunnels  tunnel.Dialer
	watches  watch.Watcher
}

// New returns the API's handler. It needs full duplex: HTTP/2.
func New(cfg Config) http.Handler {
	s := &server{cfg: cfg}
	mux := http.NewServeMux()
	for pattern, h := range s.routes() {
		mux.HandleFunc(pattern, s.handle(h))
	}
	return mux
}

// routes is the API, whole.
func (s *server) routes() map[string]func(http.ResponseWriter, *http.Request) error {
	return map[string]func(http.ResponseWriter, *http.Request) error{
		"GET " + procapi.PathHello: s.hello,
		"POST " + procapi.PathInit: s.init,
		"PUT " + procapi.PathEnv:   s.setEnv,
		"GET " + procapi.PathWarm:  s.streamWarm,

		"POST " + procapi.PathHangUp: s.hangUp,
		"GET " + procapi.PathKept:    s.keptContexts,

		"POST " + procapi.PathContexts:                   s.createContext,
		"GET " + procapi.PathContexts:                    s.listContexts,
		"GET " + procapi.PathContexts + "/{id}":          s.getContext,
		"DELETE " + procapi.PathContexts + "/{id}":       s.deleteContext,
		"POST " + procapi.PathContexts + "/{id}/restart": s.restartContext,
		"POST " + procapi.PathContexts + "/{id}/input":   s.inputContext,
		"POST " + procapi.PathContexts + "/{id}/exec":    s.execContext,
		"POST " + procapi.PathContexts + "/{id}/resize":  s.resizeContext,
		"POST " + procapi.PathContexts + "/{id}/signal":  s.signalContext,
		"GET " + procapi.PathContexts + "/{id}/stats":    s.statContext,
		"POST " + procapi.PathContexts + "/{id}/attach":  s.attachContext,

		"GET " + procapi.PathSessions:                         s.listSessions,
		"POST " + procapi.PathSessions:                        s.createSession,
		"GET " + procapi.PathSessions + "/{id}":               s.getSession,
		"PUT " + procapi.PathSessions + "/{id}":               s.updateSession,
		"DELETE " + procapi.PathSessions + "/{id}":            s.deleteSession,
		"PUT " + procapi.PathSessions + "/{id}/desired-state": s.setSessionState,
		"POST " + procapi.PathSessions + "/{id}/attempts":     s.createAttempt,
		"POST " + procapi.PathSessions + "/{id}/inputs":       s.inputSession,
		"POST " + procapi.PathSessions + "/{id}/signals":      s.signalSession,
		"PUT " + procapi.PathSessions + "/{id}/terminal":      s.resizeSession,
		"GET " + procapi.PathSessions + "/{id}/events":        s.listSessionEvents,
		"GET " + procapi.PathSessions + "/{id}/events/stream": s.streamSession,

		"GET " + procapi.PathFiles:            s.readFile,
		"POST " + procapi.PathFiles:           s.writeFile,
		"DELETE " + procapi.PathFiles:         s.removeFile,
		"GET " + procapi.PathFiles + "/stat":  s.statFile,
		"GET " + procapi.PathFiles + "/list":  s.listFiles,
		"POST " + procapi.PathFiles + "/move": s.moveFile,
		"GET " + procapi.PathFiles + "/watch": s.watchFiles,

		"GET " + procapi.PathFiles + "/archive": s.packFiles,
		"PUT " + procapi.PathFiles + "/archive": s.unpackFiles,
		"POST " + procapi.PathFiles + "/search": s.searchFiles,

		"POST " + procapi.PathTunnel: s.openTunnel,

		"GET " + procapi.PathEvents:       s.streamEvents,
		"PUT " + procapi.PathEventsConfig: s.configureEvents,
		"POST " + procapi.PathEventsAck:   s.ackEvents,

		"GET " + procapi.PathLogs: s.readLogs,

		"POST " + procapi.PathMounts:   s.mount,
		"DELETE " + procapi.PathMounts: s.unmount,

		"/": s.unknown,
	}
}

// handle turns a handler's error into the answer. A handler that returns an error
// has not answered yet.
func (s *server) handle(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		e := errdefs.From(err)
		if e.Kind == errdefs.Internal && r.Context().Err() == nil {
			s.cfg.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		}
		if e.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(max(1, e.RetryAfter/time.Second))))
		}
		write(w, e.Kind.HTTPStatus(), procapi.Error{Code: e.Code, Message: e.Message})
	}
}

// write answers v as JSON.
func write(w http.ResponseWriter, status int, v any) {
	b, err := encode(v)
	if err != nil { // a type of ours that JSON can't have
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the other end is gone, which its connection's reader sees
}

func ok(w http.ResponseWriter, v any) error {
	write(w, http.StatusOK, v)
	return nil
}

// done is the answer of calls that have nothing to tell, such as {"deleted":true}.
func done(w http.ResponseWriter, what string) error { return ok(w, map[string]bool{what: true}) }

func invalid(format string, args ...any) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", format, args...)
}

func (s *server) unknown(_ http.ResponseWriter, r *http.Request) error {
	return errdefs.New(errdefs.NotFound, "no such call: %s %.100q", r.Method, r.URL.Path)
}

// waiting returns the context of a request that waits for a process.
func waiting(r *http.Request) (context.Context, context.CancelFunc, error) {
	timeout := procapi.DefaultTimeout
	if h := r.Header.Get(procapi.TimeoutHeader); h != "" {
		ms, err := strconv.ParseInt(h, 10, 64)
		if err != nil || ms < 1 || ms > procapi.MaxTimeout.Milliseconds() {
			return nil, nil, invalid("%s: want milliseconds from 1 to %d", procapi.TimeoutHeader, procapi.MaxTimeout.Milliseconds())
		}
		timeout = time.Duration(ms) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	return ctx, cancel, nil
}

// isTooBig tells a body beyond its limit from one that broke off.
func isTooBig(err error) bool {
	var e *http.MaxBytesError
	return errors.As(err, &e)
}
