// Package dataplane is the network namespace through which everything goes that a
// sandbox sends: its nft rules, its routes, its way out through the host, and netd's
// own sockets in it.
//
//	sandbox ─veth─ sx<n> ┐                                    ┌ <uplink> ─ host ─ world
//	sandbox ─veth─ sx<n> ┼ clsact block: judged and marked ─ up0
//	                     └ lo: the proxy's and the resolver's sockets
//
// noded makes the namespace and the links of group [Group] in it; the package adds
// what makes packets move, and on the host one veth with rules of its own: what comes
// from there reaches no service of the host and nothing link-local. Nothing is
// forwarded without the mark of package bpf, so that a link nobody has attached, and a
// program that is missing, mean silence. Rules are static: no sandbox's data is in
// them. All of it stays when netd ends.
//
// What passes by its address alone, package bpf moves from sx<n> to the uplink's other
// end, and back, without this namespace's rules and routes: the host tracks and
// translates it, for which it has a route to the sandboxes' addresses ([Plane.Refresh]).
package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"s0.run/internal/sandbox"
)

const (
	// Group is of the host ends of all slots, as noded makes them.
	Group = 77

	uplinkName = "up0"
	holdName   = "hold0" // keeps the blocks alive while there is no sandbox
	holdPeer   = "hold1"

	ingressBlock, egressBlock = 1, 2
	blockMagic                = 0xFFFFFFFF // TCM_IFINDEX_MAGIC_BLOCK: the parent is a block

	localTable    = 100 // routes what has the mark to this namespace itself
	localPriority = 50
)

// Config says where everything is.
type Config struct {
	Host   *os.File // the host's network namespace
	Inside *os.File // the data plane's
	Net4   netip.Prefix
	Net6   netip.Prefix
	// Uplink names the host's end; two data planes of one host differ in it.
	Uplink string
	// FromSandbox and ToSandbox are descriptors of the programs for every link,
	// FromUplink of that for the uplink.
	FromSandbox, ToSandbox, FromUplink int
	MarkLocal, MarkDeny, MarkAllow     uint32
	// SetWayOut has package bpf send straight through a link of Inside, or none (0).
	SetWayOut func(ifindex int) error
}

// undecided is no link, and not that there is none.
const undecided = -1

// Plane is safe for concurrent use.
type Plane struct {
	cfg          Config
	host, inside *netlink.Handle
	raw          *nl.NetlinkSocket    // for what the library has no words for
	tracked      [2]*nl.NetlinkSocket // connections of the host's, and of the namespace's
	uplink       Uplink
	wayOut       int // the link for which the host's rules are, or 0, or undecided
}

// Open sets everything up, or finds it as an earlier process has left it. Rules come
// before routes and forwarding, so that nothing passes in between.
func Open(cfg Config) (*Plane, error) {
	p := &Plane{cfg: cfg, wayOut: undecided}
	if err := p.connect(); err != nil {
		p.Close()
		return nil, err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"rules", p.setRules},
		{"settings", p.setKnobs},
		{"programs", p.setPrograms},
		{"routes", p.setLocalRoutes},
		{"uplink", p.setUplink},
		{"the uplink's program", p.setUplinkProgram},
		{"the way out", p.setWayOut},
		{"forwarding", p.setForwarding},
	} {
		if err := step.do(); err != nil {
			p.Close()
			return nil, fmt.Errorf("data plane: %s: %w", step.name, err)
		}
	}
	return p, nil
}

func (p *Plane) connect() (err error) {
	if p.host, err = netlink.NewHandleAt(netns.NsHandle(p.cfg.Host.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("data plane: the host's netlink: %w", err)
	}
	if p.inside, err = netlink.NewHandleAt(netns.NsHandle(p.cfg.Inside.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("data plane: netlink: %w", err)
	}
	if p.raw, err = nl.GetNetlinkSocketAt(netns.NsHandle(p.cfg.Inside.Fd()), netns.None(), unix.NETLINK_ROUTE); err != nil {
		return err
	}
	for i, ns := range []*os.File{p.cfg.Host, p.cfg.Inside} {
		if p.tracked[i], err = nl.GetNetlinkSocketAt(netns.NsHandle(ns.Fd()), netns.None(), unix.NETLINK_NETFILTER); err != nil {
			return err
		}
	}
	return nil
}

// Close lets go; everything stays in force.
func (p *Plane) Close() {
	if p.host != nil {
		p.host.Close()
	}
	if p.inside != nil {
		p.inside.Close()
	}
	for _, socket := range append(p.tracked[:], p.raw) {
		if socket != nil {
			socket.Close()
		}
	}
}

// Remove takes away all that Open has made but the settings. Nothing passes then.
func (p *Plane) Remove() error {
	errs := []error{Clean(p.cfg.Uplink, p.cfg.Host)}
	for name, h := range map[string]*netlink.Handle{p.cfg.Uplink: p.host, holdName: p.inside} {
		link, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkDel(link)
		}
		if !errors.As(err, &netlink.LinkNotFoundError{}) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// setPrograms has every link of the blocks judged, by this process's programs from
// here on.
func (p *Plane) setPrograms() error {
	hold, err := ensureVeth(p.inside, &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: holdName}, PeerName: holdPeer})
	if err != nil {
		return err
	}
	if err := p.joinBlocks(hold.Attrs().Index); err != nil {
		return err
	}
	for _, f := range []struct {
		block uint32
		fd    int
		name  string
	}{{ingressBlock, p.cfg.FromSandbox, "from_sandbox"}, {egressBlock, p.cfg.ToSandbox, "to_sandbox"}} {
		magic := uint32(blockMagic)
		err := p.inside.FilterReplace(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: int(int32(magic)), Parent: f.block, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
			Fd:          f.fd, Name: f.name, DirectAction: true,
		})
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// ensureVeth finds a link by its name, or makes it.
func ensureVeth(h *netlink.Handle, v *netlink.Veth) (netlink.Link, error) {
	link, err := h.LinkByName(v.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		v.TxQLen, v.PeerTxQLen = -1, -1
		if err := h.LinkAdd(v); err != nil {
			return nil, fmt.Errorf("link %s: %w", v.Name, err)
		}
		link, err = h.LinkByName(v.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", v.Name, err)
	}
	return link, nil
}

// joinBlocks puts both directions of a link under the programs; a link that is there
// already stays.
func (p *Plane) joinBlocks(ifindex int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: p.raw}}
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(ifindex), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("clsact")))
	req.AddData(nl.NewRtAttr(nl.TCA_INGRESS_BLOCK, nl.Uint32Attr(ingressBlock)))
	req.AddData(nl.NewRtAttr(nl.TCA_EGRESS_BLOCK, nl.Uint32Attr(egressBlock)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact of link %d: %w", ifindex, err)
	}
	return nil
}

// Attach has a sandbox's link judged. The link has to bear the sandbox's id.
func (p *Plane) Attach(id sandbox.ID, ifindex int) error {
	link, err := p.inside.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("link %d of %s: %w", ifindex, id, err)
	}
	if a := link.Attrs(); a.Alias != string(id) || a.Group != Group {
		return fmt.Errorf("link %d is not of %s", ifindex, id)
	}
	return p.joinBlocks(ifindex)
}

// Links are the sandboxes' links that there are, by ifindex.
func (p *Plane) Links() (map[int]sandbox.ID, error) {
	links, err := p.inside.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	all := map[int]sandbox.ID{}
	for _, l := range links {
		if id, err := sandbox.ParseID(l.Attrs().Alias); err == nil && l.Attrs().Group == Group {
			all[l.Attrs().Index] = id
		}
	}
	return all, nil
}

// setLocalRoutes delivers what has the mark here, whatever its destination.
func (p *Plane) setLocalRoutes() error {
	lo, err := p.inside.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := p.inside.LinkSetUp(lo); err != nil {
		return err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table, rule.Priority = family, p.cfg.MarkLocal, localTable, localPriority
		if err := p.inside.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("rule: %w", err)
		}
		all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if family == netlink.FAMILY_V6 {
			all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		route := &netlink.Route{Family: family, LinkIndex: lo.Attrs().Index, Table: localTable, Type: unix.RTN_LOCAL, Dst: all, Scope: netlink.SCOPE_HOST}
		if err := p.inside.RouteReplace(route); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	return nil
}
