package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is the veth between the data plane and the host.
type Uplink struct {
	Host4, Inside4 netip.Addr // both ends of a /30
	Host6, Inside6 netip.Addr // and of a /126
}

var (
	// uplinks is where the /30s come from: what no route of the host is about.
	uplinks = netip.MustParsePrefix("10.213.0.0/16")

	// anyNet6 stands for the sandboxes' network where none is meant.
	anyNet6 = netip.MustParsePrefix("fd77::/64")

	uplinkHostMAC   = net.HardwareAddr{0x02, 0x73, 0, 1, 0, 1}
	uplinkInsideMAC = net.HardwareAddr{0x02, 0x73, 0, 1, 0, 2}
)

// uplinkTries bounds the search for a /30 that is free.
const uplinkTries = 4096

// Uplink is where the way out leads.
func (p *Plane) Uplink() Uplink { return p.uplink }

// ensureUplink finds both ends of the veth, or makes them. The kernel takes its time to end a
// namespace: after a reboot's worth of restarts the host's end may still be there, with the
// other in the namespace of before, and is in the way.
func (p *Plane) ensureUplink() (host, in netlink.Link, err error) {
	for again := true; ; again = false {
		host, err = ensureVeth(p.host, &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: p.cfg.Uplink, HardwareAddr: uplinkHostMAC, MTU: p.mtu()},
			PeerName:  uplinkName, PeerHardwareAddr: uplinkInsideMAC, PeerMTU: uint32(p.mtu()), PeerNamespace: netlink.NsFd(int(p.cfg.Inside.Fd())),
		})
		if err != nil {
			return nil, nil, err
		}
		in, err = p.inside.LinkByName(uplinkName)
		if err == nil {
			return host, in, nil
		}
		if !again || !errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil, nil, fmt.Errorf("link %s: %w", uplinkName, err)
		}
		if err := p.host.LinkDel(host); err != nil && !errors.Is(err, unix.ENODEV) { // the kernel was quicker
			return nil, nil, fmt.Errorf("removing link %s of before: %w", p.cfg.Uplink, err)
		}
	}
}

// setUplink makes the veth, or takes its addresses from the one that is there.
func (p *Plane) setUplink() error {
	host, in, err := p.ensureUplink()
	if err != nil {
		return err
	}
	if p.uplink, err = p.chooseUplink(host); err != nil {
		return err
	}
	u := p.uplink
	if err := inside(p.cfg.Host, func() error {
		return set(knob{path: "ipv6/conf/" + p.cfg.Uplink + "/addr_gen_mode", value: "1", optional: true}, knob{path: "ipv6/conf/" + p.cfg.Uplink + "/accept_ra", value: "0", optional: true})
	}); err != nil {
		return err
	}
	if err := configure(p.host, host, end{u.Host4, u.Host6, u.Inside4, u.Inside6, uplinkInsideMAC}); err != nil {
		return fmt.Errorf("the host's end: %w", err)
	}
	if err := configure(p.inside, in, end{u.Inside4, u.Inside6, u.Host4, u.Host6, uplinkHostMAC}); err != nil {
		return fmt.Errorf("the inner end: %w", err)
	}
	for _, via := range []netip.Addr{u.Host4, u.Host6} {
		if err := p.inside.RouteReplace(&netlink.Route{LinkIndex: in.Attrs().Index, Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("default route via %s: %w", via, err)
		}
	}
	return nil
}

// mtu is that of the host's way out: what is larger would be cut or lost there.
func (p *Plane) mtu() int {
	const ethernet = 1500
	routes, err := p.host.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return ethernet
	}
	least := 0
	for _, r := range routes {
		if l, err := p.host.LinkByIndex(r.LinkIndex); err == nil && (least == 0 || l.Attrs().MTU < least) {
			least = l.Attrs().MTU
		}
	}
	if least < 1280 || least > 65535 { // IPv6's least
		return ethernet
	}
	return least
}

// chooseUplink finds a /30 that no route of the host is about, from a start that its
// name gives.
func (p *Plane) chooseUplink(host netlink.Link) (Uplink, error) {
	addrs, err := p.host.AddrList(host, netlink.FAMILY_V4)
	if err != nil {
		return Uplink{}, err
	}
	if len(addrs) > 0 {
		a, ok := netip.AddrFromSlice(addrs[0].IP.To4())
		if !ok {
			return Uplink{}, fmt.Errorf("address %v", addrs[0].IP)
		}
		return uplinkAt(a.Prev()), nil
	}
	routes, err := p.host.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return Uplink{}, err
	}
	h := fnv.New32a()
	h.Write([]byte(p.cfg.Uplink))
	base, blocks := binary.BigEndian.Uint32(uplinks.Addr().AsSlice()), uint32(1)<<(30-uplinks.Bits())
	for try := range uint32(uplinkTries) {
		first := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, base+(h.Sum32()+try)%blocks*4)))
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return concerns(r, netip.PrefixFrom(first, 30)) }) {
			return uplinkAt(first), nil
		}
	}
	return Uplink{}, fmt.Errorf("no free /30 in %s", uplinks)
}

// concerns leaves routes out that are about everything, or most of it.
func concerns(r netlink.Route, p netip.Prefix) bool {
	of, ok := destination(r)
	return ok && of.Bits() > 1 && of.Overlaps(p)
}

func destination(r netlink.Route) (p netip.Prefix, ok bool) {
	if r.Dst == nil {
		return p, false
	}
	ip, ok := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits), ok
}

// uplinkAt numbers the ends of the block of four addresses that begins with first.
func uplinkAt(first netip.Addr) Uplink {
	b := first.As4()
	ula := [16]byte{0xfd, 0x73, 0x30, 0x75, b[0], b[1], b[2], b[3]}
	host6, inside6 := ula, ula
	host6[15], inside6[15] = 1, 2
	return Uplink{
		Host4: first.Next(), Inside4: first.Next().Next(),
		Host6: netip.AddrFrom16(host6), Inside6: netip.AddrFrom16(inside6),
	}
}

type end struct {
	own4, own6, peer4, peer6 netip.Addr
	peerMAC                  net.HardwareAddr
}

// configure gives a link its addresses and a neighbour for each that needs no ARP.
func configure(h *netlink.Handle, l netlink.Link, e end) error {
	for a, bits := range map[netip.Addr]int{e.own4: 30, e.own6: 126} {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrReplace(l, addr); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return err
	}
	for _, a := range []netip.Addr{e.peer4, e.peer6} {
		n := &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: e.peerMAC}
		if err := h.NeighSet(n); err != nil {
			return fmt.Errorf("neighbour %s: %w", a, err)
		}
	}
	return nil
}

// HostAddresses are all of the host's, which no sandbox reaches.
func (p *Plane) HostAddresses() ([]netip.Prefix, error) {
	found, err := p.host.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("the host's addresses: %w", err)
	}
	var all []netip.Prefix
	for _, a := range found {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ip = ip.Unmap()
			all = append(all, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	u := p.uplink
	for _, ip := range []netip.Addr{u.Inside4, u.Inside6} {
		all = append(all, netip.PrefixFrom(ip, ip.BitLen()))
	}
	return all, nil
}
