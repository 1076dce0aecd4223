package policy

import (
	"net/netip"
	"slices"
)

// Reachable says whether a name may have an address, whatever is done with it
// then: not what is always denied, and what is private only where a rule's CIDR
// names it. A resolver leaves other addresses out of its answers.
func (c *Compiled) Reachable(a netip.Addr) bool {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || covered(host(a), c.always) {
		return false
	}
	return !covered(host(a), private) || slices.ContainsFunc(c.rules, func(r rule) bool { return r.allow && r.certain(host(a)) })
}
