package proxy

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/netd/internal/dial"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/inject"
)

// wayOut is how a connection leaves: over which proxy of the sandbox's, and with which
// version of its credential. The zero one is none.
type wayOut struct {
	Proxy   policy.Proxy
	Source  string
	Version int64
}

// wayOut is the one by a sandbox's policy. What is open leaves by it as well, or ends.
func (p *Proxy) wayOut(g guest.Guest) (out wayOut) {
	conf, binding := g.Policy.EgressProxy()
	if conf != nil {
		out.Proxy = *conf
	}
	if binding != nil {
		out.Source, out.Version = binding.SourceRef, p.config.Credentials.Version(g.ID, g.Gen, binding.SourceRef)
	}
	return out
}

// dial connects to where a flow goes, over the sandbox's own proxy if it has one.
// Every address is judged by the policy with the name, and once more by the dialler.
func (p *Proxy) dial(ctx context.Context, g guest.Guest, to policy.Flow) (*dial.Conn, error) {
	target := dial.Target{Sandbox: g.ID, Port: to.Port}
	var err error
	if target.Proxy, err = p.egressProxy(ctx, g); err != nil {
		return nil, err
	}
	if target.Addrs, err = p.addrs(ctx, g, to); err != nil {
		return nil, err
	}
	return p.dialer.Dial(ctx, target)
}

// addrs are those of a flow that the policy lets it have.
func (p *Proxy) addrs(ctx context.Context, g guest.Guest, to policy.Flow) (allowed []netip.Addr, err error) {
	all := []netip.Addr{to.Addr}
	if !to.Addr.IsValid() {
		if all, err = p.resolver.Addrs(ctx, g, to.Name); err != nil {
			return nil, err
		}
	}
	var last policy.Verdict
	for _, to.Addr = range all {
		if last = g.Policy.Judge(to); last.Allow {
			allowed = append(allowed, to.Addr)
		}
	}
	if len(allowed) == 0 {
		return nil, errdefs.New(errdefs.PermissionDenied, "%s: %s", last.Rule, last.Reason)
	}
	return allowed, nil
}

// egressProxy is the sandbox's SOCKS5 proxy, resolved and with its credential; nil:
// it has none. The credential comes first: it is the policy's for as long as that is in
// force, and names take their time.
func (p *Proxy) egressProxy(ctx context.Context, g guest.Guest) (*dial.Proxy, error) {
	conf, binding := g.Policy.EgressProxy()
	if conf == nil {
		return nil, nil
	}
	host, text, err := net.SplitHostPort(conf.Address)
	if err != nil {
		return nil, errdefs.New(errdefs.BadGateway, "the egress proxy's address is none").WithCause(err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, errdefs.New(errdefs.BadGateway, "the egress proxy's port is none").WithCause(err)
	}
	out := &dial.Proxy{Port: uint16(port)}
	if binding != nil {
		ready, err := inject.Prepare(p.config.Credentials, g, binding)
		if err != nil {
			return nil, err
		}
		out.User, out.Pass = ready.UserPass()
	}
	out.Addrs, err = p.proxyAddrs(ctx, g, host)
	return out, err
}

// proxyAddrs are a proxy's: the policy names it, so what else the policy says of
// its address does not matter, but for what a name may never lead to.
func (p *Proxy) proxyAddrs(ctx context.Context, g guest.Guest, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if !g.Policy.Reachable(addr.Unmap()) {
			return nil, errdefs.New(errdefs.PermissionDenied, "the egress proxy's address is one that no policy opens")
		}
		return []netip.Addr{addr.Unmap()}, nil
	}
	name, err := policy.Name(host)
	if err != nil {
		return nil, errdefs.New(errdefs.BadGateway, "the egress proxy's name is none").WithCause(err)
	}
	return p.resolver.Addrs(ctx, g, name)
}
