package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// packet is the data plane's view: the longest prefix, then the entry, then the default.
func (c *Compiled) packet(a netip.Addr, proto Proto, port uint16) (Action, uint8) {
	for _, p := range c.always {
		if p.Contains(a) {
			return Deny, 0
		}
	}
	best := -1
	for i, r := range c.L4 {
		if r.Prefix.Contains(a) && (best < 0 || r.Prefix.Bits() > c.L4[best].Prefix.Bits()) {
			best = i
		}
	}
	for _, e := range c.L4[best].Entries {
		if e.Proto == proto && e.Lo <= port && port <= e.Hi {
			return e.Action, e.Slot
		}
	}
	return c.L4[best].Default, 0
}

// naive says what the wire's policy means for one flow, written without looking at
// how it is compiled.
func naive(p *Policy, f Flow) bool {
	in := func(list []string, within ...string) bool {
		for _, s := range list {
			cidr := netip.MustParsePrefix(s)
			if !cidr.Contains(f.Addr) {
				continue
			}
			if len(within) == 0 {
				return true
			}
			for _, w := range within {
				if o := netip.MustParsePrefix(w); o.Contains(cidr.Addr()) && o.Bits() <= cidr.Bits() {
					return true
				}
			}
		}
		return false
	}
	isPrivate := false
	for _, s := range privateForTest {
		isPrivate = isPrivate || netip.MustParsePrefix(s).Contains(f.Addr)
	}
	port := func(list []Port) bool {
		for _, q := range list {
			if (q.Protocol == UDP) == (f.Proto == ProtoUDP) && int(f.Port) >= q.Port && int(f.Port) <= max(q.Port, q.EndPort) {
				return true
			}
		}
		return len(list) == 0
	}
	domain := func(list []string) bool {
		for _, d := range list {
			if apex, wild := strings.CutPrefix(d, "*."); d == f.Name || wild && (apex == f.Name || strings.HasSuffix(f.Name, "."+apex)) {
				return true
			}
		}
		return false
	}
	for _, r := range p.Egress.TrafficRules {
		if !port(r.Ports) || len(r.AppProtocols) > 0 && !slices.Contains(r.AppProtocols, f.App) && !(f.Proto == ProtoUDP && slices.Contains(r.AppProtocols, UDP)) {
			continue
		}
		if isPrivate && r.Action == ActionAllow {
			if in(r.CIDRs, privateForTest...) {
				return true
			}
			continue
		}
		if len(r.CIDRs)+len(r.Domains) == 0 || in(r.CIDRs) || domain(r.Domains) {
			return r.Action == ActionAllow
		}
	}
	return p.Mode == AllowAll && !isPrivate
}

var privateForTest = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
	"192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "fc00::/7", "2001:db8::/32", "3fff::/20"}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func some[T any](r *rand.Rand, list ...T) (chosen []T) {
	if r.IntN(2) == 0 {
		return nil
	}
	for range 1 + r.IntN(2) {
		chosen = append(chosen, pick(r, list...))
	}
	return chosen
}

func randomPolicy(r *rand.Rand) *Policy {
	p := &Policy{Mode: pick(r, AllowAll, BlockAll), Egress: &Egress{}}
	for range r.IntN(6) {
		rule := TrafficRule{
			Action:  pick(r, ActionAllow, ActionDeny),
			CIDRs:   some(r, "8.0.0.0/8", "8.8.0.0/16", "8.8.8.8/32", "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "2600::/16", "2600:1::/32", "::/0", "fd00::/8"),
			Domains: some(r, "a.test", "*.a.test", "b.a.test", "c.test"),
			Ports: some(r, Port{Port: 80}, Port{Port: 443, Protocol: TCP}, Port{Port: 53, EndPort: 500, Protocol: UDP}, Port{Port: 400, EndPort: 500},
				Port{Port: 1, EndPort: 65535}, Port{Port: 65535, Protocol: UDP}),
			AppProtocols: some(r, HTTP, TLS, UDP, SSH),
		}
		if len(rule.CIDRs)+len(rule.Domains)+len(rule.Ports)+len(rule.AppProtocols) > 0 {
			p.Egress.TrafficRules = append(p.Egress.TrafficRules, rule)
		}
	}
	return p
}

// TestCompileMeansWhatIsWritten holds the judge against the naive reading, and what
// the data plane is told against everything that a packet could turn out to be.
func TestCompileMeansWhatIsWritten(t *testing.T) {
	t.Parallel()
	names := []string{"", "a.test", "b.a.test", "c.test", "d.test"}
	apps := []string{"", HTTP, TLS, SSH}
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := randomPolicy(r)
		if err := p.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		c, err := Compile(p, Fixed{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for range 60 {
			f := Flow{
				Addr:  netip.MustParseAddr(pick(r, "8.8.8.8", "8.8.1.1", "8.1.1.1", "9.9.9.9", "10.1.2.3", "10.2.2.3", "2600::1", "2600:1::1", "2a00::1", "fd00::1", "fc01::1")),
				Proto: pick(r, ProtoTCP, ProtoUDP),
				Port:  pick[uint16](r, 1, 53, 80, 81, 443, 450, 500, 501, 65535),
			}
			action, slot := c.packet(f.Addr, f.Proto, f.Port)
			allowed, denied := 0, 0
			for _, f.Name = range names {
				for _, f.App = range apps {
					if f.Proto == ProtoUDP && f.App != "" {
						continue
					}
					want := naive(p, f)
					if got := c.Judge(f).Allow; got != want {
						t.Fatalf("seed %d: %+v: judged %v, want %v\n%s", seed, f, got, want, text(p))
					}
					if want {
						allowed++
					} else {
						denied++
					}
					if f.Proto == ProtoUDP && action == DNSLearn && f.Port != quic { // which has a test of its own
						if learnt := f.Name != "" && c.Learn(f.Name)>>slot&1 == 1; learnt != want {
							t.Fatalf("seed %d: %+v: learnt %v, want %v\n%s", seed, f, learnt, want, text(p))
						}
					}
				}
			}
			if bad := wrongAction(f.Proto, action, allowed, denied, c.Judge(Flow{Addr: f.Addr, Proto: f.Proto, Port: f.Port}).Allow); bad != "" {
				t.Fatalf("seed %d: %v %v:%d: %v: %s (%d allowed, %d denied)\n%s", seed, f.Proto, f.Addr, f.Port, action, bad, allowed, denied, text(p))
			}
		}
	}
}

func wrongAction(proto Proto, a Action, allowed, denied int, unnamed bool) string {
	switch a {
	case Allow:
		if denied > 0 || !unnamed {
			return "passes what may be denied"
		}
	case Deny: // UDP to an address that may be a denied name's
		if allowed > 0 && (proto == ProtoTCP || denied == 0) {
			return "denies what may be allowed"
		}
	case L7:
		if proto != ProtoTCP || allowed == 0 && denied == 0 {
			return "looks into what is decided"
		}
	case DNSLearn:
		if proto != ProtoUDP || unnamed {
			return "asks for names where none is needed"
		}
	default:
		return "unknown"
	}
	return ""
}

func text(p *Policy) string {
	data, err := p.JSON()
	return fmt.Sprintf("%s %v", data, err)
}

func compile(t *testing.T, fixed Fixed, source string) *Compiled {
	t.Helper()
	p, err := Parse([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	c, err := Compile(p, fixed)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestE01_AlwaysDenied(t *testing.T) {
	t.Parallel()
	fixed := Fixed{Denied: []netip.Prefix{netip.MustParsePrefix("100.70.0.1/32"), netip.MustParsePrefix("10.77.0.0/16")}, PlatformAllowed: prefixes("0.0.0.0/0", "::/0")}
	for _, source := range []string{
		`{"mode":"allow-all"}`,
		`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","cidrs":["0.0.0.0/0","::/0","169.254.0.0/16","169.254.169.254/32","10.77.0.0/16","fd00:ec2::/32","127.0.0.0/8"]}]}}`,
		`{"mode":"allow-all","enforcement":"audit-only"}`,
	} {
		c := compile(t, fixed, source)
		for _, a := range []string{"169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "127.0.0.1", "0.0.0.0", "::1", "fe80::1",
			"224.0.0.1", "ff02::1", "255.255.255.255", "10.77.3.4", "100.70.0.1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2001::1"} {
			addr := netip.MustParseAddr(a)
			if v := c.Judge(Flow{Name: "x.test", Addr: addr, Port: 443}); v.Allow || v.WouldDeny {
				t.Errorf("%s: %s is judged %+v", source, a, v)
			}
			if action, _ := c.packet(addr, ProtoTCP, 443); action != Deny {
				t.Errorf("%s: a packet to %s: %v", source, a, action)
			}
			for _, r := range c.L4 {
				if r.Prefix.Contains(addr) && r.Prefix.Bits() > 64 {
					t.Errorf("%s: the data plane is told of %s", source, r.Prefix)
				}
			}
		}
	}
}

func TestE02_PrivateAddressesAreNamed(t *testing.T) {
	t.Parallel()
	ten := netip.MustParseAddr("10.1.2.3")
	for source, want := range map[string]Action{
		`{"mode":"allow-all"}`: Deny,
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"allow","cidrs":["0.0.0.0/0"]}]}}`:                                            Deny,
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"allow","domains":["a.test"]}]}}`:                                             Deny,
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"allow","ports":[{"port":80}]}]}}`:                                            Deny,
		`{"mode":"block-all","egress":{"allowedCidrs":["10.1.0.0/16"]}}`:                                                                       Allow,
		`{"mode":"block-all","egress":{"allowedCidrs":["10.1.2.3"]}}`:                                                                          Allow,
		`{"mode":"allow-all","enforcement":"audit-only"}`:                                                                                      Deny,
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"deny","cidrs":["10.1.2.0/24"]},{"action":"allow","cidrs":["10.0.0.0/8"]}]}}`: Deny,
	} {
		c := compile(t, Fixed{}, source)
		if got, _ := c.packet(ten, ProtoTCP, 80); got != want {
			t.Errorf("%s: %v, want %v", source, got, want)
		}
		if got := c.Judge(Flow{Name: "a.test", Addr: ten, Port: 80}); got.Allow != (want == Allow) {
			t.Errorf("%s: judged %+v", source, got)
		}
	}
	c := compile(t, Fixed{PlatformAllowed: prefixes("10.1.0.0/16"), PlatformDenied: prefixes("10.1.9.0/24")}, `{"mode":"block-all"}`)
	for a, want := range map[string]Action{"10.1.2.3": Allow, "10.1.9.1": Deny, "8.8.8.8": Deny} {
		if got, _ := c.packet(netip.MustParseAddr(a), ProtoTCP, 1); got != want {
			t.Errorf("the platform's rules: %s: %v, want %v", a, got, want)
		}
	}
}

func TestE04_LegacyLists(t *testing.T) {
	t.Parallel()
	allowed := compile(t, Fixed{}, `{"mode":"block-all","egress":{"allowedCidrs":["8.8.0.0/16"],"allowedDomains":["*.a.test"],"allowedPorts":[{"port":443},{"port":5000,"endPort":5100,"protocol":"udp"}]}}`)
	for _, c := range []struct {
		flow Flow
		want bool
	}{
		{Flow{Addr: netip.MustParseAddr("8.8.1.1"), Port: 443}, true},
		{Flow{Addr: netip.MustParseAddr("8.8.1.1"), Port: 80}, false},
		{Flow{Addr: netip.MustParseAddr("9.9.9.9"), Port: 443}, false},
		{Flow{Addr: netip.MustParseAddr("9.9.9.9"), Name: "a.test", Port: 443}, true},
		{Flow{Addr: netip.MustParseAddr("9.9.9.9"), Name: "x.a.test", Port: 443}, true},
		{Flow{Addr: netip.MustParseAddr("9.9.9.9"), Name: "xa.test", Port: 443}, false},
		{Flow{Addr: netip.MustParseAddr("2600::1"), Name: "a.test", Port: 5100, Proto: ProtoUDP}, true},
		{Flow{Addr: netip.MustParseAddr("2600::1"), Name: "a.test", Port: 5101, Proto: ProtoUDP}, false},
	} {
		if got := allowed.Judge(c.flow).Allow; got != c.want {
			t.Errorf("%+v: %v", c.flow, got)
		}
	}
	denied := compile(t, Fixed{}, `{"mode":"allow-all","egress":{"deniedCidrs":["8.8.0.0/16"],"deniedDomains":["a.test"],"deniedPorts":[{"port":25}]}}`)
	for _, f := range []Flow{{Addr: netip.MustParseAddr("8.8.1.1"), Port: 80}, {Addr: netip.MustParseAddr("9.9.9.9"), Port: 25}, {Name: "a.test", Addr: netip.MustParseAddr("9.9.9.9"), Port: 80}} {
		if denied.Judge(f).Allow {
			t.Errorf("%+v passes", f)
		}
	}
	if !denied.Judge(Flow{Name: "b.a.test", Addr: netip.MustParseAddr("9.9.9.9"), Port: 80}).Allow {
		t.Error("a name that is not denied is")
	}
}

func TestAuditOnlyTellsAndPasses(t *testing.T) {
	t.Parallel()
	c := compile(t, Fixed{}, `{"mode":"block-all","enforcement":"audit-only","egress":{"trafficRules":[{"name":"web","action":"allow","domains":["a.test"],"ports":[{"port":443}]}]}}`)
	eight := netip.MustParseAddr("8.8.8.8")
	if a, _ := c.packet(eight, ProtoTCP, 80); a != WouldDeny {
		t.Errorf("a packet that would be denied: %v", a)
	}
	if v := c.Judge(Flow{Name: "b.test", Addr: eight, Port: 443}); !v.Allow || !v.WouldDeny || v.Rule != "mode" || v.Reason == "" {
		t.Errorf("a flow that would be denied: %+v", v)
	}
	if v := c.Judge(Flow{Name: "a.test", Addr: eight, Port: 443}); !v.Allow || v.WouldDeny || v.Rule != "web" {
		t.Errorf("a flow that is allowed: %+v", v)
	}
	if v := c.Resolve("b.test"); !v.Allow || !v.WouldDeny {
		t.Errorf("a name that would be denied: %+v", v)
	}
}

// E02: a policy that is not enforced opens nothing private, whatever its rules name, and
// whoever judges: what the kernel passes and tells, the proxy does, and nothing else.
func TestE02_AuditOnlyOpensNothingPrivate(t *testing.T) {
	t.Parallel()
	names := []string{"", "a.test", "b.a.test", "c.test", "d.test"}
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		p := randomPolicy(r)
		strict, err := Compile(p, Fixed{})
		if err != nil {
			t.Fatal(err)
		}
		p.Enforcement = AuditOnly
		audit, err := Compile(p, Fixed{})
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			f := Flow{
				Addr:  netip.MustParseAddr(pick(r, "8.8.8.8", "9.9.9.9", "10.1.2.3", "10.2.2.3", "192.168.0.1", "2600::1", "fd00::1", "fc01::1")),
				Proto: pick(r, ProtoTCP, ProtoUDP), Name: pick(r, names...), Port: pick[uint16](r, 1, 53, 80, 443, 450, 501, 65535),
			}
			isPrivate := covered(host(f.Addr), private)
			told, enforced := audit.Judge(f), strict.Judge(f)
			if isPrivate && told.Allow != enforced.Allow || !isPrivate && !told.Allow || told.WouldDeny != (told.Allow && !enforced.Allow) {
				t.Fatalf("seed %d: %+v: judged %+v, and enforced %+v\n%s", seed, f, told, enforced, text(p))
			}
			now, slot := audit.packet(f.Addr, f.Proto, f.Port)
			then, _ := strict.packet(f.Addr, f.Proto, f.Port)
			want := then
			if then == Deny && !isPrivate {
				want = WouldDeny
			}
			if now != want {
				t.Fatalf("seed %d: %+v: the kernel's is %v, and enforced %v\n%s", seed, f, now, then, text(p))
			}
			if got := audit.unlearned(f, slot); now == DNSLearn && got != map[bool]Action{true: Deny, false: WouldDeny}[isPrivate] {
				t.Fatalf("seed %d: %+v: not learnt, the kernel's is %v\n%s", seed, f, got, text(p))
			}
		}
	}
}

// unlearned is the data plane's view of a datagram to an address that was not learnt.
func (c *Compiled) unlearned(f Flow, slot uint8) Action {
	for _, r := range c.L4 {
		if !r.Prefix.Contains(f.Addr) {
			continue
		}
		for _, e := range r.Entries {
			if e.Proto == f.Proto && e.Lo <= f.Port && f.Port <= e.Hi && e.Action == DNSLearn && e.Slot == slot && covered(r.Prefix, private) == covered(host(f.Addr), private) {
				return e.Unlearned
			}
		}
	}
	return Deny
}

func TestE13_UDPIsNoWayPastRules(t *testing.T) {
	t.Parallel()
	const token = `"credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"{{ .token }}"}]}}}]`
	for source, want := range map[string]map[uint16]Action{
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","domains":["a.test"],"ports":[{"port":443}],"http":{"methods":{"allowed":["GET"]}}}]}}`:        {442: Allow, 443: Deny, 444: Allow},
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{"methods":{"allowed":["GET"]}}}]}}`:                                                    {443: Deny, 123: Deny},
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","tlsMode":"passthrough","ports":[{"port":443}],"http":{"methods":{"allowed":["GET"]}}}]}}`:     {443: Allow},
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k","domains":["a.test"],"ports":[{"port":443}]}]},` + token + `}`:                             {443: Deny, 444: Allow},
		`{"mode":"block-all","egress":{"allowedDomains":["a.test"],"credentialRules":[{"credentialRef":"k","domains":["a.test"],"ports":[{"port":443}]}]},` + token + `}`: {443: Deny, 444: DNSLearn},
		`{"mode":"allow-all","egress":{"deniedDomains":["a.test"]}}`:                                                                                                      {443: Deny, 123: Deny},
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"deny","domains":["a.test"],"ports":[{"port":443,"protocol":"udp"}]}]}}`:                                 {443: Deny, 123: Allow},
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"deny","domains":["a.test"],"ports":[{"port":443}]}]}}`:                                                  {443: Allow},
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"allow","cidrs":["8.8.8.8/32"]},{"action":"deny","domains":["a.test"]}]}}`:                               {443: Allow},
		`{"mode":"allow-all","enforcement":"audit-only","egress":{"protocolRules":[{"protocol":"http","ports":[{"port":443}],"http":{"methods":{"allowed":["GET"]}}}]}}`:  {443: WouldDeny},
	} {
		c := compile(t, Fixed{}, source)
		for port, action := range want {
			if got, _ := c.packet(netip.MustParseAddr("8.8.8.8"), ProtoUDP, port); got != action {
				t.Errorf("%s: port %d: %v, want %v", source, port, got, action)
			}
		}
	}
}

func TestE12_NamesThatMayBeResolved(t *testing.T) {
	t.Parallel()
	for source, names := range map[string]map[string]bool{
		`{"mode":"block-all"}`: {"a.test": false},
		`{"mode":"allow-all"}`: {"a.test": true},
		`{"mode":"block-all","egress":{"allowedDomains":["*.a.test"]}}`:                                                                                              {"a.test": true, "b.a.test": true, "c.test": false, "a.test.evil.test": false},
		`{"mode":"block-all","egress":{"allowedCidrs":["8.8.8.8/32"]}}`:                                                                                              {"a.test": false},
		`{"mode":"block-all","egress":{"allowedPorts":[{"port":443}]}}`:                                                                                              {"a.test": true},
		`{"mode":"allow-all","egress":{"deniedDomains":["a.test"],"deniedPorts":[{"port":25}]}}`:                                                                     {"a.test": false, "b.a.test": true},
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"deny","cidrs":["0.0.0.0/0","::/0"]}]}}`:                                                            {"a.test": false},
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"deny","domains":["a.test"],"ports":[{"port":25}]}]}}`:                                              {"a.test": true},
		`{"mode":"allow-all","egress":{"trafficRules":[{"action":"deny","appProtocols":["dns"]}]}}`:                                                                  {"a.test": false},
		`{"mode":"block-all","egress":{"trafficRules":[{"action":"deny","domains":["x.a.test"]},{"action":"allow","domains":["*.a.test"],"appProtocols":["tls"]}]}}`: {"x.a.test": false, "y.a.test": true},
	} {
		c := compile(t, Fixed{}, source)
		for name, want := range names {
			if got := c.Resolve(name).Allow; got != want {
				t.Errorf("%s: %s: %v", source, name, got)
			}
		}
	}
}

func TestTooComplexIsRefusedWhole(t *testing.T) {
	t.Parallel()
	p := &Policy{Mode: BlockAll, Egress: &Egress{}}
	for i := range 20 {
		p.Egress.AllowedPorts = append(p.Egress.AllowedPorts, Port{Port: 100 + 2*i})
	}
	if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "too complex") {
		t.Errorf("a policy that the data plane has no room for: %v", err)
	}
	p.Egress.AllowedPorts = p.Egress.AllowedPorts[:16]
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
}

func TestPortsThatOnlyCredentialsNeedAreLookedInto(t *testing.T) {
	t.Parallel()
	c := compile(t, Fixed{}, `{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k","domains":["api.test"],"ports":[{"port":443}]}],
		"protocolRules":[{"protocol":"http","domains":["h.test"],"ports":[{"port":80}],"http":{"methods":{"allowed":["GET"]}}}]},
		"credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"Bearer {{ .token }}"}]}}}]}`)
	for port, want := range map[uint16]Action{443: L7, 80: L7, 22: Allow} {
		if got, _ := c.packet(netip.MustParseAddr("8.8.8.8"), ProtoTCP, port); got != want {
			t.Errorf("port %d: %v", port, got)
		}
	}
	if !c.NeedsInterception("api.test", 443) || !c.NeedsInterception("h.test", 80) || c.NeedsInterception("h.test", 443) || c.NeedsInterception("other.test", 443) || c.NeedsInterception("api.test", 444) {
		t.Error("interception is asked for elsewhere")
	}
	proxied := compile(t, Fixed{}, `{"mode":"allow-all","egress":{"proxy":{"type":"socks5","address":"proxy.test:1080"}}}`)
	if a, _ := proxied.packet(netip.MustParseAddr("8.8.8.8"), ProtoUDP, 443); a != Deny {
		t.Errorf("UDP beside a proxy: %v", a)
	}
	if a, _ := proxied.packet(netip.MustParseAddr("8.8.8.8"), ProtoTCP, 443); a != L7 {
		t.Errorf("TCP with a proxy: %v", a)
	}
}

// E13: a name opens no QUIC to its address, which may be other names', too, unless a
// rule names the port.
func TestE13_ANameOpensNoQUIC(t *testing.T) {
	t.Parallel()
	for policy, want := range map[string]Action{
		`{"mode":"block-all","egress":{"allowedDomains":["good.test"]}}`:                                                                                  Deny,
		`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","domains":["good.test"],"ports":[{"port":443,"protocol":"udp"}]}]}}`:             DNSLearn,
		`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","domains":["good.test"],"ports":[{"port":1,"endPort":999,"protocol":"tcp"}]}]}}`: Deny,
		`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","cidrs":["8.8.8.0/24"]}]}}`:                                                      Allow,
		`{"mode":"allow-all"}`: Allow,
	} {
		p, err := Parse([]byte(policy))
		if err != nil {
			t.Fatal(err)
		}
		c, err := Compile(p, Fixed{})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := c.packet(netip.MustParseAddr("8.8.8.8"), ProtoUDP, 443); got != want {
			t.Errorf("%s: %v, want %v", policy, got, want)
		}
	}
	both, err := Parse([]byte(`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","domains":["good.test"]},
		{"action":"allow","domains":["quic.test"],"ports":[{"port":443,"protocol":"udp"}]}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Compile(both, Fixed{})
	if err != nil {
		t.Fatal(err)
	}
	at := func(port uint16, name string) bool {
		action, slot := c.packet(netip.MustParseAddr("8.8.8.8"), ProtoUDP, port)
		return action == DNSLearn && c.Learn(name)>>slot&1 == 1
	}
	if at(443, "good.test") || !at(443, "quic.test") || !at(442, "good.test") || at(444, "quic.test") {
		t.Error("each name opens what its rule says")
	}
}
