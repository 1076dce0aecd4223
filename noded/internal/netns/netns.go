// Package netns gives every slot a network of its own: a namespace and a veth
// pair whose other end lies in the node's data-plane namespace.
//
// The data-plane namespace has no uplink and does not forward, so a sandbox
// reaches nothing, not even the host, until netd gives it a way out: the absence
// of netd is the absence of egress. The package owns the namespaces below its
// directory and every link of group [Group] in the data plane; each carries the
// sandbox's id, the namespace as its file name and the link as its alias. It
// never touches the host's own namespace and keeps no state in memory: what
// exists is asked of the kernel.
//
//	sandbox's namespace                       data plane (<dir>/_dataplane)
//	  eth0  ip/32, MAC 02:73:<ip>  ───veth───   sx<index>  MAC 02:73:00:00:00:01, group 77, alias <id>
//	  gateway dev eth0 scope link               ip/32 dev sx<index> scope link
//	  default via gateway                       lo  gateway/32
//	  neighbours on both sides are permanent: no ARP is ever needed
//
// and the same with an IPv6 address and its gateway.
package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"s0.run/internal/sandbox"
)

const (
	// Group marks the host ends of all slots, for the data plane's rules.
	Group = 77

	dataplane  = "_dataplane" // no id starts with an underscore
	peerName   = "eth0"
	linkPrefix = "sx"
	// firstIfindex keeps the numbers that the kernel hands out by itself away
	// from ours, which are chosen: ifindex = firstIfindex + index.
	firstIfindex = 1 << 16
)

var hostMAC = net.HardwareAddr{0x02, 0x73, 0, 0, 0, 1} // every veth is its own segment

// Config says where the namespaces are bound and what addresses they get.
type Config struct {
	Dir   string       // a directory of ours, created when missing
	CIDR  netip.Prefix // the node's range; its first address is the gateway
	CIDR6 netip.Prefix // the same of IPv6, a /64
}

// Slot names the network of one sandbox. The index gives the address, the link's
// name and its ifindex; indexes run from 1 to [Net.MaxIndex].
type Slot struct {
	ID    sandbox.ID
	Index uint32
	IP    netip.Addr
	IP6   netip.Addr
}

// Ifindex is the number of the link's end in the data plane.
func (s Slot) Ifindex() int { return firstIfindex + int(s.Index) }

// MAC is where the sandbox's frames come from.
func (s Slot) MAC() net.HardwareAddr { return sandboxMAC(s.IP) }

// Net is safe for concurrent use.
type Net struct {
	cfg      Config
	gateway  netip.Addr
	gateway6 netip.Addr        // invalid on a kernel without IPv6
	host     *netlink.Handle   // in the data plane
	raw      *nl.NetlinkSocket // likewise, for what the library has no words for
}

// Open makes sure of the data plane and connects to it.
func Open(cfg Config) (*Net, error) {
	if !cfg.CIDR.IsValid() || !cfg.CIDR.Addr().Is4() || cfg.CIDR.Bits() > 29 {
		return nil, fmt.Errorf("sandbox network %v: want an IPv4 range of 8 addresses or more", cfg.CIDR)
	}
	if !cfg.CIDR6.IsValid() || !cfg.CIDR6.Addr().Is6() || cfg.CIDR6.Bits() != 64 {
		return nil, fmt.Errorf("sandbox network %v: want an IPv6 /64", cfg.CIDR6)
	}
	cfg.CIDR, cfg.CIDR6 = cfg.CIDR.Masked(), cfg.CIDR6.Masked()
	n := &Net{cfg: cfg, gateway: cfg.CIDR.Addr().Next()}
	if hasIPv6() {
		n.gateway6 = cfg.CIDR6.Addr().Next()
	}
	if err := n.openDataplane(); err != nil {
		n.Close()
		return nil, fmt.Errorf("data-plane namespace %s: %w", n.dataplanePath(), err)
	}
	return n, nil
}

// Close disconnects; everything that was made stays.
func (n *Net) Close() {
	if n.host != nil {
		n.host.Close()
	}
	if n.raw != nil {
		n.raw.Close()
	}
}

// MaxIndex is the highest index whose address is in the range.
func (n *Net) MaxIndex() uint32 { return 1<<(32-n.cfg.CIDR.Bits()) - 3 } // network, gateway, broadcast

// Slot gives the network of a sandbox at an index.
func (n *Net) Slot(id sandbox.ID, index uint32) Slot {
	b := n.cfg.CIDR.Addr().As4()
	base := binary.BigEndian.Uint32(b[:])
	binary.BigEndian.PutUint32(b[:], base+1+index)
	six := n.cfg.CIDR6.Addr().As16()
	binary.BigEndian.PutUint32(six[12:], 1+index)
	return Slot{ID: id, Index: index, IP: netip.AddrFrom4(b), IP6: netip.AddrFrom16(six)}
}

// Path is where the sandbox's namespace is bound.
func (n *Net) Path(id sandbox.ID) string { return filepath.Join(n.cfg.Dir, string(id)) }

// Dataplane is where the data plane's namespace is bound.
func (n *Net) Dataplane() string { return n.dataplanePath() }

func (n *Net) dataplanePath() string { return filepath.Join(n.cfg.Dir, dataplane) }

func (n *Net) openDataplane() error {
	if err := os.MkdirAll(n.cfg.Dir, 0o700); err != nil {
		return err
	}
	path := n.dataplanePath()
	if !isNamespace(path) {
		if err := create(path, sealDataplane); err != nil {
			return err
		}
	}
	if err := inside(path, quietIPv6); err != nil { // of an older version's, too
		return err
	}
	if err := n.connectDataplane(path); err != nil {
		return err
	}
	return addGateways(n.host, n.gateway, n.gateway6)
}

// connectDataplane opens netlink in the data plane, for as long as n is open.
func (n *Net) connectDataplane(path string) error {
	return inside(path, func() (err error) {
		if n.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		n.raw, err = nl.Subscribe(unix.NETLINK_ROUTE)
		return err
	})
}

// sealDataplane turns off forwarding, which a new namespace may inherit from the
// host's settings. It comes before anybody else can see the namespace: netd, which
// turns it on behind its rules, may do so at any time.
func sealDataplane() error {
	for _, knob := range []string{"ipv4/conf/all/forwarding", "ipv4/conf/default/forwarding", "ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+knob, []byte("0"), 0); err != nil && hasIPv6() {
			return err
		}
	}
	return quietIPv6()
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// quietIPv6 leaves a namespace with the addresses that it is given: none of its own
// making, none that a router tells it.
func quietIPv6() error {
	for _, k := range []struct{ name, value string }{
		{"all/disable_ipv6", "0"}, {"default/disable_ipv6", "0"},
		{"all/accept_ra", "0"}, {"default/accept_ra", "0"}, {"default/autoconf", "0"},
		{"default/accept_dad", "0"}, {"default/addr_gen_mode", "1"},
	} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+k.name, []byte(k.value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6 has nothing to be quiet about
			return err
		}
	}
	return nil
}

func addGateways(h *netlink.Handle, gateways ...netip.Addr) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, g := range gateways {
		if !g.IsValid() {
			continue
		}
		if err := h.AddrReplace(lo, address(g)); err != nil {
			return err
		}
	}
	return h.LinkSetUp(lo)
}

// ways are the slot's addresses, each with its gateway.
func (n *Net) ways(s Slot) []way {
	all := []way{{s.IP, n.gateway}}
	if n.gateway6.IsValid() {
		all = append(all, way{s.IP6, n.gateway6})
	}
	return all
}

type way struct{ own, gateway netip.Addr }

// Add makes the slot's network. After an error the caller removes the slot, like
// after a crash: what half an Add leaves behind bears the slot's id.
func (n *Net) Add(s Slot) error {
	if s.Index < 1 || s.Index > n.MaxIndex() {
		return fmt.Errorf("network of %s: index %d: want 1 to %d", s.ID, s.Index, n.MaxIndex())
	}
	path := n.Path(s.ID)
	if err := create(path, quietIPv6); err != nil {
		return fmt.Errorf("network of %s: namespace: %w", s.ID, err)
	}
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network of %s: %w", s.ID, err)
	}
	defer ns.Close()
	if err := n.addHostEnd(s, ns); err != nil {
		return fmt.Errorf("network of %s: host end: %w", s.ID, err)
	}
	if err := n.addSandboxEnd(s, path); err != nil {
		return fmt.Errorf("network of %s: sandbox end: %w", s.ID, err)
	}
	return nil
}

func (n *Net) addHostEnd(s Slot, ns *os.File) error {
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{
			Name: fmt.Sprint(linkPrefix, s.Index), Index: firstIfindex + int(s.Index), Group: Group,
			HardwareAddr: hostMAC, Flags: net.FlagUp, TxQLen: -1, NumTxQueues: 1, NumRxQueues: 1,
		},
		PeerName: peerName, PeerHardwareAddr: sandboxMAC(s.IP), PeerNamespace: netlink.NsFd(ns.Fd()), PeerTxQLen: -1,
	}
	if err := n.host.LinkAdd(link); err != nil {
		return err
	}
	if err := n.host.LinkSetAlias(link, string(s.ID)); err != nil {
		return err
	}
	for _, w := range n.ways(s) {
		if err := n.host.NeighSet(neighbour(link, w.own, s.MAC())); err != nil {
			return err
		}
		if err := n.host.RouteReplace(&netlink.Route{LinkIndex: link.Index, Scope: netlink.SCOPE_LINK, Dst: host(w.own)}); err != nil {
			return err
		}
	}
	return nil
}

func (n *Net) addSandboxEnd(s Slot, path string) error {
	h, err := handleAt(path)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := upLoopback(h); err != nil {
		return err
	}
	link, err := h.LinkByName(peerName)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, w := range n.ways(s) {
		if err := connect(h, link, w); err != nil {
			return err
		}
	}
	return nil
}

// connect gives the sandbox's end an address and the route to everywhere.
func connect(h *netlink.Handle, link netlink.Link, w way) error {
	if err := h.AddrAdd(link, address(w.own)); err != nil {
		return err
	}
	if err := h.NeighSet(neighbour(link, w.gateway, hostMAC)); err != nil {
		return err
	}
	index := link.Attrs().Index
	if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: host(w.gateway)}); err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: w.gateway.AsSlice()})
}

// upLoopback: gVisor copies the links that are up, and gives the sandbox no
// loopback otherwise.
func upLoopback(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// Remove takes the slot's network away, whatever of it is there. The link goes
// first, so that no packet of a process that still holds the namespace gets out.
func (n *Net) Remove(s Slot) error {
	if err := n.removeLink(s); err != nil {
		return fmt.Errorf("removing network of %s: link: %w", s.ID, err)
	}
	if err := remove(n.Path(s.ID)); err != nil {
		return fmt.Errorf("removing network of %s: namespace: %w", s.ID, err)
	}
	return nil
}

func (n *Net) removeLink(s Slot) error {
	if s.Index == 0 {
		return nil // a namespace that List found without a link
	}
	link, err := n.host.LinkByIndex(firstIfindex + int(s.Index))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if alias := link.Attrs().Alias; alias != string(s.ID) && alias != "" { // empty: Add died before naming it
		return nil
	}
	if err := n.host.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// List finds every network that is there, complete or not. An entry whose name
// is no id was not made by us and is left out.
func (n *Net) List() ([]Slot, error) {
	links, err := n.host.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing networks: %w", err)
	}
	found := map[sandbox.ID]Slot{}
	for _, l := range links {
		a := l.Attrs()
		if id, err := sandbox.ParseID(a.Alias); err == nil && a.Group == Group && a.Index > firstIfindex {
			found[id] = n.Slot(id, uint32(a.Index-firstIfindex))
		}
	}
	entries, err := os.ReadDir(n.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("listing networks: %w", err)
	}
	for _, e := range entries {
		if id, err := sandbox.ParseID(e.Name()); err == nil && found[id].ID == "" {
			found[id] = Slot{ID: id}
		}
	}
	all := make([]Slot, 0, len(found))
	for _, s := range found {
		all = append(all, s)
	}
	return all, nil
}

func host(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}

// address is used at once: nobody else can have it.
func address(ip netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: host(ip)}
	if ip.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func sandboxMAC(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x73, b[0], b[1], b[2], b[3]}
}

func neighbour(link netlink.Link, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
}
