package httpproxy

import (
	"net"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
)

// upstream is a connection to a server, to which of its addresses, and how it has left: a
// policy that forbids the address, or has another way out, ends what its name still
// allows (E21).
type upstream struct {
	net.Conn
	to   Destination
	out  any
	conn *Conn
}

// keep counts a connection to upstream. The policy may have changed while it was
// made, when nobody could ask for its address yet.
func (s *Server) keep(c *Conn, conn net.Conn, to Destination, out any) (net.Conn, error) {
	u := &upstream{Conn: conn, to: to, out: out, conn: c}
	c.mu.Lock()
	c.dialled[u] = struct{}{}
	c.mu.Unlock()
	if g, ok := c.Current(); !ok || !u.may(g.Policy, s.config.WayOut(g)) {
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

func (u *upstream) may(p *policy.Compiled, out any) bool {
	return u.out == out && judgeFlow(p, u.to).Allow
}

// reaches says whether a policy allows every address that the connection leads to, and the
// way there.
func (c *Conn) reaches(p *policy.Compiled, out any) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for u := range c.dialled {
		if !u.may(p, out) {
			return false
		}
	}
	return true
}
