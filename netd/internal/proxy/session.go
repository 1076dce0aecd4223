package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/dial"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/httpproxy"
	"s0.run/netd/internal/inject"
	"s0.run/netd/internal/relay"
	"s0.run/netd/internal/sniff"
)

// session is one connection of a sandbox, from its first byte to its record.
type session struct {
	p      *Proxy
	gen    sandbox.Generation
	guest  guest.Guest // as it was when its first bytes were known
	conn   net.Conn
	src    netip.AddrPort
	dst    netip.AddrPort // where the sandbox connected to; a name that it gives goes before
	flow   *relay.Flow
	record audit.Record
	route  route // by which it was judged
	how    way
	out    *wayOut // of its connection to upstream; nil before there is one

	credential atomic.Pointer[inject.Prepared] // that it carries, if it carries one
	line       atomic.Pointer[relay.Line]      // of one that is spliced
	handedOver bool                            // somebody else goes on with it

	mu      sync.Mutex
	allowed func() bool // by the policy as it is now
}

// way is what becomes of a connection that may be.
type way int

const (
	spliced way = iota
	intercepted
	tunnelled // with a certificate of its own
	loggedIn
)

// route finds a connection's way by a policy. What may go no way has a verdict that says so.
type route func(*policy.Compiled) (way, policy.Verdict)

// handle sees a connection through.
func (p *Proxy) handle(ctx context.Context, conn net.Conn) {
	s := &session{p: p, conn: conn, src: peer(conn.RemoteAddr()), dst: peer(conn.LocalAddr())}
	g, ok := p.config.Lookup(s.src.Addr())
	if !ok || p.flows.Open(g.ID) >= maxFlows {
		reset(conn)
		return
	}
	s.guest, s.gen = g, g.Gen
	s.begin()
	s.see(ctx, s.serve)
}

// see has a connection served, which may be cut at any time, and writes its record.
func (s *session) see(ctx context.Context, serve func(context.Context) error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.flow = &relay.Flow{Sandbox: s.guest.ID, Cut: func() {
		reset(s.conn)
		cancel() // what it is still being connected to, too
	}, Allowed: s.stillAllowed}
	defer s.p.flows.Add(s.flow)()
	defer s.conn.Close()
	defer context.AfterFunc(ctx, s.interrupt)()
	if err := serve(ctx); !s.handedOver {
		s.end(err)
	}
}

func (s *session) begin() {
	s.record = audit.Record{
		Timestamp: time.Now().UTC(), FlowID: flowID(), SandboxID: string(s.guest.ID), Generation: uint64(s.guest.Gen), TeamID: s.guest.Team,
		SrcIP: s.src.Addr(), DestIP: s.dst.Addr(), DestPort: s.dst.Port(), Transport: policy.TCP, Action: audit.Allow,
	}
}

func (s *session) serve(ctx context.Context) error {
	limits := s.p.config.Limits
	clientFirst := s.dst.Port() == 80 || s.dst.Port() == 443
	if clientFirst { // there is no server that speaks first to wait for
		limits.Quiet = limits.Timeout
	}
	held := 0
	defer func() { s.p.memory.Give(s.guest.ID, held) }()
	result, head, err := sniff.Peek(s.conn, limits, func(n int) bool {
		ok := s.p.memory.Take(s.guest.ID, n)
		if ok {
			held += n
		}
		return ok
	})
	s.record.ClassifierResult, s.record.Protocol = string(result.Kind), app(result.Kind)
	if err != nil || clientFirst && result.Kind == sniff.Silent {
		reset(s.conn)
		s.deny("what it begins with is not understood")
		return err
	}
	g, ok := s.current() // the policy may have changed while the client said nothing
	if !ok {
		reset(s.conn)
		s.deny("the sandbox is gone")
		return nil
	}
	s.guest = g
	switch result.Kind {
	case sniff.TLS:
		return s.tls(ctx, head, result.Hello)
	case sniff.HTTP, sniff.HTTP2:
		return s.http(ctx, head, &httpproxy.Conn{H2C: result.Kind == sniff.HTTP2, Addr: s.dst.Addr()})
	}
	return s.raw(ctx, head, app(result.Kind))
}

// app is the policy's word for what was seen; what was not understood has none.
func app(k sniff.Kind) string {
	switch k {
	case sniff.Unknown, sniff.Silent:
		return ""
	case sniff.HTTP2:
		return policy.HTTP
	}
	return string(k)
}

// tls judges a connection by the name in its ClientHello.
func (s *session) tls(ctx context.Context, head *sniff.Conn, hello sniff.Hello) error {
	to := policy.Flow{Port: s.dst.Port(), App: policy.TLS}
	var err error
	if hello.ServerName == "" {
		to.Addr = s.dst.Addr()
	} else if to.Name, err = policy.Name(hello.ServerName); err != nil {
		reset(s.conn)
		s.deny("the server's name is none")
		return err
	}
	s.record.Host = to.Name
	what := sighting{To: to, TLS: true, ECH: hello.ECH}
	if !s.judge(to, what.way) {
		return nil
	}
	switch s.how {
	case spliced:
		return s.splice(ctx, head, what)
	case tunnelled:
		return s.tunnel(ctx, head, to, s.guest.Policy.ConnectionCredential(to.Name, to.Port, policy.TLS))
	}
	return s.http(ctx, head, &httpproxy.Conn{TLS: true, Name: to.Name, Addr: s.dst.Addr()})
}

func tlsWay(p *policy.Compiled, to policy.Flow, ech bool) (way, policy.Verdict) {
	intercept := p.NeedsInterception(to.Name, to.Port)
	switch {
	case to.Name == "" && p.InterceptsPort(to.Port):
		return 0, refusal("a rule has to look inside, and there is no name to answer in")
	case ech && !intercept:
		return 0, refusal("the ClientHello is encrypted: its name is not the connection's") // E08
	case !intercept:
		return spliced, policy.Verdict{Allow: true}
	case p.ConnectionCredential(to.Name, to.Port, policy.TLS) == nil:
		return intercepted, policy.Verdict{Allow: true}
	case p.Inspects(to.Name, to.Port):
		return 0, refusal("a rule has to look inside, where a client certificate lets everything pass")
	}
	return tunnelled, policy.Verdict{Allow: true}
}

// http has the HTTP proxy answer.
func (s *session) http(ctx context.Context, head net.Conn, c *httpproxy.Conn) error {
	c.Current, c.Flow, c.Port, c.Leaf = s.current, s.flow, s.dst.Port(), s.leaf
	if !s.allow(func() bool { return s.p.http.Allowed(c) }) {
		return nil
	}
	s.record.Adapter = "terminate"
	report := s.p.http.Serve(ctx, head, c)
	if report.Host != "" {
		s.record.Host = report.Host
	}
	s.record.ProtocolOperations = report.Operations
	s.authorised(report.AuthRule, report.AuthRef, report.AuthDone, report.AuthHit, report.AuthErr)
	s.verdict(report.Verdict)
	return report.Err
}

func (s *session) authorised(rule, ref string, done, hit bool, err error) {
	s.record.AuthRuleName, s.record.AuthRef, s.record.AuthResolved, s.record.AuthCacheHit = rule, ref, done, hit
	if rule != "" {
		s.record.AuthFailurePolicy = policy.FailClosed
	}
	if err != nil {
		s.record.AuthResolveError = errdefs.From(err).Message
	}
}

func (s *session) leaf(name string) (*tls.Certificate, error) {
	a, err := s.p.authority(s.guest.ID)
	if err != nil {
		return nil, err
	}
	return a.Leaf(name)
}

// raw judges a connection of a protocol that names no server: by the names for
// which its address was answered, or by the address alone.
func (s *session) raw(ctx context.Context, head *sniff.Conn, seen string) error {
	to := policy.Flow{Addr: s.dst.Addr(), Port: s.dst.Port(), App: seen}
	for _, name := range s.p.resolver.Names(s.guest, to.Addr) {
		named := to
		named.Name = name
		if v := s.guest.Policy.Judge(named); to.Name == "" || v.Allow && !v.WouldDeny {
			to = named
		}
	}
	s.record.Host = to.Name
	what := sighting{To: to}
	if !s.judge(to, what.way) {
		return nil
	}
	if s.how == loggedIn {
		return s.login(ctx, head, to, s.guest.Policy.ConnectionCredential(to.Name, to.Port, seen))
	}
	return s.splice(ctx, head, what)
}

// sighting is what was seen of a connection whose protocol nobody looks into further.
type sighting struct {
	To  policy.Flow
	TLS bool
	ECH bool
}

func (f sighting) way(p *policy.Compiled) (way, policy.Verdict) {
	if f.TLS {
		return tlsWay(p, f.To, f.ECH)
	}
	return rawWay(p, f.To)
}

func rawWay(p *policy.Compiled, to policy.Flow) (way, policy.Verdict) {
	switch {
	// Who waits until nobody looks any more must not get past a rule that looks.
	case to.App == "" && (p.NeedsInterception(to.Name, to.Port) || p.NeedsHTTP(to.Name, to.Port)):
		return 0, refusal("a rule has to look inside, and nothing is said that it understands")
	case to.App != "" && p.ConnectionCredential(to.Name, to.Port, to.App) != nil:
		return loggedIn, policy.Verdict{Allow: true}
	case to.App == "":
		return spliced, p.Unseen(to)
	}
	return spliced, policy.Verdict{Allow: true}
}

// judge has the policy say whether a flow may be and finds its way; if it has none,
// it ends here.
func (s *session) judge(to policy.Flow, route route) bool {
	v := s.guest.Policy.Judge(to)
	s.verdict(v)
	if v.Allow {
		s.route = route
		s.how, v = route(s.guest.Policy)
		s.verdict(v)
	}
	if !v.Allow {
		reset(s.conn)
		return false
	}
	return s.allow(s.still(to))
}

// still says whether a flow may be as it is by the policy in force.
func (s *session) still(to policy.Flow) func() bool {
	route, how, out := s.route, s.how, s.out
	return func() bool {
		g, ok := s.current()
		if !ok || !g.Policy.Judge(to).Allow {
			return false
		}
		if out != nil && s.p.wayOut(g) != *out {
			return false
		}
		now, v := route(g.Policy)
		return v.Allow && now == how && s.carries(g, to)
	}
}

// carries says whether the connection's credential, if it has one, is the one in force (F12).
func (s *session) carries(g guest.Guest, to policy.Flow) bool {
	c := s.credential.Load()
	return c == nil || c.Is(g.Policy.ConnectionCredential(to.Name, to.Port, to.App)) && s.p.config.Credentials.Version(g.ID, g.Gen, c.Source) == c.Version
}

// splice passes the connection on as it is.
func (s *session) splice(ctx context.Context, head *sniff.Conn, what sighting) error {
	s.record.Adapter = "splice"
	client, ok := s.conn.(*net.TCPConn)
	if !ok {
		return errors.New("a connection that is not TCP")
	}
	up, err := s.dial(ctx, what.To)
	if err != nil {
		reset(client)
		return err
	}
	defer up.Close()
	return s.pass(ctx, &relay.Line{Client: client, Upstream: up.TCPConn, Flow: s.flow}, head.Take(), handover{Seen: what, Dialled: up.To, Out: *s.out})
}

func (s *session) dial(ctx context.Context, to policy.Flow) (*dial.Conn, error) {
	out := s.p.wayOut(s.guest)
	up, err := s.p.dial(ctx, s.guest, to)
	if err != nil {
		return nil, err
	}
	s.out = &out
	s.record.DestIP = peer(up.RemoteAddr()).Addr()
	to.Addr = up.To // from here on the address counts, too
	if !s.allow(s.still(to)) {
		up.Close()
		return nil, errdefs.New(errdefs.PermissionDenied, "the policy changed meanwhile")
	}
	return up, nil
}

// current is the sandbox as it is now: another generation at its address is not it.
func (s *session) current() (guest.Guest, bool) {
	g, ok := s.p.config.Lookup(s.src.Addr())
	return g, ok && g.ID == s.flow.Sandbox && g.Gen == s.gen
}

// allow has f say from now on whether the connection may be. The policy may have
// changed since it was judged, when nobody asked f yet: so f is asked at once, and a
// no ends the connection.
func (s *session) allow(f func() bool) bool {
	s.mu.Lock()
	s.allowed = f
	s.mu.Unlock()
	if f() {
		return true
	}
	reset(s.conn)
	s.deny("the policy changed meanwhile")
	return false
}

func (s *session) stillAllowed() bool {
	s.mu.Lock()
	f := s.allowed
	s.mu.Unlock()
	if f == nil { // nothing is known of it yet; it will be judged
		_, ok := s.current()
		return ok
	}
	return f()
}

// prepare makes a connection's credential ready.
func (s *session) prepare(cred *policy.Credential) (*inject.Prepared, error) {
	ready, err := inject.Prepare(s.p.config.Credentials, s.guest, &cred.Binding)
	hit := err == nil && ready.Hit
	s.credential.Store(ready)
	s.authorised(cred.Rule, cred.Binding.Ref, err == nil, hit, err)
	return ready, err
}
