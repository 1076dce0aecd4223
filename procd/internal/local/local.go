// Package local is procd's face inside the sandbox: HTTP on the loopback
// interface, for the sandbox's own processes.
//
// It has no authentication, for whatever runs in the sandbox may use it, and no
// right that these processes lack. Requests from other addresses, and those that
// a browser makes for another site's page, are refused. The package owns the
// listener and knows nothing of what its routes do.
package local

import (
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"
)

const (
	headerTimeout = 5 * time.Second
	bodyTimeout   = 30 * time.Second
	idleTimeout   = 30 * time.Second
	maxHeader     = 32 << 10
	listenRetry   = 5 * time.Second // something else has the port; it may end
)

// Config of the server. All fields are required.
type Config struct {
	Address string // host:port on the loopback interface
	Log     *slog.Logger
}

// Server serves routes to the sandbox's own processes.
type Server struct {
	cfg Config
	mux *http.ServeMux
}

// New makes a server without routes.
func New(cfg Config) *Server { return &Server{cfg: cfg, mux: http.NewServeMux()} }

// Handle adds a route, before Run. A handler that streams sets its own deadlines.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Run serves until ctx ends. While it can't have its port it tries again: the
// sandbox works without it.
func (s *Server) Run(ctx context.Context) {
	for warned := false; ctx.Err() == nil; warned = true {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", s.cfg.Address)
		if err == nil {
			s.serve(ctx, l)
			return
		}
		if !warned {
			s.cfg.Log.Warn("listening for the sandbox's own processes", "address", s.cfg.Address, "err", err)
		}
		select {
		case <-time.After(listenRetry):
		case <-ctx.Done():
		}
	}
}

func (s *Server) serve(ctx context.Context, l net.Listener) {
	srv := &http.Server{
		Handler: guard(s.mux), ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(discard{}, "", 0),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	_ = srv.Serve(l) // ends with ctx
}

// discard drops the server's lines: tenants' processes that break off.
type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func guard(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() || crossOrigin.Check(r) != nil {
			http.Error(w, "for the sandbox's own processes alone", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
