package dataplane

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "s0" // inside

func hostTable(uplink string) string { return tableName + "-" + uplink }

// Kinds of refusal: a port, for gVisor heeds no other for UDP.
const (
	rejectReset = 1 // NFT_REJECT_TCP_RST
	rejectICMPX = 2 // NFT_REJECT_ICMPX_UNREACH
	portUnreach = 1 // NFT_REJECT_ICMPX_PORT_UNREACH
)

const (
	established = expr.CtStateBitESTABLISHED
	related     = expr.CtStateBitRELATED
	invalid     = expr.CtStateBitINVALID
)

// A rule is a list of matches with an end. Its parts are the words below.
type rule [][]expr.Any

func when(parts ...[]expr.Any) rule { return parts }

func meta(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value},
	}
}

func mark(v uint32) []expr.Any { return meta(expr.MetaKeyMARK, binaryutil.NativeEndian.PutUint32(v)) }
func ofGroup() []expr.Any {
	return meta(expr.MetaKeyIIFGROUP, binaryutil.NativeEndian.PutUint32(Group))
}
func toGroup() []expr.Any {
	return meta(expr.MetaKeyOIFGROUP, binaryutil.NativeEndian.PutUint32(Group))
}
func isTCP() []expr.Any                     { return meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}) }
func in(link string) []expr.Any             { return meta(expr.MetaKeyIIFNAME, linkName(link)) }
func out(link string) []expr.Any            { return meta(expr.MetaKeyOIFNAME, linkName(link)) }
func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
func accept() []expr.Any                    { return verdict(expr.VerdictAccept) }
func drop() []expr.Any                      { return verdict(expr.VerdictDrop) }
func reset() []expr.Any                     { return []expr.Any{&expr.Reject{Type: rejectReset}} }
func unreachable() []expr.Any               { return []expr.Any{&expr.Reject{Type: rejectICMPX, Code: portUnreach}} }
func masquerade() []expr.Any                { return []expr.Any{&expr.Masq{}} }

func linkName(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// from and to match an address's network of either family.
func from(p netip.Prefix) []expr.Any { return network(p, 12, 8) }
func to(p netip.Prefix) []expr.Any   { return network(p, 16, 24) }

func network(p netip.Prefix, at4, at6 uint32) []expr.Any {
	family, at, size := byte(unix.NFPROTO_IPV4), at4, uint32(4)
	if p.Addr().Is6() {
		family, at, size = unix.NFPROTO_IPV6, at6, 16
	}
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(meta(expr.MetaKeyNFPROTO, []byte{family}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	)
}

type chain struct {
	name   string
	hook   *nftables.ChainHook
	nat    bool
	policy nftables.ChainPolicy
	rules  []rule
}

// setRules lets pass what package bpf has marked, and refuses what it wants refused. What
// most packets are comes first.
func (p *Plane) setRules() error {
	c := p.cfg
	refuse := []rule{
		when(ofGroup(), mark(c.MarkDeny), isTCP(), reset()),
		when(ofGroup(), mark(c.MarkDeny), unreachable()),
	}
	return install(int(c.Inside.Fd()), tableName, []chain{
		{name: "c_forward", hook: nftables.ChainHookForward, policy: nftables.ChainPolicyDrop, rules: append([]rule{
			when(ofGroup(), mark(c.MarkAllow), out(uplinkName), accept()),
			when(toGroup(), in(uplinkName), state(established|related), accept()),
		}, refuse...)},
		{name: "c_input", hook: nftables.ChainHookInput, policy: nftables.ChainPolicyDrop, rules: append([]rule{
			when(ofGroup(), mark(c.MarkLocal), accept()),
			when(in(uplinkName), state(established|related), accept()),
			when(in("lo"), accept()),
		}, refuse...)},
		{name: "c_output", hook: nftables.ChainHookOutput, policy: nftables.ChainPolicyAccept, rules: []rule{
			when(toGroup(), state(established|related), accept()),
			when(toGroup(), drop()), // nobody here begins a connection to a sandbox
		}},
		{name: "c_postrouting", hook: nftables.ChainHookPostrouting, nat: true, policy: nftables.ChainPolicyAccept, rules: []rule{
			when(from(c.Net4), out(uplinkName), masquerade()),
			when(from(c.Net6), out(uplinkName), masquerade()),
		}},
	})
}

// setHostRules lets what comes from the data plane go out, reach nothing of the host,
// and nothing that is link-local, whoever lets it. Of a connection the first packet is
// asked about: where it leads does not change. What belongs to no connection is not
// translated, and would leave with a sandbox's own address; so would what is on its way
// yet when there is no way out any more.
func (p *Plane) setHostRules(wayOut int) error {
	up, u := p.cfg.Uplink, p.uplink
	translated := []rule{
		when(from(netip.PrefixFrom(u.Inside4, 32)), masquerade()),
		when(from(netip.PrefixFrom(u.Inside6, 128)), masquerade()),
	}
	var late []rule
	for _, sandboxes := range []netip.Prefix{p.cfg.Net4, p.cfg.Net6} {
		if wayOut != 0 {
			translated = append(translated, when(from(sandboxes), masquerade()))
		} else {
			late = append(late, when(in(up), from(sandboxes), drop()))
		}
	}
	return install(int(p.cfg.Host.Fd()), hostTable(up), []chain{
		{name: "c_input", hook: nftables.ChainHookInput, policy: nftables.ChainPolicyAccept, rules: []rule{
			when(in(up), state(established|related), accept()),
			when(in(up), drop()),
		}},
		{name: "c_forward", hook: nftables.ChainHookForward, policy: nftables.ChainPolicyAccept, rules: append([]rule{
			when(state(established), in(up), accept()),
			when(state(established|related), out(up), accept()),
			when(in(up), state(invalid), drop()),
			when(in(up), to(netip.MustParsePrefix("169.254.0.0/16")), drop()),
			when(in(up), to(netip.MustParsePrefix("fe80::/10")), drop()),
			when(in(up), to(uplinks), drop()), // another data plane
			when(out(up), drop()),
		}, late...)},
		{name: "c_postrouting", hook: nftables.ChainHookPostrouting, nat: true, policy: nftables.ChainPolicyAccept, rules: translated},
	})
}

// install replaces a table as a whole, in one transaction.
func install(ns int, name string, chains []chain) error {
	conn, err := nftables.New(nftables.WithNetNSFd(ns))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	conn.AddTable(table) // or there may be nothing to delete
	conn.DelTable(table)
	conn.AddTable(table)
	for _, c := range chains {
		kind, priority := nftables.ChainTypeFilter, nftables.ChainPriorityFilter
		if c.nat {
			kind, priority = nftables.ChainTypeNAT, nftables.ChainPriorityNATSource
		}
		added := conn.AddChain(&nftables.Chain{Name: c.name, Table: table, Type: kind, Hooknum: c.hook, Priority: priority, Policy: &c.policy})
		for _, r := range c.rules {
			var all []expr.Any
			for _, part := range r {
				all = append(all, part...)
			}
			conn.AddRule(&nftables.Rule{Table: table, Chain: added, Exprs: all})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", name, err)
	}
	return nil
}
