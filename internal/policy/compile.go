package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// Action is what the data plane does with a packet.
type Action uint8

// The actions. The zero one is what to do with anything not understood.
const (
	Deny      Action = iota
	Allow            // forward it
	L7               // TCP alone: to the proxy, which asks Judge when it knows more
	DNSLearn         // UDP alone: allow it when its address was learnt for the entry's slot
	WouldDeny        // forward it, and tell that a policy which is enforced would not have
)

func (a Action) String() string {
	if names := [...]string{"deny", "allow", "l7", "dnslearn", "would-deny"}; int(a) < len(names) {
		return names[a]
	}
	return fmt.Sprintf("action %d", uint8(a))
}

// MaxEntries bounds one prefix' entries, and MaxSlots a policy's slots.
const (
	MaxEntries = 16
	MaxSlots   = 64
)

// Entry is a range of ports of a transport that has an action.
type Entry struct {
	Proto     Proto
	Lo, Hi    uint16
	Action    Action
	Slot      uint8  // of DNSLearn
	Unlearned Action // of DNSLearn: what becomes of addresses that were not learnt
}

// PrefixRules is what happens to packets to a prefix that no longer prefix
// contains: no two entries overlap, Default is for TCP and UDP that none is about.
type PrefixRules struct {
	Prefix  netip.Prefix
	Entries []Entry
	Default Action
}

// Compiled is a policy made ready. It never changes and may be used by many at once.
type Compiled struct {
	// L4 has 0.0.0.0/0 and ::/0, and each other prefix that something is different
	// for. What [Fixed.Always] denies is not in it: it comes first.
	L4 []PrefixRules

	policy      *Policy
	auditOnly   bool // what is denied passes and is told, but not to private addresses
	always      []netip.Prefix
	rules       []rule
	protocols   []protocolRule
	credentials []credentialRule
	slots       [][]int // each the rules, in order, that decide about a learnt address
	naming      uint64
}

// ErrTooComplex is what a policy ends in that the data plane has no room for. The
// text that wraps it is the tenant's to see.
var ErrTooComplex = errors.New("the rules are too complex")

// Compile makes a valid policy ready.
func Compile(p *Policy, fixed Fixed) (*Compiled, error) {
	rules, err := p.rules(fixed)
	if err != nil {
		return nil, fmt.Errorf("compiling a network policy: %w", err)
	}
	c := &Compiled{policy: p, always: fixed.Always(), rules: rules, auditOnly: p.Enforcement == AuditOnly}
	if err := c.compileL7(); err != nil {
		return nil, fmt.Errorf("compiling a network policy: %w", err)
	}
	for _, prefix := range c.prefixes() {
		ready, err := c.prefix(prefix)
		if err != nil {
			return nil, err
		}
		c.L4 = append(c.L4, ready)
	}
	c.naming = c.nameSlots()
	return c, nil
}

// Naming tells apart what slots stand for: what was learnt for a policy's slots is so
// for every other policy's that has the same.
func (c *Compiled) Naming() uint64 { return c.naming }

func (c *Compiled) nameSlots() uint64 {
	h := sha256.New()
	for _, list := range c.slots {
		for _, i := range list {
			fmt.Fprintf(h, "%v %v,", c.rules[i].allow, c.rules[i].domains)
		}
		fmt.Fprintln(h)
	}
	return binary.NativeEndian.Uint64(h.Sum(nil))
}

// prefixes are those whose packets' fate may differ from the ones around them.
func (c *Compiled) prefixes() []netip.Prefix {
	all := append(prefixes("0.0.0.0/0", "::/0"), private...)
	for i := range c.rules {
		all = append(all, c.rules[i].cidrs...)
	}
	all = slices.DeleteFunc(all, func(p netip.Prefix) bool { return covered(p, c.always) })
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(all)
}

func (c *Compiled) prefix(p netip.Prefix) (PrefixRules, error) {
	scope := c.scope(p)
	var all []Entry
	for _, proto := range []Proto{ProtoTCP, ProtoUDP} {
		for _, ports := range c.intervals(scope, proto) {
			e, err := c.decide(scope, proto, ports)
			if err != nil {
				return PrefixRules{}, err
			}
			if last := len(all) - 1; last >= 0 && all[last].joins(e) {
				all[last].Hi = e.Hi
				continue
			}
			all = append(all, e)
		}
	}
	def := commonest(all)
	all = slices.DeleteFunc(all, func(e Entry) bool { return e.Action == def })
	if len(all) > MaxEntries {
		return PrefixRules{}, fmt.Errorf("%w: %d ranges of ports have to be told apart for %s, and %d can be", ErrTooComplex, len(all), p, MaxEntries)
	}
	return PrefixRules{Prefix: p, Entries: all, Default: def}, nil
}

func (e Entry) joins(next Entry) bool {
	return e.Proto == next.Proto && e.Action == next.Action && e.Slot == next.Slot && e.Unlearned == next.Unlearned
}

// commonest is the action that most entries have, but for DNSLearn, which needs a
// slot.
func commonest(all []Entry) Action {
	var counts [WouldDeny + 1]int
	best := Deny
	for _, e := range all {
		counts[e.Action]++
		if e.Action != DNSLearn && e.Action != L7 && counts[e.Action] > counts[best] {
			best = e.Action
		}
	}
	return best
}

// scope is a prefix and the rules that may be about it.
type scope struct {
	prefix  netip.Prefix
	private bool
	rules   []scoped
}

type scoped struct {
	*rule
	index   int
	certain bool
}

func (c *Compiled) scope(p netip.Prefix) *scope {
	s := &scope{prefix: p, private: covered(p, private)}
	for i := range c.rules {
		r := &c.rules[i]
		if certain := r.certain(p); certain || r.byName(p) {
			s.rules = append(s.rules, scoped{r, i, certain})
		}
	}
	return s
}

// intervals cuts the ports where any rule of a scope begins or ends.
func (c *Compiled) intervals(s *scope, proto Proto) (all [][2]uint16) {
	starts := []int{0}
	for _, r := range c.portRanges(s, proto) {
		if r.proto == proto {
			starts = append(starts, int(r.lo), int(r.hi)+1)
		}
	}
	slices.Sort(starts)
	starts = append(slices.Compact(starts), math.MaxUint16+1)
	for i, lo := range starts[:len(starts)-1] {
		if lo <= math.MaxUint16 && starts[i+1] > lo {
			all = append(all, [2]uint16{uint16(lo), uint16(starts[i+1] - 1)})
		}
	}
	return all
}

func (c *Compiled) portRanges(s *scope, proto Proto) (all []portRange) {
	for i := range c.protocols {
		all = append(all, c.protocols[i].ports...)
	}
	for i := range c.credentials {
		all = append(all, c.credentials[i].ports...)
	}
	all = slices.DeleteFunc(all, func(r portRange) bool { return r.proto != ProtoTCP })
	for i := range all { // what is looked into over TCP is closed to UDP
		all[i].proto = proto
	}
	for _, r := range s.rules {
		all = append(all, r.ports...)
		if proto == ProtoUDP && r.allow && len(r.domains) > 0 {
			all = append(all, portRange{ProtoUDP, quic, quic})
		}
	}
	return all
}

const quic = 443

// decide is the entry of an interval that every rule is about as a whole or not at all.
func (c *Compiled) decide(s *scope, proto Proto, ports [2]uint16) (Entry, error) {
	e := Entry{Proto: proto, Lo: ports[0], Hi: ports[1]}
	final, maybe := c.outcomes(s, proto, e.Lo)
	switch proto {
	case ProtoTCP:
		e.Action = c.tcp(final, maybe, e.Lo)
	case ProtoUDP:
		slot, err := c.udp(&e, final, maybe)
		if err != nil {
			return e, err
		}
		e.Slot = slot
	}
	if c.auditOnly && !s.private {
		switch e.Action {
		case Deny:
			e.Action = WouldDeny
		case DNSLearn:
			e.Unlearned = WouldDeny
		}
	}
	return e, nil
}

// outcomes are what happens to packets when nothing more is seen of them, and
// the rules that may decide otherwise when it is.
func (c *Compiled) outcomes(s *scope, proto Proto, port uint16) (final bool, maybe []int) {
	for _, r := range s.rules {
		if !onPort(r.ports, proto, port) {
			continue
		}
		app := r.onApp(proto, "")
		switch {
		case r.certain && app:
			return r.allow, maybe
		case app || r.mayBeApp(proto):
			maybe = append(maybe, r.index)
		}
	}
	return c.policy.Mode == AllowAll && !s.private, maybe
}

func (c *Compiled) tcp(final bool, maybe []int, port uint16) Action {
	differs := slices.ContainsFunc(maybe, func(i int) bool { return c.rules[i].allow != final })
	switch {
	case differs:
		return L7
	case !final:
		return Deny
	case c.looksInto(port):
		return L7
	}
	return Allow
}

// looksInto says whether allowed TCP to a port has to pass the proxy.
func (c *Compiled) looksInto(port uint16) bool {
	return c.policy.egress().Proxy != nil ||
		slices.ContainsFunc(c.protocols, func(r protocolRule) bool { return onPort(r.ports, ProtoTCP, port) }) ||
		slices.ContainsFunc(c.credentials, func(r credentialRule) bool { return onPort(r.ports, ProtoTCP, port) })
}

// udp decides by address alone, or by the names that an address was learnt for. It
// is denied where it could be HTTP/3 to what TCP would be looked into for (E13), and
// where a name is denied: any address may be that name's, learnt or not.
func (c *Compiled) udp(e *Entry, final bool, maybe []int) (slot uint8, _ error) {
	if e.Lo == quic {
		maybe = slices.DeleteFunc(slices.Clone(maybe), func(i int) bool { return c.rules[i].allow && len(c.rules[i].ports) == 0 })
	}
	switch {
	case c.policy.egress().Proxy != nil, c.InterceptsPort(e.Lo), final && c.deniesNames(maybe):
		e.Action = Deny
	case final:
		e.Action = Allow
	case slices.ContainsFunc(maybe, func(i int) bool { return c.rules[i].allow }):
		e.Action = DNSLearn
		return c.slot(maybe)
	}
	return 0, nil
}

// deniesNames says whether rules, in their order, deny any name.
func (c *Compiled) deniesNames(rules []int) bool {
	var allowed []pattern
	for _, i := range rules {
		r := &c.rules[i]
		if r.allow {
			allowed = append(allowed, r.domains...)
			continue
		}
		for _, p := range r.domains {
			if !slices.ContainsFunc(allowed, func(q pattern) bool { return q.matches(p.name) && (q.wild || !p.wild) }) {
				return true
			}
		}
	}
	return false
}

func (c *Compiled) slot(rules []int) (uint8, error) {
	i := slices.IndexFunc(c.slots, func(s []int) bool { return slices.Equal(s, rules) })
	if i < 0 {
		if i = len(c.slots); i == MaxSlots {
			return 0, fmt.Errorf("%w: domains open UDP in more than %d ways", ErrTooComplex, MaxSlots)
		}
		c.slots = append(c.slots, rules)
	}
	return uint8(i), nil
}

// Learn is the slots, a bit each, for which a name's addresses may be reached.
func (c *Compiled) Learn(name string) (slots uint64) {
	for i, list := range c.slots {
		for _, r := range list {
			if named(c.rules[r].domains, name) {
				if c.rules[r].allow {
					slots |= 1 << i
				}
				break
			}
		}
	}
	return slots
}
