// Package httpproxy answers a sandbox in a server's place where a rule asks to look
// into HTTP, and asks the server in the sandbox's.
//
// A request is parsed, judged by the policy as it is at that moment, and made anew:
// nothing of what the sandbox wrote is passed on unparsed (E10). Every request on a
// connection is judged by itself, and one for another server than the connection
// was opened to is misdirected (E05). Upstream's certificate is always verified, in
// the name that the sandbox asked for. Each connection of a sandbox has connections
// to upstream of its own, apart by credential, so that no two identities ever share
// one. Redirects are the sandbox's to follow (F03).
//
// A [Conn] is one connection of a sandbox, the [Server] owns the goroutines.
package httpproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/inject"
	"s0.run/netd/internal/relay"
	"s0.run/netd/internal/share"
)

const (
	handshakeTimeout = 10 * time.Second
	headTimeout      = 10 * time.Second // of a request's head, once it has begun
	idleTimeout      = 2 * time.Minute  // between requests
	answerTimeout    = 10 * time.Minute // until an upstream's answer begins: models think long
	stopTimeout      = 2 * time.Second
	maxStreams       = 100
	// maxUpstream bounds one connection's own connections to a server, which
	// multiplexed requests to one that knows HTTP/1 alone would otherwise multiply.
	maxUpstream = 16
	maxOps      = 32
	// What is still sent of a body that was answered is read for as long as lingerTime, and
	// while it comes: a client may send all of it before it reads the answer.
	lingerTime  = 30 * time.Second
	lingerQuiet = 5 * time.Second
)

// Destination is where a request goes.
type Destination struct {
	Name string     // canonical, or
	Addr netip.Addr // the address that the sandbox connected to, without a name
	Port uint16
	App  string // policy's word
}

// Config is what a [Server] needs.
type Config struct {
	// Dial connects to a destination that it judges with the addresses it dials; at
	// is the one that it got.
	Dial func(ctx context.Context, g guest.Guest, to Destination) (conn net.Conn, at netip.Addr, err error)
	// WayOut says how Dial leaves for a sandbox as it is: what it answers can be compared.
	WayOut func(g guest.Guest) any
	// Credentials opens them.
	Credentials inject.Source
	// Roots verify upstreams. Defaults to the system's.
	Roots *x509.CertPool
	// Memory is asked for what is kept of bodies.
	Memory *share.Pool[sandbox.ID]
	Log    *slog.Logger
}

// Server answers connections. It is safe for concurrent use.
type Server struct {
	config Config
	http   *http.Server
	conns  *queue
}

// New makes a server; nothing is answered before Run.
func New(config Config) (*Server, error) {
	if config.Dial == nil || config.WayOut == nil || config.Credentials == nil || config.Memory == nil || config.Log == nil {
		return nil, errors.New("the HTTP proxy's configuration is incomplete")
	}
	s := &Server{config: config, conns: &queue{conns: make(chan net.Conn), closed: make(chan struct{})}}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler: http.HandlerFunc(s.serve), Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: headTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHead,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, connOf(c))
		},
		ErrorLog: slog.NewLogLogger(config.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

type connKey struct{}

// Run answers until ctx ends, and then cuts what is left.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(s.conns) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	s.conns.Close()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if s.http.Shutdown(stop) != nil {
		s.http.Close()
	}
	<-failed
	return nil
}

// queue is a listener of connections that were accepted elsewhere.
type queue struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// Conn is a sandbox's connection that is answered here.
type Conn struct {
	// Current is the sandbox as it is now; false: it is gone, and so is the connection's right.
	Current func() (guest.Guest, bool)
	Flow    *relay.Flow
	TLS     bool
	H2C     bool       // HTTP/2 without TLS
	Name    string     // canonical, of TLS; without it requests name their servers
	Addr    netip.Addr // that the sandbox connected to
	Port    uint16
	Leaf    func(name string) (*tls.Certificate, error) // of the sandbox's authority

	raw *tracked

	mu         sync.Mutex
	transports map[pool]*http.Transport
	active     map[*request]struct{}
	dialled    map[*upstream]struct{}
	report     Report
}

// Report is what a connection did, for its record.
type Report struct {
	Host       string
	Verdict    policy.Verdict // the last that was no plain yes
	Operations []string
	AuthRule   string
	AuthRef    string
	AuthDone   bool
	AuthHit    bool
	AuthErr    error
	Err        error
}

// tracked tells when a connection is closed, by whoever it was.
type tracked struct {
	net.Conn
	client net.Conn // below what counts
	conn   *Conn
	unread atomic.Bool // a request was answered before all of its body had come
	once   sync.Once
	closed chan struct{}
}

func (t *tracked) Close() error {
	t.once.Do(func() {
		if t.unread.Load() {
			t.linger()
		}
		close(t.closed)
	})
	return t.Conn.Close()
}

// linger reads what a client still sends that was answered already (RFC 9112, 9.6):
// closed meanwhile, his TCP would throw the answer away with the connection. net/http
// does so for connections of TCP alone, and not for clients that want theirs closed.
func (t *tracked) linger() {
	if c, ok := t.client.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		return
	}
	b := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(b)
	for end, err := time.Now().Add(lingerTime), error(nil); err == nil && time.Now().Before(end); {
		if err = t.SetReadDeadline(time.Now().Add(lingerQuiet)); err == nil {
			_, err = t.Conn.Read(*b)
		}
	}
}

func connOf(c net.Conn) *Conn {
	switch c := c.(type) {
	case *tls.Conn:
		return connOf(c.NetConn())
	case *guard:
		return connOf(c.Conn)
	case *tracked:
		return c.conn
	}
	return nil
}

// Serve answers a connection until it ends, and closes it.
func (s *Server) Serve(ctx context.Context, client net.Conn, c *Conn) Report {
	c.raw = &tracked{Conn: relay.Counted{Conn: client, Flow: c.Flow}, client: client, conn: c, closed: make(chan struct{})}
	c.mu.Lock()
	c.transports, c.active, c.dialled = map[pool]*http.Transport{}, map[*request]struct{}{}, map[*upstream]struct{}{}
	c.mu.Unlock()
	defer c.end()
	ready, err := s.handshake(ctx, c)
	if err != nil {
		c.note(func(r *Report) { r.Err = err })
		return c.Report()
	}
	select {
	case s.conns.conns <- ready:
		<-c.raw.closed
	case <-s.conns.closed:
	}
	return c.Report()
}

func (c *Conn) end() {
	c.raw.Close()
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.transports))
	c.mu.Unlock()
	for _, t := range all { // whose connections ask for the lock
		t.CloseIdleConnections()
	}
}

// Report is what the connection did so far.
func (c *Conn) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.report
}

func (c *Conn) note(f func(*Report)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.report)
}

// handshake gives the connection to hand to net/http: HTTP/1 behind a guard.
func (s *Server) handshake(ctx context.Context, c *Conn) (net.Conn, error) {
	switch {
	case c.H2C:
		return c.raw, nil
	case !c.TLS:
		return newGuard(c.raw), nil
	}
	leaf, err := c.Leaf(c.Name)
	if err != nil {
		return nil, err
	}
	conn := tls.Server(c.raw, &tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12})
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("the sandbox's client does not complete the handshake (F13): %w", err)
	}
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		return conn, nil
	}
	return newGuard(conn), nil
}

// Allowed says whether what is under way on a connection is allowed by the policy,
// and carries the credentials, that are in force now (E21, F12).
func (s *Server) Allowed(c *Conn) bool {
	g, ok := c.Current()
	if !ok || c.TLS && !judgeFlow(g.Policy, c.destination(c.Name, netip.Addr{})).Allow {
		return false
	}
	for _, r := range c.requests() {
		if !judgeFlow(g.Policy, c.destination(r.Name, r.Addr)).Allow || !g.Policy.HTTP(r.Request).Allow {
			return false
		}
		if !s.current(g, r) {
			return false
		}
	}
	return c.reaches(g.Policy, s.config.WayOut(g))
}

// current says whether the credential that a request carries, if any, is the one that it has
// to carry by the policy, in the version that is in force.
func (s *Server) current(g guest.Guest, r *request) bool {
	p := r.credential
	if p == nil {
		return true
	}
	cred, _ := g.Policy.Credential(r.Request)
	return p.Is(cred) && s.config.Credentials.Version(g.ID, g.Gen, p.Source) == p.Version
}

func (c *Conn) requests() (all []*request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.active {
		all = append(all, r)
	}
	return all
}

func (c *Conn) destination(name string, addr netip.Addr) Destination {
	d := Destination{Name: name, Addr: addr, Port: c.Port, App: policy.HTTP}
	if c.TLS {
		d.App = policy.TLS
	}
	return d
}

func judgeFlow(p *policy.Compiled, d Destination) policy.Verdict {
	return p.Judge(policy.Flow{Name: d.Name, Addr: d.Addr, Port: d.Port, App: d.App})
}

// A pool is of connections to upstream that requests may share: those that have left in one
// way, and carry one credential.
type pool struct {
	out     any
	ref     string
	version int64
}

// transport is the connection's own way to upstream for requests like one.
func (s *Server) transport(c *Conn, req *request) *http.Transport {
	key := pool{out: req.out}
	if req.credential != nil {
		key.ref, key.version = req.credential.Ref, req.credential.Version
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.transports[key]; t != nil {
		return t
	}
	t := &http.Transport{
		DialContext:     func(ctx context.Context, _, addr string) (net.Conn, error) { return s.dial(ctx, c, addr) },
		TLSClientConfig: &tls.Config{RootCAs: s.config.Roots, MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: handshakeTimeout, ForceAttemptHTTP2: true,
		ResponseHeaderTimeout: answerTimeout, IdleConnTimeout: idleTimeout, ExpectContinueTimeout: time.Second,
		MaxConnsPerHost: maxUpstream, MaxIdleConnsPerHost: maxUpstream, MaxResponseHeaderBytes: 256 << 10,
		DisableCompression: true, ReadBufferSize: 16 << 10, WriteBufferSize: 16 << 10,
	}
	if c.H2C {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	c.transports[key] = t
	return t
}

func (s *Server) dial(ctx context.Context, c *Conn, addr string) (net.Conn, error) {
	g, ok := c.Current()
	if !ok {
		return nil, errdefs.New(errdefs.PermissionDenied, "the sandbox is gone")
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	to := c.destination(host, netip.Addr{})
	if ip, err := netip.ParseAddr(host); err == nil {
		to = c.destination("", ip)
	}
	out := s.config.WayOut(g)
	conn, at, err := s.config.Dial(ctx, g, to)
	if err != nil {
		return nil, err
	}
	to.Addr = at
	return s.keep(c, conn, to, out)
}
