package httpproxy

import (
	"net"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
)

// upstream is a connection to a server, and to which of its addresses: a policy that
// forbids the address ends what its name still allows (E21).
type upstream struct {
	net.Conn
	to   Destination
	conn *Conn
}

// keep counts a connection to upstream. The policy may have changed while it was
// made, when nobody could ask for its address yet.
func (c *Conn) keep(conn net.Conn, to Destination) (net.Conn, error) {
	u := &upstream{Conn: conn, to: to, conn: c}
	c.mu.Lock()
	c.dialled[u] = struct{}{}
	c.mu.Unlock()
	if g, ok := c.Current(); !ok || !judgeFlow(g.Policy, to).Allow {
		u.Close()
		return nil, errdefs.New(errdefs.PermissionDenied, "the policy changed meanwhile")
	}
	return u, nil
}

func (u *upstream) Close() error {
	u.conn.mu.Lock()
	delete(u.conn.dialled, u)
	u.conn.mu.Unlock()
	return u.Conn.Close()
}

// reaches says whether a policy allows every address that the connection leads to.
func (c *Conn) reaches(p *policy.Compiled) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for u := range c.dialled {
		if !judgeFlow(p, u.to).Allow {
			return false
		}
	}
	return true
}
