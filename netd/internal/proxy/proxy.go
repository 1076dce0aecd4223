// Package proxy is the sandboxes' way to the world for all that has to be looked
// at: the resolver, and every TCP connection that the data plane hands over.
//
// A connection is classified by its first bytes, judged by its sandbox's policy,
// and then spliced to where its name leads, answered by the HTTP proxy, or cut. What
// is dialled is the name as netd resolved it, or, where a protocol has no name, the
// address; the address under a name that the sandbox made up is looked at by nobody
// (E06). The package owns the open flows, the sandboxes' authorities and the
// records of what happened; who a sandbox is and what it may do it asks.
package proxy

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/ca"
	"s0.run/netd/internal/dial"
	"s0.run/netd/internal/dnsproxy"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/httpproxy"
	"s0.run/netd/internal/inject"
	"s0.run/netd/internal/relay"
	"s0.run/netd/internal/share"
	"s0.run/netd/internal/sniff"
	"s0.run/netd/internal/sshproxy"
)

const (
	// maxFlows is how many connections of a sandbox are open at once, the
	// resolver's apart (D08).
	maxFlows    = 1024
	maxDNSConns = 16
	// acceptPause is waited after a failure to accept that passes by itself: a
	// process out of descriptors must not spin (D08).
	acceptPause = 50 * time.Millisecond
)

// Config is what a [Proxy] needs.
type Config struct {
	Lookup guest.Lookup
	// Learn is told which addresses a sandbox was answered, for which slots of its
	// policy.
	Learn func(g guest.Guest, addr netip.Addr, slots uint64, ttl time.Duration)
	// Forbidden are the addresses that no policy opens.
	Forbidden func(netip.Addr) bool
	// Resolvers are the upstreams of the resolver.
	Resolvers []netip.AddrPort
	// DialResolver connects to one of them. Defaults to [dial.Resolver].
	DialResolver func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// Credentials opens them.
	Credentials inject.Source
	// Identities are what sandboxes are answered with. Defaults to some that end with
	// this process.
	Identities *ca.Root
	// Roots verify upstreams. Defaults to the system's.
	Roots *x509.CertPool
	// Records takes what happened, without waiting for anybody.
	Records interface{ Add(audit.Record) }
	Log     *slog.Logger
	// Keep takes a spliced connection over when the proxy stops: with no error both its
	// sockets are somebody's who keeps them open. Nil: nobody does.
	Keep func(Handover) error
	// Limits of looking at first bytes. Defaults to [sniff.DefaultLimits].
	Limits sniff.Limits
	// Memory bounds, in bytes, what is held for sandboxes: long first messages, bodies
	// that are looked into, answers to queries. Defaults to [memory].
	Memory share.Config
}

// memory is for a node of thousands of sandboxes: what is everybody's is what an
// ordinary one ever uses.
var memory = share.Config{Sure: 256 << 10, Most: 16 << 20, Spare: 512 << 20}

// Proxy is the sandboxes' way to the world. It is safe for concurrent use.
type Proxy struct {
	config   Config
	resolver *dnsproxy.Resolver
	dialer   *dial.Dialer
	http     *httpproxy.Server
	memory   *share.Pool[sandbox.ID]
	shells   *share.Pool[sandbox.ID]
	flows    *relay.Registry
	lookups  *relay.Registry // connections to the resolver, to bound them

	mu          sync.Mutex
	authorities map[sandbox.ID]*ca.Authority
}

// New makes a proxy.
func New(config Config) (*Proxy, error) {
	if config.Lookup == nil || config.Learn == nil || config.Credentials == nil || config.Records == nil || config.Log == nil {
		return nil, errors.New("the proxy's configuration is incomplete")
	}
	if config.DialResolver == nil {
		config.DialResolver = dial.Resolver
	}
	if config.Identities == nil {
		config.Identities = ca.NewLoneRoot()
	}
	if config.Limits == (sniff.Limits{}) {
		config.Limits = sniff.DefaultLimits
	}
	if config.Memory == (share.Config{}) {
		config.Memory = memory
	}
	p := &Proxy{config: config, shells: share.New[sandbox.ID](shells), memory: share.New[sandbox.ID](config.Memory), flows: relay.NewRegistry(), lookups: relay.NewRegistry(), authorities: map[sandbox.ID]*ca.Authority{}}
	var err error
	if p.dialer, err = dial.New(dial.Config{Forbidden: config.Forbidden}); err != nil {
		return nil, err
	}
	p.resolver, err = dnsproxy.New(dnsproxy.Config{
		Lookup: config.Lookup, Upstreams: config.Resolvers, Dial: config.DialResolver,
		Learn: config.Learn, Observe: p.observe, Memory: p.memory, Log: config.Log,
	})
	if err != nil {
		return nil, err
	}
	p.http, err = httpproxy.New(httpproxy.Config{
		Dial: func(ctx context.Context, g guest.Guest, to httpproxy.Destination) (net.Conn, netip.Addr, error) {
			conn, err := p.dial(ctx, g, flowTo(to))
			if err != nil {
				return nil, netip.Addr{}, err
			}
			return conn, conn.To, nil
		},
		WayOut:      func(g guest.Guest) any { return p.wayOut(g) },
		Credentials: config.Credentials, Roots: config.Roots, Memory: p.memory, Log: config.Log,
	})
	return p, err
}

func flowTo(to httpproxy.Destination) policy.Flow {
	return policy.Flow{Name: to.Name, Addr: to.Addr, Port: to.Port, App: to.App}
}

// Run does the work behind the connections until ctx ends. Connections that are
// served then are cut, or handed over.
func (p *Proxy) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.http.Run(ctx) })
	group.Go(func() error { return p.flows.Run(ctx) })
	group.Go(func() error { return p.lookups.Run(ctx) })
	return group.Wait()
}

// Serve takes connections whose local address is where the sandbox connected to,
// until ctx ends or the listener is closed, and returns when all of them are done.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			wg.Go(func() { p.handle(ctx, conn) })
		case ctx.Err() != nil:
			return nil
		case passes(err):
			p.config.Log.Warn("a connection was not accepted", "error", err)
			pause(ctx, acceptPause)
		default:
			return fmt.Errorf("accepting connections of sandboxes: %w", err)
		}
	}
}

// passes says whether a listener works again after a while.
func passes(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPERM, syscall.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// ServeDNS answers queries until ctx ends.
func (p *Proxy) ServeDNS(ctx context.Context, packets net.PacketConn, l net.Listener) error {
	if l != nil {
		l = &bounded{Listener: l, p: p}
	}
	return p.resolver.Serve(ctx, packets, l)
}

// bounded is a listener that bounds how many connections a sandbox has.
type bounded struct {
	net.Listener
	p *Proxy
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			if passes(err) {
				time.Sleep(acceptPause)
				continue
			}
			return nil, err
		}
		g, ok := b.p.config.Lookup(peer(conn.RemoteAddr()).Addr())
		if !ok || b.p.lookups.Open(g.ID) >= maxDNSConns {
			reset(conn)
			continue
		}
		flow := &relay.Flow{Sandbox: g.ID, Cut: func() { conn.Close() }, Allowed: func() bool {
			now, ok := b.p.config.Lookup(peer(conn.RemoteAddr()).Addr())
			return ok && now.ID == g.ID && now.Gen == g.Gen
		}}
		return &registered{Conn: relay.Counted{Conn: conn, Flow: flow}, remove: b.p.lookups.Add(flow)}, nil
	}
}

type registered struct {
	net.Conn
	remove func()
}

func (r *registered) Close() error {
	r.remove()
	return r.Conn.Close()
}

// Changed judges a sandbox's open flows again, after its policy or its credentials
// changed, and tells the data plane again what it was answered.
func (p *Proxy) Changed(g guest.Guest) (cut int) {
	p.resolver.Refresh(g)
	return p.flows.Rejudge(g.ID)
}

// Gone cuts what is left of a sandbox's generation, which nobody looks up any more,
// and forgets it. What another one of the same sandbox has stays; last says that there
// is none.
func (p *Proxy) Gone(g guest.Guest, last bool) {
	p.flows.Rejudge(g.ID)
	p.lookups.Rejudge(g.ID)
	p.resolver.Forget(g.ID, g.Gen)
	if last {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.authorities, g.ID)
	}
}

// Prune forgets who is not known: what somebody asked for when the sandbox ended may
// have been made behind its end.
func (p *Proxy) Prune(known func(sandbox.ID) bool) {
	p.resolver.Prune(known)
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.authorities {
		if !known(id) {
			delete(p.authorities, id)
		}
	}
}

// SSHHost is the public key with which a sandbox is answered over SSH, as a line of
// authorized_keys.
func (p *Proxy) SSHHost(id sandbox.ID) (string, error) {
	key, err := p.config.Identities.HostKey(id)
	if err != nil {
		return "", err
	}
	return sshproxy.HostKeyLine(key)
}

// CA is the certificate of a sandbox's own authority, which is made when it is
// first asked for and lives until the sandbox is gone.
func (p *Proxy) CA(id sandbox.ID) ([]byte, error) {
	a, err := p.authority(id)
	if err != nil {
		return nil, err
	}
	return a.PEM(), nil
}

func (p *Proxy) authority(id sandbox.ID) (*ca.Authority, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.authorities[id]; a != nil {
		return a, nil
	}
	a, err := p.config.Identities.Authority(id) // some 100 µs, without waiting for anybody
	if err != nil {
		return nil, err
	}
	p.authorities[id] = a
	return a, nil
}

// peer is an address in its plain form.
func peer(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		at := tcp.AddrPort()
		return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	return netip.AddrPort{}
}

// reset ends a connection so that the other side sees it was refused.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0) //nolint:errcheck // a closed one needs none
	}
	conn.Close()
}

func flowID() string {
	var b [8]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	return hex.EncodeToString(b[:])
}
