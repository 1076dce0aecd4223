package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// rule is a traffic rule made ready. The legacy lists and the operator's prefixes
// are rules, too.
type rule struct {
	label   string // what records call it
	allow   bool
	cidrs   []netip.Prefix
	domains []pattern
	ports   []portRange
	apps    []string
}

type portRange struct {
	proto  Proto
	lo, hi uint16
}

// Proto is a transport's number in IP.
type Proto uint8

// The transports that a policy knows; the data plane decides about all others by itself.
const (
	ProtoTCP Proto = 6
	ProtoUDP Proto = 17
)

func (p Proto) String() string {
	switch p {
	case ProtoTCP:
		return TCP
	case ProtoUDP:
		return UDP
	}
	return fmt.Sprintf("proto %d", uint8(p))
}

// rules are the policy's in the order in which they are asked.
func (p *Policy) rules(fixed Fixed) ([]rule, error) {
	var all []rule
	if len(fixed.PlatformDenied) > 0 {
		all = append(all, rule{label: "platform", cidrs: masked(fixed.PlatformDenied)})
	}
	if len(fixed.PlatformAllowed) > 0 {
		all = append(all, rule{label: "platform", allow: true, cidrs: masked(fixed.PlatformAllowed)})
	}
	e := p.egress()
	for _, r := range append(e.legacy(p.Mode), e.TrafficRules...) {
		ready, err := r.ready()
		if err != nil {
			return nil, err
		}
		if ready.label == "" {
			ready.label = fmt.Sprintf("trafficRules[%d]", len(all))
		}
		all = append(all, ready)
	}
	return all, nil
}

// legacy are the allowed and denied lists as rules.
func (e *Egress) legacy(mode string) (rules []TrafficRule) {
	if mode == BlockAll {
		if len(e.AllowedCIDRs)+len(e.AllowedDomains)+len(e.AllowedPorts) > 0 {
			rules = append(rules, TrafficRule{Name: "allowed", Action: ActionAllow, CIDRs: e.AllowedCIDRs, Domains: e.AllowedDomains, Ports: e.AllowedPorts})
		}
		return rules
	}
	if len(e.DeniedCIDRs)+len(e.DeniedDomains) > 0 {
		rules = append(rules, TrafficRule{Name: "denied", Action: ActionDeny, CIDRs: e.DeniedCIDRs, Domains: e.DeniedDomains})
	}
	if len(e.DeniedPorts) > 0 {
		rules = append(rules, TrafficRule{Name: "deniedPorts", Action: ActionDeny, Ports: e.DeniedPorts})
	}
	return rules
}

func (r *TrafficRule) ready() (rule, error) {
	ready := rule{label: r.Name, allow: r.Action == ActionAllow, apps: r.AppProtocols}
	for _, c := range r.CIDRs {
		p, err := cidr(c)
		if err != nil {
			return rule{}, err
		}
		ready.cidrs = append(ready.cidrs, p)
	}
	var err error
	ready.domains, err = patterns(r.Domains)
	ready.ports = ranges(r.Ports)
	return ready, err
}

// cidr reads a prefix in its canonical form, or one address.
func cidr(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, notAddr := netip.ParseAddr(s)
		if notAddr != nil {
			return netip.Prefix{}, err
		}
		p = host(a)
	}
	if a := p.Addr(); a.Is4In6() || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q: not a plain prefix", s)
	}
	return p.Masked(), nil
}

func masked(list []netip.Prefix) (all []netip.Prefix) {
	for _, p := range list {
		all = append(all, p.Masked())
	}
	return all
}

func patterns(domains []string) (all []pattern, _ error) {
	for _, d := range domains {
		p, err := parsePattern(d)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", d, err)
		}
		all = append(all, p)
	}
	return all, nil
}

func ranges(ports []Port) (all []portRange) {
	for _, p := range ports {
		r := portRange{proto: ProtoTCP, lo: uint16(p.Port), hi: uint16(max(p.Port, p.EndPort))}
		if p.Protocol == UDP {
			r.proto = ProtoUDP
		}
		all = append(all, r)
	}
	return all
}

func onPort(list []portRange, proto Proto, port uint16) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(r portRange) bool {
		return r.proto == proto && r.lo <= port && port <= r.hi
	})
}

func named(list []pattern, name string) bool {
	return slices.ContainsFunc(list, func(p pattern) bool { return p.matches(name) })
}

// anywhere says that a rule is about every destination.
func (r *rule) anywhere() bool { return len(r.cidrs)+len(r.domains) == 0 }

// certain says that a rule is about all of a prefix, whatever name it was reached
// by. What is private a rule allows by naming it alone.
func (r *rule) certain(p netip.Prefix) bool {
	if r.allow && covered(p, private) {
		return slices.ContainsFunc(r.cidrs, func(c netip.Prefix) bool { return covers(c, p) && covered(c, private) })
	}
	return r.anywhere() || covered(p, r.cidrs)
}

// byName says that a rule may be about a prefix' addresses when they were reached
// by a name.
func (r *rule) byName(p netip.Prefix) bool {
	return len(r.domains) > 0 && !(r.allow && covered(p, private))
}

// onApp says whether a rule's application protocols are met: UDP by itself, the
// others by what the proxy saw.
func (r *rule) onApp(proto Proto, app string) bool {
	return len(r.apps) == 0 || slices.ContainsFunc(r.apps, func(a string) bool {
		return a == UDP && proto == ProtoUDP || a == app && app != ""
	})
}

// mayBeApp says whether a rule's application protocols could be met by what is
// seen of a flow later. DNS never gets that far: the resolver has it.
func (r *rule) mayBeApp(proto Proto) bool {
	return slices.ContainsFunc(r.apps, func(a string) bool { return proto == ProtoTCP && a != UDP && a != DNS })
}
