package netd_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"s0.run/netd"
)

// aNetworkThere gives the host a network that is part of the sandboxes': then it has no
// route to them, and all that leaves is translated before it comes to the host.
func (w *world) aNetworkThere() (remove func()) {
	return w.aRoute(unix.RT_TABLE_MAIN, netip.MustParsePrefix("10.77.99.0/24"))
}

// aRoute is one of the host's to the internet.
func (w *world) aRoute(table int, to netip.Prefix) (remove func()) {
	w.t.Helper()
	h := w.handle(w.host)
	l, err := h.LinkByName("wan")
	w.must(err)
	via := map[bool]string{true: far4, false: far6}[to.Addr().Is4()]
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Table: table, Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}, Gw: net.ParseIP(via)}
	w.must(h.RouteAdd(r))
	return func() { w.must(h.RouteDel(r)) }
}

// aTableBefore has the host ask a table of its own before all others, which has an answer
// for everything.
func (w *world) aTableBefore() (remove func()) {
	w.t.Helper()
	const table = 53
	h := w.handle(w.host)
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority = netlink.FAMILY_V6, table, 100
	routes := w.aRoute(table, netip.MustParsePrefix("::/0"))
	w.must(h.RuleAdd(rule))
	return func() {
		w.must(h.RuleDel(rule))
		routes()
	}
}

// byBothWays runs a test in a world whose host knows a way to sandboxes, and in one whose
// host does not.
func byBothWays(t *testing.T, test func(t *testing.T, w *world, straight bool)) {
	for name, straight := range map[string]bool{"straight": true, "translated twice": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if !straight {
				w.aNetworkThere()
			}
			w.start()
			test(t, w, straight)
		})
	}
}

// leftAs says whether a sandbox's own addresses are to be seen, both of them.
func leftAs(s *sink, b *box) (four, six bool) {
	for _, p := range s.packets() {
		four, six = four || p.src == b.slot.IPv4, six || p.src == b.slot.IPv6
	}
	return four, six
}

// A sandbox's packets come to the host as they are, and to nobody else: not even those
// that belong to no connection.
func TestE16_NobodyOutsideSeesASandboxsAddress(t *testing.T) {
	byBothWays(t, func(t *testing.T, w *world, straight bool) {
		w.far("80")
		b := w.sandbox()
		b.policy(`{"mode":"allow-all"}`)
		uplink, outside := w.sink(w.host, netd.UplinkName(w.cfg.NetNS)), w.sink(w.beyond, "eth")
		for _, dst := range []string{far4, far6} {
			for _, flags := range []byte{0x04, 0x01, 0x11, 0x14, 0x10, 0x3f, 0} { // RST, FIN and others, of nothing
				b.inject(b.frame(unix.IPPROTO_TCP, dst, func(f []byte) { f[len(f)-40+13] = flags; f[len(f)-40] = flags }))
			}
		}
		for _, network := range networks {
			for _, at := range both("80", far4, far6) {
				b.reaches(network, at)
			}
		}
		w.eventually("the host saw them", func() error {
			if four, six := leftAs(uplink, b); straight && !(four && six) || len(uplink.packets()) < 4 {
				return fmt.Errorf("%v", uplink.packets())
			}
			return nil
		})
		if four, six := leftAs(outside, b); four || six {
			t.Errorf("beyond saw a sandbox's own address: %v", outside.packets())
		}
	})
}

// The host's own network comes first. What has begun goes on as it began, on whichever
// way, when that changes with a netd.
func TestX31_TheHostsOwnNetworkComesFirst(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWorld(t)
	remove := w.aNetworkThere()
	w.start()
	w.far("80")
	b := w.sandbox()
	b.policy(`{"mode":"allow-all"}`)
	uplink := netd.UplinkName(w.cfg.NetNS)
	routes := func() (n int) {
		h := w.handle(w.host)
		l, err := h.LinkByName(uplink)
		w.must(err)
		all, err := h.RouteList(l, unix.AF_UNSPEC)
		w.must(err)
		for _, r := range all {
			if r.Dst != nil && (r.Dst.String() == w.cfg.SandboxCIDR.String() || r.Dst.String() == w.cfg.SandboxCIDR6.String()) {
				n++
			}
		}
		return n
	}
	if n := routes(); n != 0 {
		t.Fatalf("%d routes lead to sandboxes beside the host's own", n)
	}
	var open []net.Conn
	begin := func() {
		for _, at := range both("80", far4, far6) {
			c, err := b.dial("tcp", at)
			w.must(err)
			t.Cleanup(func() { c.Close() })
			open = append(open, c)
		}
	}
	goOn := func() {
		t.Helper()
		for _, c := range open {
			if got, err := exchange(c, "x"); got != "echo x" {
				t.Errorf("from %s to %s: %q, %v", c.LocalAddr(), c.RemoteAddr(), got, err)
			}
		}
		for _, network := range networks {
			for _, at := range both("80", far4, far6) {
				b.reaches(network, at)
			}
		}
	}
	begin()
	goOn()
	remove()
	w.kill(w.process)
	w.start()
	if n := routes(); n != 2 {
		t.Fatalf("%d routes lead to sandboxes, want one of each family", n)
	}
	straight := w.sink(w.host, uplink)
	begin()
	goOn()
	w.eventually("packets leave straight", func() error {
		if four, six := leftAs(straight, b); !four || !six {
			return fmt.Errorf("of both families: %v, %v", four, six)
		}
		return nil
	})
	w.kill(w.process)
	goOn()
	w.start()
	goOn()
	for name, there := range map[string]func() (remove func()){
		"a network of another table": func() (remove func()) { return w.aRoute(52, netip.MustParsePrefix("10.0.0.0/8")) },
		"an IPv6 network": func() (remove func()) {
			return w.aRoute(unix.RT_TABLE_MAIN, netip.MustParsePrefix("fd77:0:0:0:1::/80"))
		},
		"a table that comes first": w.aTableBefore,
	} {
		remove, open = there(), nil // what began straight ends with the way
		w.kill(w.process)
		w.start()
		if n := routes(); n != 0 {
			t.Errorf("%s: %d routes lead to sandboxes", name, n)
		}
		if name != "a table that comes first" { // which leads nothing of IPv6 back to netd either
			begin()
			goOn()
		}
		remove()
		w.kill(w.process)
		w.start()
		if n := routes(); n != 2 {
			t.Errorf("%s, and not any more: %d routes lead to sandboxes", name, n)
		}
		goOn()
	}
	outside := w.sink(w.beyond, "eth")
	remove, open = w.aNetworkThere(), nil
	looks := 0
	w.eventually("the way is left to the host's own network", func() error {
		looks++
		for _, at := range both("80", far4, far6) { // connections that begin meanwhile
			if looks > 1000 { // half of what a sandbox may have
				break
			}
			c, err := b.dial("udp", at)
			w.must(err)
			_, err = c.Write([]byte("x"))
			w.must(errors.Join(err, c.Close()))
		}
		if n := routes(); n != 0 {
			return fmt.Errorf("%d routes lead to sandboxes", n)
		}
		return nil
	})
	begin()
	goOn()
	remove()
	w.eventually("the way is taken again", func() error {
		if n := routes(); n != 2 {
			return fmt.Errorf("%d routes lead to sandboxes", n)
		}
		return nil
	})
	begin()
	goOn()
	if four, six := leftAs(outside, b); four || six {
		t.Errorf("beyond saw a sandbox's own address: %v", outside.packets())
	}
}

// E14: how large packets may be is learnt by who sends them: the sandbox, on both ways,
// and netd, for what it passes on.
func TestE14_PathsHaveTheirSizes(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	byBothWays(t, func(t *testing.T, w *world, _ bool) {
		h := w.handle(w.host)
		wan, err := h.LinkByName("wan")
		w.must(err)
		w.must(h.LinkSetMTU(wan, 1300)) // not the other end: its packets arrive
		b := w.sandbox()
		b.policy(`{"mode":"block-all","egress":{"trafficRules":[
			{"name":"ssh","action":"allow","cidrs":["93.184.0.2/32","2606:aaaa::2/128"],"appProtocols":["ssh"],"ports":[{"port":22}]},
			{"name":"other","action":"allow","cidrs":["93.184.0.2/32","2606:aaaa::2/128"],"ports":[{"port":9}]}]}}`)
		for _, ip := range []string{far4, far6} {
			for _, port := range []string{"9", "22"} {
				at := net.JoinHostPort(ip, port)
				w.discards(at)
				if n, err := b.uploads(at, 1<<20); err != nil || n != fmt.Sprint(1<<20) {
					t.Errorf("%s got %q bytes: %v", at, n, err)
				}
			}
		}
		inGVisor := map[*attempt]func(outcome) bool{}
		data := append([]byte("SSH-2.0-x\r\n"), make([]byte, 60<<10)...)
		for _, ip := range []string{far4, far6} {
			for _, port := range []string{"9", "22"} {
				inGVisor[&attempt{Op: "bytes", Network: "tcp", To: net.JoinHostPort(ip, port), Data: data}] = func(o outcome) bool { return o.Out == fmt.Sprint(len(data)) }
			}
		}
		b.wants(inGVisor)
	})
}

// uploads sends so much, and returns what the other side counted.
func (b *box) uploads(at string, size int) (string, error) {
	c, err := b.dial("tcp", at)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
		return "", err
	}
	if _, err := c.Write(append([]byte("SSH-2.0-x\r\n"), make([]byte, size-11)...)); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(c)
	return string(got), err
}

// An answer that comes in parts arrives whole.
func TestAnswersInParts(t *testing.T) {
	byBothWays(t, func(t *testing.T, w *world, _ bool) {
		const size = 4000
		b := w.sandbox()
		b.policy(`{"mode":"allow-all"}`)
		for _, at := range both("90", far4, far6) {
			w.must(in(w.beyond, func() error {
				p, err := net.ListenPacket("udp", at)
				if err != nil {
					return err
				}
				t.Cleanup(func() { p.Close() })
				go func() {
					buf := make([]byte, 100)
					for {
						_, from, err := p.ReadFrom(buf)
						if err != nil {
							return
						}
						_, _ = p.WriteTo(make([]byte, size), from)
					}
				}()
				return nil
			}))
			c, err := b.dial("udp", at)
			w.must(err)
			t.Cleanup(func() { c.Close() })
			w.eventually("an answer of "+at, func() error { // datagrams may be lost
				w.must(c.SetDeadline(time.Now().Add(time.Second)))
				if _, err := c.Write([]byte("x")); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					return err
				}
				buf := make([]byte, 2*size)
				if n, err := c.Read(buf); err != nil || n != size {
					return fmt.Errorf("%d bytes, %w", n, err)
				}
				return nil
			})
		}
	})
}

// trackedOf are the connections of a sandbox that a namespace tracks.
func (w *world) trackedOf(ns netns.NsHandle, b *box) (all []string) {
	w.t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_NETFILTER)
	w.must(err)
	defer h.Close()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := h.ConntrackTableList(netlink.ConntrackTable, family)
		w.must(err)
		for _, f := range flows {
			if ip := f.Forward.SrcIP.String(); ip == b.slot.IPv4.String() || ip == b.slot.IPv6.String() {
				all = append(all, fmt.Sprint(ip, " ", f.Forward.SrcPort))
			}
		}
	}
	return all
}

// D09, E23: what is over is over for whoever tracks it: also what a sandbox has ended in a
// way that is no end for anybody else, and what it leaves when it ends.
func TestD09_E23_NobodyHoldsWhatIsOver(t *testing.T) {
	t.Parallel() // it mostly waits, in worlds of its own
	byBothWays(t, func(t *testing.T, w *world, straight bool) {
		w.far("80")
		b := w.sandbox()
		b.policy(`{"mode":"allow-all"}`)
		holder := map[bool]netns.NsHandle{true: w.host, false: w.inside}[straight]
		var gone, kept []string
		var resets [][]byte
		for i, at := range append(both("80", far4, far6), both("80", other4, other6)...) {
			c, err := b.dial("tcp", at)
			w.must(err)
			t.Cleanup(func() { c.Close() })
			if _, err := exchange(c, "x"); err != nil {
				t.Fatal(err)
			}
			from := c.LocalAddr().(*net.TCPAddr)
			name := fmt.Sprint(from.IP, " ", from.Port)
			if i >= 2 {
				kept = append(kept, name)
				continue
			}
			gone = append(gone, name)
			resets = append(resets, b.frame(unix.IPPROTO_TCP, c.RemoteAddr().(*net.TCPAddr).IP.String(), func(f []byte) { // a reset far from where the connection is
				binary.BigEndian.PutUint16(f[len(f)-40:], uint16(from.Port))
				f[len(f)-40+13] = 0x04
			}))
		}
		for _, at := range both("80", far4, far6) {
			b.reaches("udp", at)
		}
		if all := w.trackedOf(holder, b); len(all) < 6 {
			t.Fatalf("tracked: %v", all)
		}
		b.inject(resets...)
		w.eventually("what was reset is forgotten", func() error {
			all := w.trackedOf(holder, b)
			for _, name := range gone {
				if slices.Contains(all, name) {
					return fmt.Errorf("%s is among %v", name, all)
				}
			}
			return nil
		})
		all := w.trackedOf(holder, b)
		for _, name := range kept {
			if !slices.Contains(all, name) {
				t.Errorf("%s is not among %v", name, all)
			}
		}
		w.must(w.client.Detach(t.Context(), b.slot.ID, 0))
		w.eventually("all is forgotten", func() error {
			if all := w.trackedOf(holder, b); len(all) > 0 {
				return fmt.Errorf("%v is left", all)
			}
			return nil
		})
	})
}
