package daemon

import (
	"net"
	"net/netip"
	"sync"
)

// Network is what the owner of an address, which may have a port, has to himself: that
// address, or the /64 of one of IPv6's.
func Network(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	if ip = ip.Unmap().WithZone(""); ip.Is4() {
		return ip.String()
	}
	prefix, _ := ip.Prefix(64) // never fails without a zone
	return prefix.String()
}

// Bound hangs up on connections beyond so many, in all and from one [Network]: those that
// never say who they are take nobody else's place for long, and no memory without end.
func Bound(l net.Listener, total, perNetwork int) net.Listener {
	return &boundListener{Listener: l, total: total, per: perNetwork, of: map[string]int{}}
}

type boundListener struct {
	net.Listener
	total, per int

	mu   sync.Mutex
	open int
	of   map[string]int
}

// Accept implements net.Listener.
func (b *boundListener) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if from := Network(c.RemoteAddr().String()); b.take(from) {
			return &boundConn{Conn: c, free: sync.OnceFunc(func() { b.free(from) })}, nil
		}
		c.Close()
	}
}

func (b *boundListener) take(from string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open >= b.total || b.of[from] >= b.per {
		return false
	}
	b.open++
	b.of[from]++
	return true
}

func (b *boundListener) free(from string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	if b.of[from]--; b.of[from] == 0 {
		delete(b.of, from)
	}
}

type boundConn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *boundConn) Close() error {
	c.free()
	return c.Conn.Close()
}
