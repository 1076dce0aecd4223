package policy

import (
	"net/netip"
	"slices"
)

// The application protocols that the proxy can tell and rules can name, beside [HTTP] and [UDP].
const (
	TLS     = "tls"
	SSH     = "ssh"
	SOCKS5  = "socks5"
	MQTT    = "mqtt"
	Redis   = "redis"
	AMQP    = "amqp"
	DNS     = "dns"
	MongoDB = "mongodb"
)

var appProtocols = []string{HTTP, TLS, SSH, SOCKS5, MQTT, Redis, AMQP, DNS, MongoDB, UDP}

// Flow is what is known of a connection or a datagram when it is judged.
type Flow struct {
	Name  string     // canonical; empty: the sandbox used an address
	Addr  netip.Addr // what is dialled; invalid: not known yet
	Proto Proto      // 0: TCP
	Port  uint16
	App   string // by its first bytes, such as [TLS]; empty: none that is known
}

// Verdict is what a judge says, and because of what.
type Verdict struct {
	Allow bool
	// WouldDeny says that it passes for the policy is not enforced.
	WouldDeny bool
	Rule      string // the rule's name, or where it stands; `mode`, `always denied`
	Reason    string // why not; empty when it passes
}

// Judge decides about one flow as the rules say in order. What the proxy dials it
// judges with the address it dials: a name is never more than its address may be.
// A flow whose address is not known passes as far as its name does.
func (c *Compiled) Judge(f Flow) Verdict {
	if f.Proto == 0 {
		f.Proto = ProtoTCP
	}
	within := netip.Prefix{}
	if f.Addr.IsValid() {
		if f.Addr.Is4In6() || f.Addr.Zone() != "" || covered(host(f.Addr), c.always) {
			return Verdict{Rule: "always denied", Reason: "no policy opens this address"}
		}
		within = host(f.Addr)
	}
	isPrivate := within.IsValid() && covered(within, private)
	deny := c.deny
	if isPrivate {
		deny = denied // a policy that is not enforced opens nothing that is private
	}
	if f.Proto == ProtoUDP && c.policy.egress().Proxy != nil {
		return deny("proxy", "UDP does not leave beside a proxy")
	}
	if f.Proto == ProtoUDP && c.InterceptsPort(f.Port) {
		return deny("protocol", "a rule has to look into this port, and UDP cannot be looked into")
	}
	for i := range c.rules {
		if r := &c.rules[i]; r.matches(f, within) {
			return says(r.label, r.allow, deny)
		}
	}
	if isPrivate {
		return denied("private", "a private address is reached where a rule's CIDR names it")
	}
	return says("mode", c.policy.Mode == AllowAll, deny)
}

func says(rule string, allow bool, deny func(rule, reason string) Verdict) Verdict {
	if allow {
		return Verdict{Allow: true, Rule: rule}
	}
	return deny(rule, "denied by the network policy")
}

func (c *Compiled) deny(rule, reason string) Verdict {
	return Verdict{Allow: c.auditOnly, WouldDeny: c.auditOnly, Rule: rule, Reason: reason}
}

func denied(rule, reason string) Verdict { return Verdict{Rule: rule, Reason: reason} }

func (r *rule) matches(f Flow, addr netip.Prefix) bool {
	return onPort(r.ports, f.Proto, f.Port) && r.onApp(f.Proto, f.App) && r.reaches(f.Name, addr)
}

// reaches says whether a rule's destinations have a name, or an address, if that is known.
func (r *rule) reaches(name string, addr netip.Prefix) bool {
	if !addr.IsValid() {
		return r.anywhere() || named(r.domains, name)
	}
	return r.certain(addr) || r.byName(addr) && named(r.domains, name)
}

// Resolve judges whether a sandbox may look a canonical name up: where some traffic
// to it could pass. A name that it denies leaves the node in no form.
func (c *Compiled) Resolve(name string) Verdict {
	for i := range c.rules {
		r := &c.rules[i]
		switch {
		case len(r.apps) > 0 && !slices.Contains(r.apps, DNS) && !r.allow:
			continue // denies some of what the name is for
		case !named(r.domains, name) && !r.anywhere() && !r.everything():
			continue
		case !r.allow && len(r.ports) > 0 && !onPort(r.ports, ProtoUDP, 53):
			continue
		}
		return says(r.label, r.allow, c.deny)
	}
	return says("mode", c.policy.Mode == AllowAll, c.deny)
}

// everything says that a rule's CIDRs are all addresses of both families.
func (r *rule) everything() bool {
	return covered(anyV4, r.cidrs) && covered(anyV6, r.cidrs)
}

var anyV4, anyV6 = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")

// EgressProxy is the tenant's proxy, nil without; the binding is nil when it asks
// for no credential.
func (c *Compiled) EgressProxy() (*Proxy, *Binding) {
	p := c.policy.egress().Proxy
	if p == nil || p.CredentialRef == "" {
		return p, nil
	}
	b, _ := c.policy.Binding(p.CredentialRef)
	return p, &b
}
