// Package httpapi is the REST face of the API server: the routes generated from
// openapi.yaml, behind one chain that every request passes.
//
//	request id → log, recovery, deadlines → host, origin → route → who → how often → may he → operation
//
// It translates between the wire and the packages that decide; it keeps nothing
// but the buckets of its rate limits. Every answer, whatever went wrong, has the
// contract's envelope and an X-Request-Id; what is not meant for the caller is
// logged under that id and never sent. The exception is what is no HTTP request:
// two Host headers, or 64 KiB of headers, net/http itself answers, with a 400 or
// 431 in plain text, and closes the connection. It has no hook for that.
package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"s0.run/api/internal/apidoc"
	"s0.run/api/internal/auth"
	"s0.run/api/internal/capture"
	"s0.run/api/internal/claim"
	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/egress"
	"s0.run/api/internal/events"
	"s0.run/api/internal/exposure"
	"s0.run/api/internal/identity"
	"s0.run/api/internal/images"
	"s0.run/api/internal/inflight"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/ndjson"
	"s0.run/api/internal/observe"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/ratelimit"
	"s0.run/api/internal/runtimes"
	"s0.run/api/internal/services"
	"s0.run/api/internal/sso"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/api/internal/volumes"
	"s0.run/api/internal/volumesync"
	"s0.run/api/internal/wsapi"
)

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 64 << 10

	bodyTimeout  = 30 * time.Second // for a JSON body to arrive
	drainTimeout = 5 * time.Second  // for the rest of a body that nobody wanted
	drainBytes   = 256 << 10        // of it, as much as net/http reads on a connection that stays
	replyTimeout = 2 * time.Minute  // for an operation and its answer; a cold start is the longest
	chunkTimeout = 30 * time.Second // for the next bytes of a file, in either direction
)

// Config names what the operations work with. Every field is required.
type Config struct {
	Store     *store.Store
	Auth      *auth.Authenticator
	Identity  *identity.Service
	SSO       *sso.Service
	Catalog   *templates.Catalog
	Images    *images.Keeper
	Captures  *capture.Capturer
	Table     *placement.Table
	Claimer   *claim.Claimer
	Lifecycle *lifecycle.Keeper
	Plane     *dataplane.Plane
	Sockets   *wsapi.Server
	Observe   *observe.Observer
	Events    *events.View
	Watches   *ndjson.Server
	Network   *egress.Keeper
	Volumes   *volumes.Keeper
	Sync      *volumesync.Keeper
	Exposure  *exposure.Proxy
	Runtimes  *runtimes.Starter
	Domain    services.Domain // under which sandboxes' services are found
	RegionID  string
	Cluster   string // that this server's nodes belong to
	Registry  *prometheus.Registry
	Log       *slog.Logger

	Draining         func() bool           // it stops, and others shall be asked
	TemplatesChanged func(context.Context) // called after a template was stored here
	Hosts            *HostList             // names that this server answers to
	Rate             float64               // requests a second, of each team and of each address
	Burst            int                   // requests at once
	Metrics          http.Handler          // answers GET /metrics to this machine alone
	MetricsToken     string                // and to who has it; empty: to nobody else
	Doc              *apidoc.Doc           // the contract
	TrustedProxies   []netip.Prefix        // whose X-Forwarded-For is believed; may be empty
}

// API implements the generated ServerInterface.
type API struct {
	cfg         Config
	teams       *ratelimit.Limiter
	hosts       *ratelimit.Limiter
	waits       *inflight.Counter[uuid.UUID]
	signInHosts *ratelimit.Limiter // by address
	signInUsers *ratelimit.Limiter // by who is to be signed in
	pushes      *inflight.Counter[uuid.UUID]
	pushing     chan struct{} // a seat of each push
	timing      *prometheus.HistogramVec
}

var _ openapi.ServerInterface = (*API)(nil)

// New makes the API and its metrics.
func New(cfg Config) *API {
	a := &API{
		cfg: cfg, teams: ratelimit.New(cfg.Rate, cfg.Burst), hosts: ratelimit.New(cfg.Rate, cfg.Burst),
		waits:  inflight.New[uuid.UUID](waitsPerTeam),
		pushes: inflight.New[uuid.UUID](changesOfTeam), pushing: make(chan struct{}, changesTogether),
		signInHosts: ratelimit.New(cfg.Rate/100, max(1, cfg.Burst/10)), signInUsers: ratelimit.New(cfg.Rate/1000, max(1, cfg.Burst/20)),
		timing: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "s0_api_request_seconds", Help: "Time to answer a request, by route and class of status.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"route", "status"}),
	}
	cfg.Registry.MustRegister(a.timing)
	return a
}

// Server makes the HTTP server. Reading and writing have no server-wide deadline,
// for files may be large; each operation sets its own.
func (a *API) Server() *http.Server {
	return &http.Server{
		Handler: a.Handler(), ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelDebug), // clients that break off
	}
}

// Handler is the whole chain.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	openapi.HandlerWithOptions(a, openapi.StdHTTPServerOptions{
		BaseRouter: guarded{mux, a},
		ErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			a.fail(w, r, badParameter(err))
		},
	})
	return a.envelope(a.front(routes{mux, a}))
}

// guarded registers every operation behind its guard.
type guarded struct {
	*http.ServeMux
	api *API
}

// HandleFunc implements the generated code's router.
func (g guarded) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	g.ServeMux.HandleFunc(pattern, g.api.guard(pattern, h))
}
