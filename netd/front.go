package netd

import (
	"context"
	"errors"
	"net"

	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/dataplane"
	"s0.run/netd/internal/guest"
)

// front is what sandboxes talk to: the proxy and the resolver on the data plane's
// sockets. It is told of policies after the kernel judges by them.
type front struct {
	records *audit.Queue
}

func newFront(_ Config, records *audit.Queue) *front { return &front{records: records} }

// start serves the sockets until the stack is stopped. There is no proxy and no
// resolver yet: who gets here is refused, which is what a policy that needs one means.
func (f *front) start(_ Config, l *dataplane.Listeners, s *daemon.Stack) error {
	for name, listener := range map[string]*net.TCPListener{"proxy, IPv4": l.Proxy4, "proxy, IPv6": l.Proxy6, "DNS over TCP, IPv4": l.DNSTCP4, "DNS over TCP, IPv6": l.DNSTCP6} {
		s.Start(name, func(ctx context.Context) error { return refuse(ctx, listener) })
	}
	return nil
}

func refuse(ctx context.Context, l *net.TCPListener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		_ = c.SetLinger(0) // a reset says that nobody is there
		c.Close()
	}
}

// Changed is told of a sandbox's policy.
func (f *front) Changed(guest.Guest, netdapi.Policy) {}

// Ended is told of a sandbox's end.
func (f *front) Ended(guest.Guest) {}

// CA is the certificate of a sandbox's authority.
func (f *front) CA(id sandbox.ID) (netdapi.CA, error) {
	return netdapi.CA{}, errdefs.New(errdefs.Unavailable, "sandbox %s has no certificate authority", id)
}
