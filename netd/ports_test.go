package netd_test

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// X49: netd has no port left for another connection to an address. Who asks for one is
// refused at once, whichever sandbox has the ports; a name that has another address is
// reached there, and when a connection ends its port is somebody's again.
func TestX49_NoPorts(t *testing.T) {
	const ports = 4
	w := newWeb(t)
	w.mu.Lock()
	w.names = map[string][]string{"other.example.": {"60 A " + far4}} // good.example has IPv6, too
	w.mu.Unlock()
	greedy, neighbour := w.sandbox(), w.sandbox()
	for _, b := range []*box{greedy, neighbour} {
		b.policy(`{"mode":"block-all","egress":{"allowedDomains":["good.example","other.example"]}}`)
	}
	w.must(in(w.inside, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("20000 20003"), 0)
	}))
	held := make([]net.Conn, ports)
	for i := range held {
		held[i] = w.holds(greedy)
	}
	for _, b := range []*box{greedy, neighbour} {
		if c, err := b.tls(w, "other.example"); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("without a port: %v, %v", c, err)
		}
		w.eventually("the other address", func() error {
			c, err := b.tls(w, "good.example")
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	for _, c := range held {
		c.Close()
	}
	for i := range held {
		held[i] = w.holds(neighbour)
	}
}

// holds waits until a sandbox has a connection to other.example: a port that was used a
// moment ago rests.
func (w *web) holds(b *box) (c net.Conn) {
	w.t.Helper()
	w.eventually("a connection", func() (err error) {
		c, err = b.tls(w, "other.example")
		return err
	})
	w.t.Cleanup(func() { c.Close() })
	return c
}

// tls has a sandbox connect to a name's server: that has answered, through netd.
func (b *box) tls(w *web, name string) (net.Conn, error) {
	c, err := b.dial("tcp", net.JoinHostPort(far4, "443"))
	if err != nil {
		return nil, err
	}
	over := tls.Client(c, &tls.Config{RootCAs: w.roots, ServerName: name})
	_ = c.SetDeadline(time.Now().Add(deadline))
	if err := over.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return over, nil
}
