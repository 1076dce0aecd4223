package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Connection is one that the kernel tracks, as the sandbox began it.
type Connection struct {
	Straight bool  // by the host, not in this namespace
	Protocol uint8 // of IP
	From, To netip.AddrPort
}

// End cuts a connection that is over for package bpf. The kernel may hold it for open, for
// as long as the host wants to: what tells one of an end need not tell the other. One that
// is not there is no error.
func (p *Plane) End(c Connection) error {
	family, socket := uint8(unix.AF_INET), p.tracked[1]
	if c.From.Addr().Is6() {
		family = unix.AF_INET6
	}
	if c.Straight {
		socket = p.tracked[0]
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: socket}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	req.AddData(c.tuple())
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("ending a connection: %w", err)
	}
	return nil
}

// tuple is how ctnetlink names a connection.
func (c Connection) tuple() *nl.RtAttr {
	const nested = int(nl.NLA_F_NESTED)
	source, dest := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if c.From.Addr().Is6() {
		source, dest = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	port := func(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
	tuple := nl.NewRtAttr(nested|nl.CTA_TUPLE_ORIG, nil)
	ip := tuple.AddRtAttr(nested|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(source, c.From.Addr().AsSlice())
	ip.AddRtAttr(dest, c.To.Addr().AsSlice())
	proto := tuple.AddRtAttr(nested|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{c.Protocol})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, port(c.From.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, port(c.To.Port()))
	return tuple
}

// Forget cuts what the kernel tracks of sandboxes' connections, so that no packet of
// theirs finds the next one that has its address. It looks through all of them once.
func (p *Plane) Forget(addrs ...netip.Addr) error {
	var four, six []netlink.CustomConntrackFilter
	for _, a := range addrs {
		f := &netlink.ConntrackFilter{}
		if err := f.AddIP(netlink.ConntrackOrigSrcIP, a.AsSlice()); err != nil {
			return err
		}
		if a.Is4() {
			four = append(four, f)
		} else {
			six = append(six, f)
		}
	}
	_, err4 := p.inside.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, four...)
	_, err6 := p.inside.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V6, six...)
	if err := errors.Join(err4, err6); err != nil {
		return fmt.Errorf("forgetting connections: %w", err)
	}
	return nil
}

// ForgetOthers cuts what the kernel tracks of sandboxes that are at none of some
// addresses: of those an earlier process has not come to. What the host tracks is theirs
// while packets leave straight. Not while [Plane.Refresh] runs.
func (p *Plane) ForgetOthers(addrs ...netip.Addr) error {
	f := &others{of: []netip.Prefix{p.cfg.Net4, p.cfg.Net6}, but: map[netip.Addr]bool{}}
	for _, a := range addrs {
		f.but[a] = true
	}
	trackers := []*netlink.Handle{p.inside}
	if p.wayOut > 0 {
		trackers = append(trackers, p.host)
	}
	var errs []error
	for _, h := range trackers {
		for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forgetting connections: %w", err)
	}
	return nil
}

// others matches connections that began in networks, but at some addresses.
type others struct {
	of  []netip.Prefix
	but map[netip.Addr]bool
}

// MatchConntrackFlow is asked by package netlink.
func (o *others) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	a, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	a = a.Unmap()
	return ok && !o.but[a] && slices.ContainsFunc(o.of, func(p netip.Prefix) bool { return p.Contains(a) })
}
