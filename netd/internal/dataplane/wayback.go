package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Refresh looks again whether packets may leave to the host with sandboxes' own addresses.
// They may not where another route of the host's is about those addresses: its own network
// comes first, and all that leaves is translated to the uplink's address here. Of its calls
// one runs at a time.
func (p *Plane) Refresh() error {
	if err := p.setWayOut(); err != nil {
		return fmt.Errorf("data plane: the way out: %w", err)
	}
	return nil
}

// setWayOut has packets leave straight while the host has a way back to sandboxes, and while
// its rules translate them: straight is the last that they may, and the first that they
// may not.
func (p *Plane) setWayOut() error {
	link, err := p.setWayBack()
	if err != nil {
		return err
	}
	if link != p.wayOut {
		if err := p.setHostRules(link); err != nil {
			return fmt.Errorf("the host's rules: %w", err)
		}
		p.wayOut = link
	}
	return p.cfg.SetWayOut(link)
}

// setWayBack gives the host its routes to sandboxes, and says through which link it has
// them. Nobody reaches a sandbox by them: the host's rules and package bpf let in what
// belongs to a connection that the sandbox began.
func (p *Plane) setWayBack() (link int, err error) {
	in, err := p.inside.LinkByName(uplinkName)
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", uplinkName, err)
	}
	host, err := p.host.LinkByName(p.cfg.Uplink)
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", p.cfg.Uplink, err)
	}
	back := []netlink.Route{wayBack(host, p.cfg.Net4, p.uplink.Inside4), wayBack(host, p.cfg.Net6, p.uplink.Inside6)}
	ours, free, err := p.look(back)
	if err == nil && free && !ours {
		ours, free, err = p.take(back)
	}
	if err != nil {
		return 0, err
	}
	if free && ours {
		return in.Attrs().Index, nil
	}
	return 0, p.giveUp(back)
}

// giveUp takes the routes away when nothing is sent that needs them.
func (p *Plane) giveUp(back []netlink.Route) error {
	if err := p.cfg.SetWayOut(0); err != nil {
		return err
	}
	for i := range back {
		if err := p.host.RouteDel(&back[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("route to %s: %w", back[i].Dst, err)
		}
	}
	return nil
}

// take adds the routes and looks again, for another data plane may do the same.
func (p *Plane) take(back []netlink.Route) (ours, free bool, err error) {
	for i := range back {
		if err := p.host.RouteAdd(&back[i]); err != nil && !errors.Is(err, unix.EEXIST) {
			return false, false, fmt.Errorf("route to %s: %w", back[i].Dst, err)
		}
	}
	return p.look(back)
}

func wayBack(host netlink.Link, to netip.Prefix, via netip.Addr) netlink.Route {
	dst := &net.IPNet{IP: to.Masked().Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
	return netlink.Route{LinkIndex: host.Attrs().Index, Dst: dst, Gw: via.AsSlice()}
}

// look says whether these routes are there, all of them, and whether no other route of the
// host is about their networks, in whichever of its tables.
func (p *Plane) look(back []netlink.Route) (ours, free bool, err error) {
	found := 0
	for _, want := range back {
		to, _ := destination(want)
		all, err := p.host.RouteListFiltered(family(to), &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return false, false, fmt.Errorf("the host's routes: %w", err)
		}
		for _, r := range all {
			switch at, _ := destination(r); {
			case at == to && r.LinkIndex == want.LinkIndex:
				found++
			case concerns(r, to):
				return false, false, nil
			}
		}
	}
	if found < len(back) {
		return false, true, nil
	}
	return true, p.leads(back), nil
}

// leads says whether the host takes these routes: its rules may have it ask another table.
func (p *Plane) leads(back []netlink.Route) bool {
	for _, want := range back {
		to, _ := destination(want)
		taken, err := p.host.RouteGet(to.Addr().Next().AsSlice())
		if err != nil || len(taken) == 0 || taken[0].LinkIndex != want.LinkIndex {
			return false
		}
	}
	return true
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// setUplinkProgram has what the uplink brings seen by package bpf, by this process's
// program from here on.
func (p *Plane) setUplinkProgram() error {
	in, err := p.inside.LinkByName(uplinkName)
	if err != nil {
		return fmt.Errorf("link %s: %w", uplinkName, err)
	}
	ifindex := in.Attrs().Index
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := p.inside.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact of %s: %w", uplinkName, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:          p.cfg.FromUplink, Name: "from_uplink", DirectAction: true,
	}
	if err := p.inside.FilterReplace(filter); err != nil {
		return fmt.Errorf("from_uplink: %w", err)
	}
	return nil
}
