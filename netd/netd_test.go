package netd_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"s0.run/internal/netdapi"
	"s0.run/netd"
)

// both is a port of an address of each family.
func both(port, v4, v6 string) []string { return []string{v4 + ":" + port, "[" + v6 + "]:" + port} }

var networks = []string{"tcp", "udp"}

// far serves a port on the internet's addresses.
func (w *world) far(port string) {
	w.t.Helper()
	for _, network := range networks {
		for _, at := range append(both(port, far4, far6), both(port, other4, other6)...) {
			w.serves(w.beyond, network, at)
		}
	}
}

func TestE04_RulesDecideWhatGetsOut(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	b := w.sandbox()
	for _, network := range networks {
		for _, at := range both("80", far4, far6) {
			b.refused(network, at) // E22: there is no policy yet
		}
	}
	b.policy(`{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.2/32","2606:aaaa::2/128"],"allowedPorts":[{"port":80},{"port":80,"protocol":"udp"}]}}`)
	for _, network := range networks {
		for _, at := range both("80", far4, far6) {
			b.reaches(network, at)
		}
		for _, at := range append(both("80", other4, other6), both("81", far4, far6)...) {
			b.refused(network, at)
		}
	}
	n, err := b.counters()
	if err != nil || n.SentPackets == 0 || n.ReceivedBytes == 0 || n.Denied == 0 {
		t.Errorf("counted %+v, %v", n, err)
	}
}

// What is always denied stays so for a policy that allows and names everything.
func TestE01_E02_E17_NothingOpensWhatIsAlwaysDenied(t *testing.T) {
	w := newWorld(t)
	w.start()
	b, neighbour := w.sandbox(), w.sandbox()
	open := `{"mode":"allow-all","egress":{"trafficRules":[{"name":"all","action":"allow","cidrs":["0.0.0.0/0","::/0","10.0.0.0/8","169.254.0.0/16","fd00::/8","10.77.0.0/16"]}]}}`
	b.policy(open)
	neighbour.policy(open)
	uplink := w.uplink()
	forbidden := []string{"169.254.169.254", neighbour.slot.IPv4.String(), neighbour.slot.IPv6.String(), "10.77.0.1", "fd77::1", host4, host6, "100.64.0.1"}
	for _, ip := range append(forbidden, uplink...) {
		for _, port := range []string{"80", "15001"} {
			for _, network := range networks {
				b.refused(network, net.JoinHostPort(ip, port))
			}
		}
	}
	w.serves(w.host, "tcp", net.JoinHostPort(host4, "80"))
	b.refused("tcp", net.JoinHostPort(host4, "80"))
}

// uplink is the addresses of both ends of the way out.
func (w *world) uplink() (all []string) {
	w.t.Helper()
	addrs, err := w.handle(w.inside).AddrList(nil, unix.AF_UNSPEC)
	w.must(err)
	for _, a := range addrs {
		if a.Label == "up0" || a.IP.To4() == nil && a.IP[0] == 0xfd && a.IP[1] == 0x73 {
			all = append(all, a.IP.String())
			peer := slices.Clone(a.IP)
			peer[len(peer)-1]--
			all = append(all, peer.String())
		}
	}
	if len(all) != 4 {
		w.t.Fatalf("the way out has addresses %v", all)
	}
	return all
}

// frame is an Ethernet frame of the sandbox with an IPv4 or IPv6 packet.
func (b *box) frame(protocol uint8, dst string, change func(b []byte)) []byte {
	to := netip.MustParseAddr(dst)
	f := append(slices.Clone(hostMAC), b.mac...)
	if to.Is4() {
		h := []byte{0x08, 0x00, 0x45, 0, 0, 60, 0, 1, 0x40, 0, 64, protocol, 0, 0}
		f = append(append(append(f, h...), b.slot.IPv4.AsSlice()...), to.AsSlice()...)
		f = append(f, make([]byte, 40)...)
	} else {
		h := []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, protocol, 64}
		f = append(append(append(f, h...), b.slot.IPv6.AsSlice()...), to.AsSlice()...)
		f = append(f, make([]byte, 40)...)
	}
	rest := len(f) - 40
	binary.BigEndian.PutUint16(f[rest:], 40000)
	binary.BigEndian.PutUint16(f[rest+2:], 80)
	if protocol == unix.IPPROTO_TCP {
		f[rest+12], f[rest+13] = 0x50, 2
	} else if protocol == unix.IPPROTO_UDP {
		f[rest+5] = 40
	}
	if change != nil {
		change(f)
	}
	if to.Is4() {
		checksum(f[14:34])
	}
	return f
}

func checksum(h []byte) {
	h[10], h[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
}

// A sandbox whose kernel is broken may send any frame: none that is forbidden comes
// out, and its neighbour sees none at all.
func TestE03_E13_E14_E15_E16_E19_RawFrames(t *testing.T) {
	w := newWorld(t)
	w.start()
	b, neighbour := w.sandbox(), w.sandbox()
	b.policy(`{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.2/32","2606:aaaa::2/128"],"allowedPorts":[{"port":80},{"port":80,"protocol":"udp"}]}}`)
	outside, beside := w.sink(w.beyond, "eth"), w.sink(neighbour.ns, "eth0")
	var frames [][]byte
	add := func(f []byte) { frames = append(frames, f) }
	for _, dst := range []string{far4, far6} {
		for p := range 256 {
			if p != unix.IPPROTO_TCP && p != unix.IPPROTO_UDP {
				add(b.frame(uint8(p), dst, nil)) // E15, E03: extension headers are next headers, too
			}
		}
		src := 26
		if dst == far6 {
			src = 22
		}
		for _, p := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			add(b.frame(p, dst, func(f []byte) { f[src+3]++ }))                   // another's address
			add(b.frame(p, dst, func(f []byte) { copy(f[6:12], neighbour.mac) })) // another's MAC
			add(b.frame(p, dst, func(f []byte) { copy(f[0:6], neighbour.mac) }))  // to another's
			add(b.frame(p, dst, func(f []byte) { copy(f[0:6], "\xff\xff\xff\xff\xff\xff") }))
		}
	}
	add(b.frame(unix.IPPROTO_TCP, far4, func(f []byte) { f[20] = 0x20 }))           // a first fragment
	add(b.frame(unix.IPPROTO_UDP, far4, func(f []byte) { f[20], f[21] = 0, 0xb9 })) // a last one
	add(b.frame(unix.IPPROTO_TCP, far4, func(f []byte) { f[14] = 0x46 }))           // options
	for _, dst := range []string{
		"169.254.169.254", host4, other4, "10.9.0.1", "100.64.0.1", "224.0.0.1", "255.255.255.255", neighbour.slot.IPv4.String(),
		host6, other6, "fd12::1", "ff02::1", "fe80::1", "::ffff:93.184.0.2", "64:ff9b::5db8:2", neighbour.slot.IPv6.String(),
	} {
		add(b.frame(unix.IPPROTO_TCP, dst, nil))
		add(b.frame(unix.IPPROTO_UDP, dst, nil))
		add(b.frame(unix.IPPROTO_UDP, dst, func(f []byte) { f[len(f)-38], f[len(f)-37] = 0x01, 0xbb })) // E13: QUIC
	}
	for _, p := range []uint16{unix.ETH_P_ARP, 0x8100, 0x88a8, 0x8847, 0x88cc, 0x8864, 0x0600} {
		add(b.frame(unix.IPPROTO_TCP, far4, func(f []byte) { binary.BigEndian.PutUint16(f[12:], p) }))
	}
	b.inject(frames...)
	for _, network := range networks { // what comes behind all of them
		w.serves(w.beyond, network, net.JoinHostPort(far4, "80"))
		w.serves(w.beyond, network, net.JoinHostPort(far6, "80"))
		b.reaches(network, net.JoinHostPort(far4, "80"))
		b.reaches(network, net.JoinHostPort(far6, "80"))
	}
	for _, p := range outside.packets() {
		allowed := p.dst.Port() == 80 && (p.dst.Addr().String() == far4 || p.dst.Addr().String() == far6)
		if !allowed {
			t.Errorf("protocol %d got out to %s", p.protocol, p.dst)
		}
	}
	if got := beside.packets(); len(got) > 0 {
		t.Errorf("the neighbour saw %v", got)
	}
	n, err := b.counters()
	if err != nil || n.SentPackets < uint64(len(frames)) || n.Malformed < 500 {
		t.Errorf("of %d frames it counted %+v, %v", len(frames), n, err)
	}
}

// E22: a link that nobody attached is dark, and so is one whose policy is not set.
func TestE22_DarkFromBirth(t *testing.T) {
	w := newWorld(t)
	w.start()
	outside := w.sink(w.beyond, "eth")
	b := w.link(0)
	for _, dst := range []string{far4, far6, "10.77.0.1", "fd77::1"} {
		b.inject(b.frame(unix.IPPROTO_TCP, dst, nil), b.frame(unix.IPPROTO_UDP, dst, nil))
		c, err := b.dialWithin("tcp", net.JoinHostPort(dst, "80"), 200*time.Millisecond)
		if err == nil {
			c.Close()
			t.Errorf("%s answers to a link that nobody attached", dst)
		}
	}
	w.must(w.client.Attach(t.Context(), b.slot))
	b.refused("tcp", net.JoinHostPort(far4, "80"))
	b.refused("udp", net.JoinHostPort(far6, "80"))
	for _, server := range []string{"1.2.3.4:53", "[2606:aaaa::99]:53"} { // of a free slot it is known that it has no names
		if m, err := b.ask(server, "example.com.", dns.TypeA); err != nil || m.Rcode != dns.RcodeRefused {
			t.Errorf("%s answers %v, %v", server, m, err)
		}
	}
	if got := outside.packets(); len(got) > 0 {
		t.Errorf("%v got out", got)
	}
}

// Nobody begins to talk to a sandbox: not the data plane, not the host, and nobody behind
// it, though they have a route; what it asked for itself comes in.
func TestE17_NobodyReachesIntoASandbox(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	b := w.sandbox()
	b.policy(`{"mode":"allow-all"}`)
	w.serves(b.ns, "tcp", net.JoinHostPort(b.slot.IPv4.String(), "8080"))
	w.serves(b.ns, "tcp", net.JoinHostPort(b.slot.IPv6.String(), "8080"))
	w.routes(w.handle(w.host), netd.UplinkName(w.cfg.NetNS), w.handle(w.inside), "up0")
	w.routes(w.handle(w.beyond), "eth", w.handle(w.host), "wan")
	inside := w.sink(b.ns, "eth0")
	for from, ns := range map[string]netns.NsHandle{"the data plane": w.inside, "the host": w.host, "beyond": w.beyond} {
		for _, a := range []netip.Addr{b.slot.IPv4, b.slot.IPv6} {
			at := netip.AddrPortFrom(a, 8080).String()
			w.must(in(ns, func() error {
				if c, err := net.DialTimeout("tcp", at, 300*time.Millisecond); err == nil {
					c.Close()
					t.Errorf("%s reaches %s", from, at)
				}
				c, err := net.Dial("udp", at)
				if err != nil {
					return err
				}
				defer c.Close()
				_, _ = c.Write([]byte("hello")) // which may be refused here already
				return nil
			}))
		}
	}
	for _, p := range inside.packets() {
		t.Errorf("protocol %d came in to %s", p.protocol, p.dst)
	}
	b.reaches("tcp", net.JoinHostPort(far4, "80"))
	b.reaches("udp", net.JoinHostPort(far6, "80"))
}

// routes sends what is for sandboxes from one end of a link to the other.
func (w *world) routes(h *netlink.Handle, link string, other *netlink.Handle, peer string) {
	w.t.Helper()
	l, err := h.LinkByName(link)
	w.must(err)
	p, err := other.LinkByName(peer)
	w.must(err)
	addrs, err := other.AddrList(p, unix.AF_UNSPEC)
	w.must(err)
	for _, a := range addrs {
		of, bits := w.cfg.SandboxCIDR, 32
		if a.IP.To4() == nil {
			of, bits = w.cfg.SandboxCIDR6, 128
		}
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		w.must(h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: a.IP, Dst: &net.IPNet{IP: of.Addr().AsSlice(), Mask: net.CIDRMask(of.Bits(), bits)}}))
	}
}

// E12: without a resolver no question leaves, to whomever it is asked.
func TestE12_DNSLeavesOnlyThroughNetd(t *testing.T) {
	w := newWorld(t)
	w.start()
	b := w.sandbox()
	b.policy(`{"mode":"allow-all"}`)
	outside := w.sink(w.beyond, "eth")
	for _, network := range networks {
		for _, at := range both("53", far4, far6) {
			w.serves(w.beyond, network, at)
			c, err := b.dial(network, at)
			if err != nil {
				continue
			}
			w.must(c.SetDeadline(time.Now().Add(300 * time.Millisecond)))
			_, _ = c.Write([]byte("is anybody there?"))
			buf := make([]byte, 100)
			if n, _ := c.Read(buf); string(buf[:min(n, 4)]) == "echo" {
				t.Errorf("%s to %s went past netd", network, at)
			}
			c.Close()
		}
	}
	for _, p := range outside.packets() {
		if p.dst.Port() == 53 {
			t.Errorf("a question got out to %s", p.dst)
		}
	}
}

// E21: a tightened policy cuts what is under way, and leaves the rest alone.
func TestE21_ATightenedPolicyCuts(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	b := w.sandbox()
	b.policy(`{"mode":"allow-all"}`)
	connect := func(at string) net.Conn {
		c, err := b.dial("tcp", at)
		w.must(err)
		t.Cleanup(func() { c.Close() })
		if got, err := exchange(c, "one"); got != "echo one" {
			t.Fatalf("%s: %q, %v", at, got, err)
		}
		return c
	}
	var cut, kept []net.Conn
	for _, at := range both("80", far4, far6) {
		cut = append(cut, connect(at))
	}
	for _, at := range both("80", other4, other6) {
		kept = append(kept, connect(at))
	}
	b.policy(`{"mode":"allow-all","egress":{"deniedCidrs":["93.184.0.2/32","2606:aaaa::2/128"]}}`)
	for _, c := range cut {
		if got, err := exchange(c, "two"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
			t.Errorf("%s: %q, %v; want it reset", c.RemoteAddr(), got, err)
		}
	}
	for _, c := range kept {
		if got, err := exchange(c, "two"); got != "echo two" {
			t.Errorf("%s: %q, %v", c.RemoteAddr(), got, err)
		}
	}
}

// X31: kill -9 leaves what the kernel judges as it was and opens nothing; the next
// process takes over without a word from noded, and then takes words again.
func TestX31_KilledNetd(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	b := w.sandbox()
	policy := `{"mode":"block-all","egress":{"trafficRules":[
		{"name":"far","action":"allow","cidrs":["93.184.0.2/32","2606:aaaa::2/128"],"ports":[{"port":80}]},
		{"name":"site","action":"allow","domains":["example.com"],"ports":[{"port":443}]}]}}`
	b.policy(policy)
	var long []net.Conn
	for _, at := range both("80", far4, far6) {
		c, err := b.dial("tcp", at)
		w.must(err)
		defer c.Close()
		long = append(long, c)
	}
	outside := w.sink(w.beyond, "eth")
	w.kill(w.process)
	judged := func(when string) {
		t.Helper()
		for i, c := range long { // which the kernel carries
			if got, err := exchange(c, "x"); got != "echo x" {
				t.Errorf("%s: open connection %d: %q, %v", when, i, got, err)
			}
		}
		for _, at := range both("80", far4, far6) {
			b.reaches("tcp", at)
			b.refused("udp", at)
		}
		for _, at := range both("80", other4, other6) {
			b.refused("tcp", at)
		}
	}
	judged("without netd")
	for _, at := range both("443", other4, other6) {
		if c, err := b.dialWithin("tcp", at, 300*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("%s: what the proxy has to see passed without one", at)
		}
	}
	dark := w.link(0)
	dark.inject(dark.frame(unix.IPPROTO_TCP, other4, nil))

	began := time.Now()
	w.start()
	t.Logf("netd took over in %v", time.Since(began))
	judged("with the next netd")
	w.must(w.client.Attach(t.Context(), b.slot))
	judged("attached again")
	b.policy(policy)
	judged("with the same policy again")
	b.policy(`{"mode":"block-all"}`)
	b.refused("tcp", net.JoinHostPort(far4, "80"))
	for _, p := range outside.packets() {
		if p.dst.Addr().String() == other4 || p.dst.Addr().String() == other6 {
			t.Errorf("protocol %d got out to %s", p.protocol, p.dst)
		}
	}
}

// X31: without its pinned tables a netd knows nothing, and nothing passes until it is
// told again.
func TestX31_PinsAreGone(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	b := w.sandbox()
	b.policy(`{"mode":"allow-all"}`)
	b.reaches("tcp", net.JoinHostPort(far4, "80"))
	w.kill(w.process)
	w.must(unix.Unmount(filepath.Join(w.cfg.RunDir, "bpf"), unix.MNT_DETACH))
	w.start()
	if c, err := b.dialWithin("tcp", net.JoinHostPort(far4, "80"), 300*time.Millisecond); err == nil {
		c.Close()
		t.Error("a sandbox that netd does not know got out")
	}
	w.must(w.client.Attach(t.Context(), b.slot))
	b.refused("tcp", net.JoinHostPort(far6, "80"))
	b.policy(`{"mode":"allow-all"}`)
	b.reaches("tcp", net.JoinHostPort(far4, "80"))
	b.reaches("tcp", net.JoinHostPort(far6, "80"))
}

// Many sandboxes are told of one after the other.
func TestManyLinks(t *testing.T) {
	w := newWorld(t)
	w.start()
	const n = 200
	h := w.handle(w.inside)
	began := time.Now()
	slots := make([]netdapi.Slot, n)
	for i := range slots {
		slots[i] = w.bare(h, 1000+i)
	}
	made := time.Now()
	for _, s := range slots {
		w.must(w.client.Attach(t.Context(), s))
		w.must(w.client.SetPolicy(t.Context(), netdapi.Policy{ID: s.ID, Generation: 1, Team: "team"}))
	}
	told := time.Since(made)
	t.Logf("a link takes %v, to tell netd of it %v", made.Sub(began)/n, told/n)
	known, err := w.client.List(t.Context())
	if err != nil || len(known) != n {
		t.Fatalf("%d known, %v", len(known), err)
	}
	for _, s := range slots {
		w.must(w.client.Detach(t.Context(), s.ID, 0))
	}
	if known, err := w.client.List(t.Context()); err != nil || len(known) != 0 {
		t.Errorf("%d left, %v", len(known), err)
	}
}

// A netd that is told to stop leaves what its sandboxes need, and without sandboxes
// nothing.
func TestAStopLeavesNothingBehind(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	b := w.sandbox()
	b.policy(`{"mode":"allow-all"}`)
	stop := func() {
		w.must(w.process.Process.Signal(syscall.SIGTERM))
		w.must(w.process.Wait())
	}
	stop()
	b.reaches("tcp", net.JoinHostPort(far4, "80"))
	w.start()
	w.must(w.client.Attach(t.Context(), b.slot)) // it knows nobody by name before it is told
	w.must(w.client.Detach(t.Context(), b.slot.ID, 0))
	stop()
	for ns, gone := range map[netns.NsHandle]string{w.inside: "hold0 up0", w.host: netd.UplinkName(w.cfg.NetNS)} {
		links, err := w.handle(ns).LinkList()
		w.must(err)
		for _, l := range links {
			if strings.Contains(gone, l.Attrs().Name) && l.Attrs().Name != "lo" {
				t.Errorf("link %s is left", l.Attrs().Name)
			}
		}
	}
	var st unix.Statfs_t
	w.must(unix.Statfs(filepath.Join(w.cfg.RunDir, "bpf"), &st))
	if st.Type == unix.BPF_FS_MAGIC {
		t.Error("the bpffs is left")
	}
}

// X46: after a reboot's worth of restarts the kernel may not have ended the namespace of
// before, and the host's link leads into that.
func TestX46_ANamespaceThatIsSlowToEnd(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	w.kill(w.process)
	w.inside = w0(t) // the one of before is held open
	w.must(unix.Unmount(w.cfg.NetNS, unix.MNT_DETACH))
	w.must(unix.Mount(fmt.Sprintf("/proc/self/fd/%d", w.inside), w.cfg.NetNS, "", unix.MS_BIND, ""))
	w.start()
	b := w.sandbox()
	b.policy(`{"mode":"allow-all"}`)
	for _, at := range both("80", far4, far6) {
		b.reaches("tcp", at)
	}
}

// E23: whoever gets an address and a link after another starts with nothing of his.
func TestE23_AnAddressUsedAgain(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	first := w.sandbox()
	first.policy(`{"mode":"allow-all"}`)
	for _, at := range both("80", far4, far6) {
		first.reaches("tcp", at)
	}
	w.must(w.client.Detach(t.Context(), first.slot.ID, 0))
	h := w.handle(w.inside)
	link, err := h.LinkByIndex(first.slot.Ifindex)
	w.must(err)
	w.must(h.LinkDel(link))

	second := w.link(w.sandboxes)
	if second.slot.IPv4 != first.slot.IPv4 || second.slot.Ifindex != first.slot.Ifindex {
		t.Fatal("it is not the same place")
	}
	outside := w.sink(w.beyond, "eth")
	for _, to := range []string{far4, far6} {
		second.inject(second.frame(unix.IPPROTO_TCP, to, nil))
	}
	w.must(w.client.Attach(t.Context(), second.slot))
	for _, at := range both("80", far4, far6) {
		second.refused("tcp", at)
	}
	if got := outside.packets(); len(got) > 0 {
		t.Errorf("%v got out", got)
	}
	if err := w.client.SetPolicy(t.Context(), netdapi.Policy{ID: first.slot.ID, Generation: 1}); err == nil {
		t.Error("a policy of the sandbox before was taken")
	}
	second.policy(`{"mode":"allow-all"}`)
	for _, at := range both("80", far4, far6) {
		second.reaches("tcp", at)
	}
}

func TestR2_StaleWordsAreRefused(t *testing.T) {
	w := newWorld(t)
	w.start()
	b := w.sandbox()
	next := b.slot
	next.Generation = 2
	w.must(w.client.Attach(t.Context(), next))
	if err := w.client.Attach(t.Context(), b.slot); err == nil {
		t.Error("an older generation was attached")
	}
	if err := w.client.SetPolicy(t.Context(), netdapi.Policy{ID: b.slot.ID, Generation: 1}); err == nil {
		t.Error("an older generation's policy was taken")
	}
	w.must(w.client.Detach(t.Context(), b.slot.ID, 1))
	if known, err := w.client.List(t.Context()); err != nil || len(known) != 1 || known[0].Generation != 2 {
		t.Errorf("known: %+v, %v", known, err)
	}
	stranger := next
	stranger.ID = w.link(0).slot.ID
	if err := w.client.Attach(t.Context(), stranger); err == nil {
		t.Error("a link of another sandbox was attached")
	}
	if err := w.client.SetPolicy(t.Context(), netdapi.Policy{ID: b.slot.ID, Generation: 2, Policy: []byte(`{"mode":"open"}`)}); err == nil {
		t.Error("a policy that is none was taken")
	}
}

func TestEventsTellOfVerdicts(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	b := w.sandbox()
	b.policy(`{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.2/32"]}}`)
	b.reaches("tcp", net.JoinHostPort(far4, "80"))
	b.refused("udp", net.JoinHostPort(other6, "80"))
	b.w.must(w.client.Detach(t.Context(), b.slot.ID, 0)) // which ends every flow
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	want := map[string]bool{
		fmt.Sprintf("allow tcp %s:80 %s ", far4, b.slot.IPv4):        true,
		fmt.Sprintf("deny udp %s:80 %s policy", other6, b.slot.IPv6): true,
	}
	var mark netdapi.Mark
	for len(want) > 0 {
		batch, err := w.client.TakeEvents(ctx, mark)
		if err != nil {
			t.Fatalf("not told of %v: %v", want, err)
		}
		mark = batch.Mark
		for _, e := range batch.Events {
			if e.SandboxID != string(b.slot.ID) || e.TeamID != "team" || e.FlowID == "" || time.Since(e.Timestamp) > deadline {
				t.Errorf("told %+v", e)
			}
			if e.Action == "allow" && (e.EgressBytes == 0 || e.IngressBytes == 0) {
				t.Errorf("a flow without sizes: %+v", e)
			}
			delete(want, fmt.Sprintf("%s %s %s:%d %s %s", e.Action, e.Transport, e.DestIP, e.DestPort, e.SrcIP, e.Reason))
		}
	}
}

func (b *box) counters() (netdapi.Counters, error) {
	all, err := b.w.client.Counters(context.Background())
	return all[b.slot.ID], err
}
