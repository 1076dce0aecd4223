// Package exposure serves the world outside what sandboxes expose: the services
// with their routes, and the exposed ports of older clients.
//
// A request names a sandbox's port by its host or by two headers, both read by
// one parser (package services). What is not exposed does not exist: everything
// is private until a sandbox's config says otherwise. On its way a request passes
//
//	address → route → CORS preflight → method → credential → rate → state → service
//
// and is then proxied over a tunnel, rebuilt and not spliced, by the standard
// library. Neither side is trusted with the other's or with our words: platform
// headers pass in no direction, our API's tokens never reach a sandbox, and a
// sandbox's cookies stay its own.
//
// The package owns what it remembers for a second of each sandbox's config, the
// buckets of routes' rates, and the exchanges until [Proxy.Close]. Decisions
// about a sandbox's life are others'.
package exposure

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/ratelimit"
	"s0.run/api/internal/services"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// Runtimes connects to services.
type Runtimes interface {
	// Dial connects to a service of the sandbox, starting it if it can be. The
	// connection outlives ctx.
	Dial(ctx context.Context, to dataplane.Target, svc openapi.SandboxAppService) (net.Conn, error)
}

// Resumer wakes paused sandboxes.
type Resumer interface {
	// Resume returns when the sandbox runs. Many may ask for one at a time.
	Resume(ctx context.Context, to dataplane.Target) error
}

// Config names what a Proxy works with. Every field is required.
type Config struct {
	Store    Store
	Runtimes Runtimes
	Resumer  Resumer
	Domain   services.Domain
	OurToken func(token string) bool // reports whether a bearer token may be one of our API's
	Rate     float64                 // config lookups a second that one address can cause
	Burst    int
	Log      *slog.Logger
}

// Proxy is safe for concurrent use.
type Proxy struct {
	cfg       Config
	directory *directory
	lookups   *ratelimit.Limiter
	rates     *rates
	reverse   *httputil.ReverseProxy
	transport *http.Transport
	pace      time.Duration

	life context.Context
	end  context.CancelFunc
	open sync.WaitGroup
}

// New makes a Proxy.
func New(cfg Config) *Proxy {
	p := &Proxy{
		cfg: cfg, directory: newDirectory(cfg.Store), lookups: ratelimit.New(cfg.Rate, cfg.Burst), rates: newRates(),
		transport: newTransport(cfg.Runtimes), pace: paceTimeout,
	}
	p.life, p.end = context.WithCancel(context.Background())
	p.reverse = &httputil.ReverseProxy{
		Transport: p.transport, Rewrite: p.rewrite, ModifyResponse: p.modify, BufferPool: buffers{},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) { exchangeOf(r.Context()).err = err },
		ErrorLog:     slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug), // either side that breaks off
	}
	return p
}

// Close breaks off the exchanges that are still open and waits for their ends.
func (p *Proxy) Close() {
	p.end()
	p.open.Wait()
	p.transport.CloseIdleConnections()
}

// Changed forgets what is remembered of a sandbox: its config or state is new.
func (p *Proxy) Changed(id sandbox.ID) { p.directory.forget(id) }

// Request is a request for a sandbox's port.
type Request struct {
	Address services.Address
	Pair    bool   // named by two headers on the API's own host
	Remote  string // the client's address, for limits
}

// The answers that the contract names.
var (
	errNotExposed = errdefs.New(errdefs.NotFound, "route is not exposed")
	errMethod     = errdefs.WithCode(errdefs.MethodNotAllowed, "forbidden", "the route does not take this method")
	errPath       = errdefs.New(errdefs.InvalidArgument, "the path must be plain")
	errPaused     = errdefs.New(errdefs.Conflict, "the sandbox is paused and this route does not resume it")
	errAsleep     = errdefs.New(errdefs.Unavailable, "sandbox is not running and auto_resume is disabled")
	errNotRunning = errdefs.New(errdefs.Unavailable, "the sandbox is not running").WithRetryAfter(time.Second)
	errTooMany    = errdefs.WithCode(errdefs.Exhausted, "unavailable", "too many requests")
)

// Parse reads which port of a sandbox a request's host names. within reports
// whether the host is of the services' domain, so that nobody else answers it.
func (p *Proxy) Parse(r *http.Request) (req Request, within bool, err error) {
	a, within, err := p.cfg.Domain.Parse(r.Host)
	if err != nil {
		err = errNotExposed
	}
	return Request{Address: a}, within, err
}

// The headers that name a port on the API's own host.
const (
	headerID   = "X-Sandbox-Id"
	headerPort = "X-Exposure-Port"
)

// ParsePair reads the two headers; present reports whether there is any of them.
func (p *Proxy) ParsePair(r *http.Request) (req Request, present bool, err error) {
	ids, ports := r.Header[headerID], r.Header[headerPort]
	if len(ids) == 0 && len(ports) == 0 {
		return Request{}, false, nil
	}
	if len(ids) != 1 || len(ports) != 1 {
		return Request{}, true, errNotExposed
	}
	a, err := services.ParseAddress(ids[0], ports[0])
	if err != nil {
		return Request{}, true, errNotExposed
	}
	return Request{Address: a, Pair: true}, true, nil
}

// Serve answers a request. An error means that nothing was answered yet.
func (p *Proxy) Serve(w http.ResponseWriter, r *http.Request, req Request) error {
	e, err := p.lookup(r.Context(), req)
	if err != nil {
		return err
	}
	rt, err := e.routeOf(r, req)
	if err != nil {
		return err
	}
	if rt.cors.apply(w.Header(), r) {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if err := rt.auth.check(w.Header(), r.Header); err != nil {
		return err
	}
	if wait, ok := p.rates.take(e.to.ID, rt); !ok {
		return errTooMany.WithRetryAfter(wait)
	}
	awake, err := p.running(r.Context(), e, rt)
	if err == nil && awake != e { // what it exposes may have changed while it was woken
		if rt, err = awake.routeOf(r, req); err == nil {
			err = rt.auth.check(w.Header(), r.Header)
		}
	}
	if err != nil {
		return err
	}
	return p.exchange(w, r, &exchange{req: req, entry: awake, route: rt, header: w.Header()})
}

// lookup finds what a sandbox exposes. Asking the database is charged to the
// client's address: ids can't be guessed, but guesses can be sent.
func (p *Proxy) lookup(ctx context.Context, req Request) (*entry, error) {
	if e := p.directory.known(req.Address.ID); e != nil {
		return e, nil
	}
	if v := p.lookups.Take(req.Remote); !v.OK {
		return nil, errTooMany.WithRetryAfter(v.RetryAfter)
	}
	e, err := p.directory.read(ctx, req.Address.ID)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, errNotExposed
	}
	return e, err
}

// running answers why the sandbox can't serve, after waking it where the route
// says so.
func (p *Proxy) running(ctx context.Context, e *entry, rt *route) (*entry, error) {
	switch {
	case e.status == sandbox.Running:
		return e, nil
	case e.status != sandbox.Paused:
		return nil, errNotRunning
	case !e.resumes:
		return nil, errAsleep
	case !rt.resume:
		return nil, errPaused
	}
	if err := p.cfg.Resumer.Resume(ctx, e.to); err != nil {
		return nil, err
	}
	p.directory.forget(e.to.ID)
	return p.directory.read(ctx, e.to.ID)
}

// askedMethod is the method that a request is about: a preflight asks for another.
func askedMethod(r *http.Request) string {
	if asked := r.Header.Get("Access-Control-Request-Method"); r.Method == http.MethodOptions && asked != "" && r.Header.Get("Origin") != "" {
		return asked
	}
	return r.Method
}

// failure turns what stopped an exchange into what its client may learn.
func failure(ctx context.Context, err error) error {
	var known *errdefs.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(context.Cause(ctx), errTimeout):
		return errTimeout
	case errors.As(err, &tooLarge):
		return errRequestTooLarge
	case errors.As(err, &known):
		return err
	}
	return errdefs.New(errdefs.BadGateway, "the service did not answer properly").WithCause(err)
}
