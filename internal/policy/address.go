package policy

import (
	"net/netip"
	"slices"
)

// never is what no policy opens: "this" network and this machine's own loopback,
// link-local addresses with the metadata services, protocol assignments, multicast,
// reserved; Azure's, Alibaba's and (by IPv6) Amazon's metadata. Of IPv6 it is
// everything but global unicast and unique local addresses, and of the former what
// stands for something else: Teredo and 6to4. Mapped, compatible and NAT64
// addresses are in the first of its blocks.
var never = prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"168.63.129.16/32", "100.100.100.200/32",
	"::/3", "4000::/2", "8000::/2", "c000::/3", "e000::/4", "f000::/5", "f800::/6", "fe00::/7",
	"2001::/32", "2002::/16", "fd00:ec2::/32")

// private is reached where a rule names it: a CIDR that lies within. A rule for
// every address, a domain, and a mode don't name it.
var private = prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
	"192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"fc00::/7", "2001:db8::/32", "3fff::/20")

// Fixed is what the machine's operator decides for all sandboxes of a node.
type Fixed struct {
	// Denied comes before every rule: the node's and the control plane's addresses,
	// other sandboxes.
	Denied []netip.Prefix
	// PlatformDenied and PlatformAllowed are rules before the policy's own, in this order.
	PlatformDenied  []netip.Prefix
	PlatformAllowed []netip.Prefix
}

// Always is what no policy of this node opens. A data plane that denies it before
// it looks at any policy is right.
func (f Fixed) Always() []netip.Prefix {
	all := slices.Clone(never)
	for _, p := range f.Denied {
		all = append(all, p.Masked())
	}
	return all
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// covered says whether all of p lies in one of the list.
func covered(p netip.Prefix, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(outer netip.Prefix) bool { return covers(outer, p) })
}

func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// host is the prefix of one address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
