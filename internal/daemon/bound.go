package daemon

import (
	"net"
	"sync"
)

// Bound hangs up on connections beyond so many, in all and from one address: those that
// never say who they are take nobody else's place for long, and no memory without end.
func Bound(l net.Listener, total, perAddress int) net.Listener {
	return &boundListener{Listener: l, total: total, per: perAddress, of: map[string]int{}}
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
		address, _, err := net.SplitHostPort(c.RemoteAddr().String())
		if err == nil && b.take(address) {
			return &boundConn{Conn: c, free: sync.OnceFunc(func() { b.free(address) })}, nil
		}
		c.Close()
	}
}

func (b *boundListener) take(address string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open >= b.total || b.of[address] >= b.per {
		return false
	}
	b.open++
	b.of[address]++
	return true
}

func (b *boundListener) free(address string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	if b.of[address]--; b.of[address] == 0 {
		delete(b.of, address)
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
