// Package rpc serves procapi's HTTP API inside the sandbox.
//
// It decodes requests strictly, calls the packages that do the work, and encodes
// what they answer: one handler for each path, one shape for errors. Its only
// state is which generation the sandbox is. It listens nowhere; whoever has the
// connection to the host serves the handler on it.
package rpc

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"strconv"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/files/serve"
	"s0.run/internal/files/watch"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
	"s0.run/procd/internal/contexts"
	"s0.run/procd/internal/events"
	"s0.run/procd/internal/logbook"
	"s0.run/procd/internal/sessions"
	"s0.run/procd/internal/tunnel"
	"s0.run/procd/internal/warm"
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
func (s *server) routes() map[string]answer.Handler {
	all := map[string]answer.Handler{
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

		"POST " + procapi.PathTunnel: s.openTunnel,

		"GET " + procapi.PathEvents:       s.streamEvents,
		"PUT " + procapi.PathEventsConfig: s.configureEvents,
		"POST " + procapi.PathEventsAck:   s.ackEvents,

		"GET " + procapi.PathLogs: s.readLogs,

		"POST " + procapi.PathMounts:   s.mount,
		"DELETE " + procapi.PathMounts: s.unmount,

		"/": s.unknown,
	}
	maps.Copy(all, serve.Routes(tree, &s.watches))
	return all
}

// tree is the sandbox's, on whose foundations it runs.
var tree = files.Tree{Base: procapi.Workspace, Fixed: []string{"/proc", "/sys", "/dev", procapi.Dir}}

// handle answers what a handler does.
func (s *server) handle(h answer.Handler) http.HandlerFunc {
	return answer.Serve(h, func(r *http.Request, err error) {
		s.cfg.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	})
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
			return nil, nil, answer.Invalid("%s: want milliseconds from 1 to %d", procapi.TimeoutHeader, procapi.MaxTimeout.Milliseconds())
		}
		timeout = time.Duration(ms) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	return ctx, cancel, nil
}
