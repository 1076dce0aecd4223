package httpproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/netd/internal/inject"
)

// errMisdirected is what requests end in that are for another server than the
// connection they came on (E05).
var errMisdirected = errors.New("the request is for another server than its connection")

// request is one that is being answered.
type request struct {
	policy.Request
	authority  string           // for Host
	judged     *policy.Compiled // by which it was admitted
	out        any              // how it leaves by that
	credential *inject.Prepared
	body       *body
}

// hold has what is kept of a request's body counted, until it is released.
func (s *Server) hold(c *Conn, r *http.Request) *body {
	b := &body{ReadCloser: r.Body, memory: s.config.Memory, id: c.Flow.Sandbox}
	if r.Body == http.NoBody {
		b.ended.Store(true)
	} else {
		r.Body = b
	}
	return b
}

// done is called when a request is answered.
func (c *Conn) done(kept *body) {
	kept.release()
	if !kept.ended.Load() {
		c.raw.unread.Store(true)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*Conn)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	kept := s.hold(c, r)
	defer c.done(kept)
	recorder := &recorder{ResponseWriter: w, upgrade: r.Header.Get("Upgrade") != ""}
	defer func() { c.operation(r.Method, recorder.status) }()
	req, err := s.admit(c, recorder, r, kept)
	switch {
	case err != nil:
		s.fail(recorder, c, err)
		return
	case req == nil:
		return // answered
	}
	defer c.begin(req)()
	// Who asked what is under way before it was counted has not judged this one.
	if g, ok := c.Current(); !ok || g.Policy != req.judged || !s.current(g, req) {
		s.fail(recorder, c, errdefs.New(errdefs.Unavailable, "the policy or a credential changed meanwhile"))
		return
	}
	s.forward(recorder, r, c, req)
}

// admit judges a request. It returns nil without an error when it answered itself.
func (s *Server) admit(c *Conn, w http.ResponseWriter, r *http.Request, kept *body) (*request, error) {
	g, ok := c.Current()
	if !ok {
		return nil, errdefs.New(errdefs.PermissionDenied, "the sandbox is gone")
	}
	switch upper := strings.ToUpper(r.Method); {
	case upper == http.MethodConnect || upper == http.MethodTrace:
		return nil, errdefs.New(errdefs.MethodNotAllowed, "the method %s is off", upper)
	case upper != r.Method: // which servers take for another than rules do
		return nil, errdefs.New(errdefs.InvalidArgument, "a method is written in capital letters")
	}
	req, err := c.parse(r)
	if err != nil {
		return nil, err
	}
	req.judged, req.out, req.body = g.Policy, s.config.WayOut(g), kept
	c.note(func(report *Report) { report.Host = req.authority })
	for _, v := range []policy.Verdict{judgeFlow(g.Policy, c.destination(req.Name, req.Addr)), g.Policy.HTTP(req.Request)} {
		if err := c.verdict(v); err != nil {
			return nil, err
		}
	}
	if tools := g.Policy.Tools(req.Request); tools != nil {
		denied, v, err := judgeTools(tools, w, r, kept)
		if err == nil {
			err = c.verdict(v)
		}
		if denied {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	cred, ambiguous := g.Policy.Credential(req.Request)
	if cred == nil {
		return req, nil
	}
	c.note(func(report *Report) { report.AuthRule, report.AuthRef = cred.Rule, cred.Binding.Ref })
	switch {
	case ambiguous:
		return nil, errdefs.New(errdefs.PermissionDenied, "the path can be read in more than one way; no credential is for it")
	case !c.TLS:
		return nil, errdefs.New(errdefs.PermissionDenied, "a credential does not leave without TLS") // F04
	}
	req.credential, err = inject.Prepare(s.config.Credentials, g, &cred.Binding)
	c.note(func(report *Report) {
		report.AuthErr = err
		if err == nil {
			report.AuthDone, report.AuthHit = true, req.credential.Hit
		}
	})
	return req, err
}

// verdict notes a verdict that is no plain yes; its error is a no.
func (c *Conn) verdict(v policy.Verdict) error {
	if !v.Allow || v.WouldDeny {
		c.note(func(r *Report) { r.Verdict = v })
	}
	if v.Allow {
		return nil
	}
	return errdefs.New(errdefs.PermissionDenied, "%s (rule %s)", v.Reason, v.Rule)
}

// parse finds out whom a request is for, and whether this connection is to them.
func (c *Conn) parse(r *http.Request) (*request, error) {
	name, addr, port, err := authority(r.Host)
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "the request's host is none").WithCause(err)
	}
	if port == 0 && (c.TLS && c.Port == 443 || !c.TLS && c.Port == 80) {
		port = c.Port
	}
	// Who connects to an odd port may leave it out of the name; nobody may name another.
	if port != 0 && port != c.Port || c.TLS && name != c.Name || name == "" && addr != c.Addr {
		return nil, errMisdirected
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		query = r.URL.Query() // what of it can be read
	}
	host := name
	if name == "" {
		host = addr.String()
	}
	if c.Port != 443 && c.TLS || c.Port != 80 && !c.TLS || addr.Is6() {
		host = net.JoinHostPort(host, strconv.Itoa(int(c.Port)))
	}
	return &request{authority: host, Request: policy.Request{
		Name: name, Addr: addr, Port: c.Port, TLS: c.TLS, Method: r.Method, Path: r.URL.EscapedPath(), Query: query, Headers: r.Header.Clone(),
		GRPC: strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"),
	}}, nil
}

// authority takes a host apart: a name in its canonical form, or an address.
func authority(host string) (name string, addr netip.Addr, port uint16, err error) {
	bare := host
	if h, p, err := net.SplitHostPort(host); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", addr, 0, fmt.Errorf("port %q", p)
		}
		bare, port = h, uint16(n)
	} else if inner, ok := strings.CutPrefix(host, "["); ok {
		bare = strings.TrimSuffix(inner, "]")
	}
	if a, err := netip.ParseAddr(bare); err == nil && a.Zone() == "" {
		return "", a.Unmap(), port, nil
	}
	name, err = policy.Name(bare)
	return name, addr, port, err
}

// begin remembers a request while it is answered, so that it can be judged again.
func (c *Conn) begin(r *request) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active[r] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.active, r)
	}
}

func (c *Conn) operation(method string, status int) {
	c.note(func(r *Report) {
		if len(r.Operations) < maxOps {
			r.Operations = append(r.Operations, fmt.Sprintf("%.16s %d", method, status))
		}
	})
}

// forward asks upstream what the sandbox asked, and answers what it answers.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, c *Conn, req *request) {
	var failed error
	proxy := httputil.ReverseProxy{
		Transport: s.transport(c, req), FlushInterval: -1, BufferPool: buffers{},
		Rewrite:        func(pr *httputil.ProxyRequest) { failed = rewrite(pr, c, req) },
		ModifyResponse: func(resp *http.Response) error { return answer(resp, req) },
		ErrorHandler:   func(w http.ResponseWriter, _ *http.Request, err error) { s.fail(w, c, err) },
		ErrorLog:       log.New(discard{}, "", 0),
	}
	proxy.Transport = failing{proxy.Transport, &failed}
	proxy.ServeHTTP(w, r)
}

// failing is a transport for requests that could not be made ready: those do not leave.
type failing struct {
	http.RoundTripper
	err *error
}

func (f failing) RoundTrip(r *http.Request) (*http.Response, error) {
	if *f.err != nil {
		return nil, *f.err
	}
	return f.RoundTripper.RoundTrip(r)
}

// forwarded are headers that ReverseProxy takes away, for a proxy that is asked to
// be one. Nobody asked for this one, and what clients say in them is theirs.
var forwarded = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

func rewrite(pr *httputil.ProxyRequest, c *Conn, req *request) error {
	pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = "http", req.upstream(), req.authority
	if c.TLS {
		pr.Out.URL.Scheme = "https"
	}
	pr.Out.URL.User, pr.Out.Trailer = nil, nil
	for _, name := range forwarded {
		if v, ok := pr.In.Header[name]; ok {
			pr.Out.Header[name] = v
		}
	}
	if req.credential == nil {
		return nil
	}
	err := req.body.whileKept(func() error { return req.credential.Apply(pr.Out) })
	if errors.Is(err, errNoMemory) {
		return errNoMemory
	}
	return err
}

// upstream is the host and the port to dial.
func (r *request) upstream() string {
	host := r.Name
	if host == "" {
		host = r.Addr.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(r.Port)))
}

func answer(resp *http.Response, req *request) error {
	if req.credential != nil {
		req.credential.Scrub(resp)
	}
	resp.Header.Del("Alt-Svc") // hints at ways past this proxy
	return nil
}

// fail answers what a request ended in. It tells the sandbox what it may know.
func (s *Server) fail(w http.ResponseWriter, c *Conn, err error) {
	c.note(func(r *Report) { r.Err = err })
	status, text := http.StatusBadGateway, "upstream cannot be reached"
	var known *errdefs.Error
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.Is(err, errMisdirected):
		status, text = http.StatusMisdirectedRequest, err.Error()
	case errors.As(err, &cert), errors.As(err, &unknown):
		text = "upstream's certificate is not valid"
	case errors.As(err, &known):
		status, text = known.Kind.HTTPStatus(), known.Message
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		status, text = http.StatusGatewayTimeout, "upstream does not answer"
	}
	w.Header().Set("X-S0-Egress", "denied")
	if status >= 500 {
		w.Header().Set("X-S0-Egress", "failed")
	}
	http.Error(w, "s0 egress: "+text, status)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// recorder keeps the status of an answer. When an upgrade was asked for, any answer
// that comes by it closes the connection: what follows such a head passes its
// guard unseen. (ReverseProxy writes the answer to an upgrade that is made itself.)
type recorder struct {
	http.ResponseWriter
	upgrade bool
	status  int
}

func (r *recorder) WriteHeader(status int) {
	if status >= 200 {
		r.status = status
		if r.upgrade {
			r.Header().Set("Connection", "close")
		}
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets net/http flush and hijack.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

const copyBuffer = 32 << 10

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

type buffers struct{}

func (buffers) Get() []byte  { return *copyBuffers.Get().(*[]byte) }
func (buffers) Put(b []byte) { copyBuffers.Put(&b) }

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
