package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listeners are netd's sockets inside, to which sandboxes' packets are handed: what
// the proxy has to see, and every DNS query. A connection's local address is where
// the sandbox wanted to go.
type Listeners struct {
	Proxy4, Proxy6   *net.TCPListener
	DNSTCP4, DNSTCP6 *net.TCPListener
	DNSUDP4, DNSUDP6 *net.UDPConn
}

// The addresses are of the loopback inside, where no sandbox gets by itself.
const (
	proxyPort = "15001"
	dnsPort   = "53"
)

// Listen opens the sockets. Those of an earlier process must be closed.
func (p *Plane) Listen(ctx context.Context) (*Listeners, error) {
	l := &Listeners{}
	err := inside(p.cfg.Inside, func() error {
		for _, t := range []struct {
			to            **net.TCPListener
			network, host string
			port          string
		}{
			{&l.Proxy4, "tcp4", "127.0.0.1", proxyPort}, {&l.Proxy6, "tcp6", "::1", proxyPort},
			{&l.DNSTCP4, "tcp4", "127.0.0.1", dnsPort}, {&l.DNSTCP6, "tcp6", "::1", dnsPort},
		} {
			got, err := transparent.Listen(ctx, t.network, net.JoinHostPort(t.host, t.port))
			if err != nil {
				return err
			}
			*t.to = got.(*net.TCPListener)
		}
		for _, u := range []struct {
			to            **net.UDPConn
			network, host string
		}{{&l.DNSUDP4, "udp4", "127.0.0.1"}, {&l.DNSUDP6, "udp6", "::1"}} {
			got, err := transparent.ListenPacket(ctx, u.network, net.JoinHostPort(u.host, dnsPort))
			if err != nil {
				return err
			}
			*u.to = got.(*net.UDPConn)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("data plane: listening: %w", err), l.Close())
	}
	return l, nil
}

// transparent sockets take packets for any address. They are plain TCP: sockets of
// Multipath TCP, which is Go's default, can't be handed packets by sk_lookup.
var transparent = func() (c net.ListenConfig) {
	c.Control = setTransparent
	c.SetMultipathTCP(false)
	return c
}()

func setTransparent(network, _ string, c syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if network == "tcp6" || network == "udp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, failed)
}

// Close closes them all.
func (l *Listeners) Close() error {
	var errs []error
	for _, t := range []*net.TCPListener{l.Proxy4, l.Proxy6, l.DNSTCP4, l.DNSTCP6} {
		errs = append(errs, closing(t, t != nil))
	}
	for _, u := range []*net.UDPConn{l.DNSUDP4, l.DNSUDP6} {
		errs = append(errs, closing(u, u != nil))
	}
	return errors.Join(errs...)
}

func closing(c io.Closer, open bool) error {
	if !open {
		return nil
	}
	return c.Close()
}
