// Package publicnet says which addresses are the public internet's.
//
// Who connects to where a tenant says must not reach what trusts this machine or
// its network. A name's addresses are looked at when they are dialled, by
// [Control], for a name may have others a moment later. The package keeps nothing
// and connects to nothing.
package publicnet

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"syscall"
)

var (
	private = prefixes("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7")

	// never is nobody's to reach: "this" network, link-local with the metadata
	// services, protocol assignments, documentation, benchmarks, 6to4, multicast,
	// reserved; Azure's and Alibaba's metadata, and Amazon's by IPv6.
	never = prefixes("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::/32")

	// global is all of IPv6 that is routed, and never6 the part of it that stands
	// for something else: Teredo and other protocol assignments, documentation,
	// 6to4. NAT64 (64:ff9b::/96), mapped and compatible addresses are outside.
	global = netip.MustParsePrefix("2000::/3")
	never6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func within(ip netip.Addr, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// usable takes an address apart from what is never to be reached; ok is false for
// that.
func usable(ip netip.Addr) (_ netip.Addr, ok bool) {
	plain := ip.Unmap()
	return plain, ip.IsValid() && ip.Zone() == "" && !within(plain, never) && !within(plain, never6)
}

// Is says whether an address is of the public internet.
func Is(ip netip.Addr) bool {
	ip, ok := usable(ip)
	return ok && !within(ip, private) && (ip.Is4() || global.Contains(ip))
}

// IsPrivate says whether an address is a machine's own or of a private or shared
// network. What serves a cloud's machines there is neither that nor public.
func IsPrivate(ip netip.Addr) bool {
	ip, ok := usable(ip)
	return ok && within(ip, private)
}

// ErrNotPublic is what dialling ends in that [Control] refuses.
var ErrNotPublic = errors.New("the address is not public")

// Control is for a [net.Dialer]: it refuses every address that is not public,
// after its name was looked up.
func Control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || !Is(to.Addr()) {
		return ErrNotPublic
	}
	return nil
}
