// Package dial is the one place where netd connects to something.
//
// A connection goes to addresses that netd looked up itself, never to one that a
// sandbox named, and each of them is judged twice: by the caller's policy before,
// and by the fixed denials in the socket's own hands just before it connects. Each
// sandbox has so many connections and no more. The package resolves nothing and
// decides nothing else.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/proxy"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	// totalTimeout bounds a connection's making over all addresses and a proxy
	// (X33); a black hole gets attemptTimeout, so that the next address has a turn.
	totalTimeout   = 15 * time.Second
	attemptTimeout = 5 * time.Second
	// maxAttempts bounds what one connection of a sandbox sets off.
	maxAttempts = 4
	// DefaultPerSandbox is how many connections a sandbox may have (D08, D10): an
	// upstream gives 54,000 ports to all of a node's sandboxes.
	DefaultPerSandbox = 1024
)

// ErrForbidden is what a connection ends in that no policy can allow.
var ErrForbidden = errors.New("the address is never reachable")

// Config is what a [Dialer] needs.
type Config struct {
	// Forbidden says which addresses nobody may reach, whatever a policy says.
	Forbidden func(netip.Addr) bool
	// PerSandbox is how many connections a sandbox may have. Defaults to [DefaultPerSandbox].
	PerSandbox int
}

// Dialer connects for sandboxes. It is safe for concurrent use.
type Dialer struct {
	config Config

	mu   sync.Mutex
	open map[sandbox.ID]int // by sandbox
}

// New makes a dialer.
func New(config Config) (*Dialer, error) {
	if config.Forbidden == nil {
		return nil, errors.New("a dialer needs to know what is forbidden")
	}
	if config.PerSandbox == 0 {
		config.PerSandbox = DefaultPerSandbox
	}
	return &Dialer{config: config, open: map[sandbox.ID]int{}}, nil
}

// Target is where to connect for whom.
type Target struct {
	Sandbox sandbox.ID
	Addrs   []netip.Addr // as netd resolved them; tried in order
	Port    uint16
	Proxy   *Proxy // nil: directly
}

// Proxy is a SOCKS5 proxy on the way.
type Proxy struct {
	Addrs []netip.Addr // as netd resolved them
	Port  uint16
	User  string // "": none
	Pass  string
}

// Conn is a connection to upstream. It counts against its sandbox until it is closed.
type Conn struct {
	*net.TCPConn
	To      netip.Addr // whom it leads to, which is not the remote address where a proxy is on the way
	release func()
}

// Close closes the connection and gives its place back, once.
func (c *Conn) Close() error {
	c.release()
	return c.TCPConn.Close()
}

// Dial connects to a target.
func (d *Dialer) Dial(ctx context.Context, to Target) (*Conn, error) {
	release, err := d.reserve(to.Sandbox)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	conn, err := d.connect(ctx, to)
	if err != nil {
		release()
		return nil, err
	}
	up := &Conn{TCPConn: conn, release: release}
	if to.Proxy != nil {
		up.To = to.Addrs[0].Unmap()
	} else if remote, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		up.To = remote.AddrPort().Addr().Unmap()
	}
	return up, nil
}

// Adopt counts a connection that another process has made for a sandbox.
func (d *Dialer) Adopt(id sandbox.ID, conn *net.TCPConn, to netip.Addr) (*Conn, error) {
	if remote, ok := conn.RemoteAddr().(*net.TCPAddr); !ok || d.config.Forbidden(to) || d.config.Forbidden(remote.AddrPort().Addr().Unmap()) {
		return nil, ErrForbidden
	}
	release, err := d.reserve(id)
	if err != nil {
		return nil, err
	}
	return &Conn{TCPConn: conn, To: to, release: release}, nil
}

func (d *Dialer) connect(ctx context.Context, to Target) (*net.TCPConn, error) {
	if to.Proxy == nil {
		return d.first(ctx, to.Addrs, to.Port)
	}
	conn, err := d.first(ctx, to.Proxy.Addrs, to.Proxy.Port)
	if err != nil {
		return nil, fmt.Errorf("connecting to the egress proxy: %w", err)
	}
	if err := d.through(ctx, conn, to); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connecting through the egress proxy: %w", err)
	}
	return conn, nil
}

// first connects to the first address that answers.
func (d *Dialer) first(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error) {
	var failed error = errdefs.New(errdefs.BadGateway, "the name has no address")
	for _, addr := range addrs[:min(len(addrs), maxAttempts)] {
		conn, err := d.one(ctx, netip.AddrPortFrom(addr.Unmap(), port))
		if err == nil {
			return conn, nil
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

func (d *Dialer) one(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: attemptTimeout, ControlContext: d.control, KeepAliveConfig: KeepAlive}
	conn, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// KeepAlive finds out within two minutes that a peer is gone.
var KeepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

// control is asked with the very address that the socket is about to connect to.
func (d *Dialer) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || to.Port() == 0 || to.Addr().Zone() != "" || d.config.Forbidden(to.Addr().Unmap()) {
		return ErrForbidden
	}
	return nil
}

// through has a SOCKS5 proxy connect. It is told an address: what netd resolved and
// judged, not a name that the proxy would look up by itself. An address that is
// forbidden is so through a proxy, too.
func (d *Dialer) through(ctx context.Context, conn *net.TCPConn, to Target) error {
	if len(to.Addrs) == 0 || d.config.Forbidden(to.Addrs[0].Unmap()) {
		return ErrForbidden
	}
	var auth *proxy.Auth
	if to.Proxy.User != "" {
		auth = &proxy.Auth{User: to.Proxy.User, Password: to.Proxy.Pass}
	}
	client, err := proxy.SOCKS5("tcp", conn.RemoteAddr().String(), auth, nil)
	if err != nil {
		return err
	}
	handshaker, ok := client.(interface {
		DialWithConn(context.Context, net.Conn, string, string) (net.Addr, error)
	})
	if !ok {
		return errors.New("the SOCKS5 library cannot use a connection of ours")
	}
	_, err = handshaker.DialWithConn(ctx, conn, "tcp", netip.AddrPortFrom(to.Addrs[0].Unmap(), to.Port).String())
	return err
}

// Resolver connects to a resolver of the operator's, which no sandbox chooses.
func Resolver(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, to.String())
}

// reserve takes one of a sandbox's places; release gives it back, once.
func (d *Dialer) reserve(id sandbox.ID) (release func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[id] >= d.config.PerSandbox {
		return nil, errdefs.New(errdefs.Exhausted, "the sandbox has %d connections already", d.config.PerSandbox)
	}
	d.open[id]++
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.open[id]--; d.open[id] == 0 {
			delete(d.open, id)
		}
	}), nil
}

// Open is how many connections a sandbox has.
func (d *Dialer) Open(id sandbox.ID) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open[id]
}
