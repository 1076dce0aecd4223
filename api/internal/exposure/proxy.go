package exposure

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"s0.run/api/internal/services"
	"s0.run/internal/errdefs"
)

const (
	idlePerService = 32               // connections that wait for the next request
	idleTimeout    = 30 * time.Second // of such a connection
	maxIdle        = 4096

	maxHeaderBytes = 64 << 10 // of a service's answer

	// functionGrace is what a function's runner gets to say itself that the
	// function took too long.
	functionGrace = 5 * time.Second

	maxFunctionBody = 8 << 20
)

var (
	errTimeout         = errdefs.New(errdefs.GatewayTimeout, "the service did not answer in time")
	errRequestTooLarge = errdefs.WithCode(errdefs.TooLarge, "request_too_large", "the request is larger than %d bytes", maxFunctionBody)
	errAnswer          = errdefs.New(errdefs.BadGateway, "the service did not answer properly")
)

// The words between us and a function's runner.
const (
	headerRoute         = "S0-Route"
	headerTimeout       = "S0-Timeout" // seconds
	headerFunctionError = "S0-Function-Error"
)

// functionErrors is all that a runner can say of a failure.
var functionErrors = map[string]error{
	"request_too_large":             errRequestTooLarge,
	"function_concurrency_exceeded": errdefs.WithCode(errdefs.Exhausted, "function_concurrency_exceeded", "the function is busy").WithRetryAfter(time.Second),
	"function_failed":               errdefs.WithCode(errdefs.Internal, "function_failed", "the function failed"),
	"function_timeout":              errdefs.New(errdefs.GatewayTimeout, "the function did not answer in time"),
	"function_no_websocket":         errdefs.New(errdefs.InvalidArgument, "the function takes no WebSocket"),
}

// exchange is one request on its way.
type exchange struct {
	req    Request
	entry  *entry
	route  *route
	header http.Header // of the answer, with what the platform has set
	timer  *time.Timer // nil: as long as it takes
	err    error       // why nothing was answered
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// exchange proxies a request whose route was found.
func (p *Proxy) exchange(w http.ResponseWriter, r *http.Request, ex *exchange) error {
	p.open.Add(1)
	defer p.open.Done()
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), exchangeKey{}, ex))
	defer cancel(nil)
	defer context.AfterFunc(p.life, func() { cancel(context.Canceled) })()
	if d := ex.route.timeout; d > 0 {
		if ex.route.function {
			d += functionGrace
		}
		ex.timer = time.AfterFunc(d, func() { cancel(errTimeout) })
		defer ex.timer.Stop()
	}
	if ex.route.function && r.ContentLength > maxFunctionBody {
		return errRequestTooLarge
	}
	in, out := r.WithContext(ctx), &pacedWriter{w, http.NewResponseController(w), p.pace}
	if body := out.pacedBody(r, ex.route.function); body != nil {
		in.Body = body
	}
	out.rc.SetWriteDeadline(time.Time{}) // the front's is for short answers
	p.reverse.ServeHTTP(out, in)
	out.rc.SetWriteDeadline(time.Now().Add(p.pace)) // for what is still buffered
	if ex.err == nil {
		return nil
	}
	ex.header.Set("Cache-Control", "no-store")
	return failure(ctx, ex.err)
}

// newTransport makes connections to services. Each has a host of its own, so
// that connections are kept for it alone.
func newTransport(runtimes Runtimes) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ex := exchangeOf(ctx)
			return runtimes.Dial(ctx, ex.entry.to, ex.route.service)
		},
		DisableCompression: true, // bytes pass as they are
		MaxIdleConns:       maxIdle, MaxIdleConnsPerHost: idlePerService, IdleConnTimeout: idleTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes, ExpectContinueTimeout: time.Second,
	}
}

// pool names the connections of one service in one life of its sandbox.
func (ex *exchange) pool() string {
	return fmt.Sprintf("%s.g%d.%s.p%d", ex.entry.to.ID, ex.entry.gen, ex.route.service.ID, *ex.route.service.Port)
}

// forwarding are the headers by which proxies tell of themselves. Those that a
// client sends are its own invention.
var forwarding = []string{
	"X-Real-Ip", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Server", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Request-Id",
}

// rewrite builds the request that the service gets.
func (p *Proxy) rewrite(pr *httputil.ProxyRequest) {
	ex := exchangeOf(pr.In.Context())
	out, h := pr.Out, pr.Out.Header
	out.URL.Scheme, out.URL.Host = "http", ex.pool()
	out.Host = ex.host(p.cfg.Domain)
	out.URL.RawQuery = pr.In.URL.RawQuery // as it came: nothing of ours depends on it
	ex.route.rewritePath(out.URL)
	for name := range h {
		if services.PlatformHeader(name) {
			delete(h, name)
		}
	}
	for _, name := range forwarding {
		h.Del(name)
	}
	pr.SetXForwarded()
	h.Set("X-Forwarded-Proto", p.cfg.Domain.Scheme())
	h.Set("X-Forwarded-Host", out.Host)
	h.Set("X-Request-Id", ex.header.Get("X-Request-Id"))
	p.dropCredentials(ex, h)
	if !strings.EqualFold(h.Get("Upgrade"), "websocket") { // such as h2c, whose requests no route would see
		h.Del("Upgrade")
		h.Del("Connection")
	}
	if ex.route.function {
		h.Set(headerRoute, ex.route.id)
		h.Set(headerTimeout, strconv.FormatFloat(ex.route.timeout.Seconds(), 'f', -1, 64))
	}
}

// host is the name that the service is called by: the public one, whatever the
// client's spelling was.
func (ex *exchange) host(d services.Domain) string {
	if ex.req.Pair {
		return "localhost:" + strconv.Itoa(int(ex.req.Address.Port))
	}
	return strings.TrimPrefix(d.URL(ex.req.Address.ID, ex.req.Address.Port), d.Scheme()+"://")
}

// dropCredentials keeps from the sandbox what the route has consumed and what is
// for our API: its tokens, and on its own host its cookies.
func (p *Proxy) dropCredentials(ex *exchange, h http.Header) {
	if ex.route.auth.header != "" {
		h.Del(ex.route.auth.header)
	}
	for _, v := range h.Values("Authorization") {
		scheme, token, _ := strings.Cut(v, " ")
		if strings.EqualFold(scheme, "Bearer") && p.cfg.OurToken(strings.TrimSpace(token)) {
			h.Del("Authorization")
			break
		}
	}
	if ex.req.Pair {
		h.Del("Cookie")
	}
}

// rewritePath puts the route's rewrite_prefix in the prefix' place.
func (rt *route) rewritePath(u *url.URL) {
	if rt.rewrite == nil {
		return
	}
	raw := u.EscapedPath()
	rest, literal := strings.CutPrefix(raw, rt.prefix)
	if !literal { // spelled with escapes or empty segments
		plain, err := plainPath(u.Path)
		if err != nil {
			return // matched before, so it can't be
		}
		u.Path, u.RawPath = join(*rt.rewrite, strings.TrimPrefix(plain, rt.prefix)), ""
		return
	}
	path, err := url.PathUnescape(rest)
	if err != nil {
		return
	}
	u.Path, u.RawPath = join(*rt.rewrite, path), join(*rt.rewrite, rest)
}

func join(prefix, rest string) string {
	if rest == "" && prefix == "" {
		return "/"
	}
	return prefix + rest
}

// unwanted are headers by which a page would reach beyond its own host.
var unwanted = []string{"Alt-Svc", "Clear-Site-Data", "X-Request-Id"}

// modify checks a service's answer and takes out what is not the service's to say.
func (p *Proxy) modify(resp *http.Response) error {
	ex := exchangeOf(resp.Request.Context())
	if resp.StatusCode < 100 || resp.StatusCode > 599 {
		return errAnswer
	}
	if ex.timer != nil && !ex.timer.Stop() {
		return errTimeout
	}
	if code := resp.Header.Get(headerFunctionError); code != "" && ex.route.function {
		if err := functionErrors[code]; err != nil {
			return err
		}
		return errAnswer
	}
	for name := range resp.Header {
		if services.PlatformHeader(name) {
			delete(resp.Header, name)
		}
	}
	for _, name := range unwanted {
		resp.Header.Del(name)
	}
	if ex.route.cors != nil {
		for _, name := range corsHeaders {
			resp.Header.Del(name)
		}
	}
	ownCookies(resp.Header, ex.req.Pair)
	if ex.req.Pair {
		ex.header.Add("Vary", headerID+", "+headerPort)
	}
	// The front's own words are for its own answers.
	ex.header.Del("Cache-Control")
	ex.header.Del("X-Content-Type-Options")
	return nil
}

// ownCookies keeps a sandbox's cookies its own: not those of a parent domain,
// and none on our API's host (A20).
func ownCookies(h http.Header, pair bool) {
	cookies := h["Set-Cookie"]
	h.Del("Set-Cookie")
	if pair {
		return
	}
	for _, c := range cookies {
		parts := strings.Split(c, ";")
		kept := parts[:1]
		for _, attribute := range parts[1:] {
			name, _, _ := strings.Cut(attribute, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "domain") {
				kept = append(kept, attribute)
			}
		}
		h.Add("Set-Cookie", strings.Join(kept, ";"))
	}
}

// buffers are what answers are copied through.
type buffers struct{}

const bufferBytes = 32 << 10

var pool = sync.Pool{New: func() any { return new([bufferBytes]byte) }}

// Get implements httputil.BufferPool.
func (buffers) Get() []byte { return pool.Get().(*[bufferBytes]byte)[:] }

// Put implements httputil.BufferPool.
func (buffers) Put(b []byte) { pool.Put((*[bufferBytes]byte)(b)) }

var errStopped = errors.New("the exchange is over")
