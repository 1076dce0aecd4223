package bpf

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"s0.run/internal/policy"
)

// Frames of the tests seem to come through the loopback device.
const loopback = 1

var (
	hostMAC    = net.HardwareAddr{2, 0x73, 0, 0, 0, 1}
	sandboxMAC = net.HardwareAddr{2, 0x73, 10, 77, 0, 2}
	addr4      = netip.MustParseAddr("10.77.0.2")
	addr6      = netip.MustParseAddr("fd77::2")
	config     = Config{Net4: netip.MustParsePrefix("10.77.0.0/16"), Net6: netip.MustParsePrefix("fd77::/64"), HostMAC: hostMAC}
)

// needKernel skips what only root on a real kernel can do.
func needKernel(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
}

// pins mounts a bpffs for one test.
func pins(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return filepath.Join(dir, "pins")
}

func open(t testing.TB, dir string) *Kernel {
	t.Helper()
	peerCounted, err := countsPeers()
	if err != nil {
		t.Fatal(err)
	}
	return openAs(t, dir, peerCounted)
}

// openAs opens as on a kernel that counts at a link's other end what is moved there, or on one
// that does not.
func openAs(t testing.TB, dir string, peerCounted bool) *Kernel {
	t.Helper()
	cfg := config
	cfg.PinDir = dir
	k, err := openOn(cfg, peerCounted)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func attach(t testing.TB, k *Kernel, owner uint64) uint32 {
	t.Helper()
	serial, err := k.Attach(Place{Ifindex: loopback, Owner: owner, IPv4: addr4, IPv6: addr6, MAC: sandboxMAC})
	if err != nil {
		t.Fatal(err)
	}
	return serial
}

// learn has an address learnt for the policy in force.
func (k *Kernel) learn(serial uint32, ip netip.Addr, slots uint64, ttl time.Duration) error {
	return k.Learn(Learnt{Serial: serial, Naming: k.links[loopback].Naming, IP: ip, Slots: slots, TTL: ttl})
}

var fixed = policy.Fixed{Denied: []netip.Prefix{
	netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64"), netip.MustParsePrefix("93.184.0.1/32"), netip.MustParsePrefix("2606:aaaa::1/128"),
}}

func setPolicy(t testing.TB, k *Kernel, text string) {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c, err := policy.Compile(p, fixed)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.SetPolicy(k.links[loopback].Serial, c, Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := k.SetAlways(fixed.Always()); err != nil {
		t.Fatal(err)
	}
}

// A frame is built field by field, right or wrong.
type frame struct {
	srcMAC, dstMAC net.HardwareAddr
	ethertype      uint16
	src, dst       netip.Addr
	protocol       uint8
	sport, dport   uint16
	flags          uint8 // TCP's
	icmp           uint8
	fragment       uint16
	ihl            uint8
	short          int // bytes cut off the end
	payload        int
}

func tcp(dst string, port uint16) frame {
	return frame{dst: netip.MustParseAddr(dst), protocol: unix.IPPROTO_TCP, dport: port, flags: 2}
}

func udp(dst string, port uint16) frame {
	return frame{dst: netip.MustParseAddr(dst), protocol: unix.IPPROTO_UDP, dport: port}
}

func raw(dst string, protocol uint8) frame {
	return frame{dst: netip.MustParseAddr(dst), protocol: protocol}
}

func icmp(dst string, kind uint8) frame {
	f := raw(dst, unix.IPPROTO_ICMP)
	if f.dst.Is6() {
		f.protocol = unix.IPPROTO_ICMPV6
	}
	f.icmp = kind
	return f
}

func (f frame) with(change func(*frame)) frame {
	change(&f)
	return f
}

func (f frame) bytes() []byte {
	if f.srcMAC == nil {
		f.srcMAC = sandboxMAC
	}
	if f.dstMAC == nil {
		f.dstMAC = hostMAC
	}
	if f.ihl == 0 {
		f.ihl = 5
	}
	if !f.src.IsValid() {
		f.src = addr4
		if f.dst.Is6() {
			f.src = addr6
		}
	}
	if f.ethertype == 0 {
		f.ethertype = unix.ETH_P_IP
		if f.dst.Is6() {
			f.ethertype = unix.ETH_P_IPV6
		}
	}
	b := append(append([]byte{}, f.dstMAC...), f.srcMAC...)
	b = binary.BigEndian.AppendUint16(b, f.ethertype)
	b = append(b, f.network()...)
	b = append(b, f.transport()...)
	return b[:len(b)-f.short]
}

func (f frame) network() []byte {
	rest := len(f.transport())
	if f.dst.Is6() {
		h := make([]byte, 8, 40)
		h[0], h[6], h[7] = 0x60, f.protocol, 64
		binary.BigEndian.PutUint16(h[4:], uint16(rest))
		return append(append(h, f.src.AsSlice()...), f.dst.AsSlice()...)
	}
	h := make([]byte, 12, 60)
	h[0], h[8], h[9] = 0x40|f.ihl, 64, f.protocol
	binary.BigEndian.PutUint16(h[2:], uint16(int(f.ihl)*4+rest))
	binary.BigEndian.PutUint16(h[6:], f.fragment)
	h = append(append(h, f.src.AsSlice()...), f.dst.AsSlice()...)
	return append(h, make([]byte, int(f.ihl)*4-20)...)
}

func (f frame) transport() []byte {
	b := make([]byte, 20+f.payload)
	switch f.protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		b[0] = f.icmp
		return b
	}
	binary.BigEndian.PutUint16(b, cmp.Or(f.sport, 40000))
	binary.BigEndian.PutUint16(b[2:], f.dport)
	b[12], b[13] = 0x50, f.flags
	return b
}

// context of a run, as struct __sk_buff begins.
type skb struct {
	_    [2]uint32
	Mark uint32
	_    [45]uint32
}

// send runs a frame through from_sandbox: its mark, or 0 when it was dropped.
func send(t testing.TB, k *Kernel, frame []byte) uint32 {
	t.Helper()
	var out skb
	ret, err := k.obj.FromSandbox.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: skb{Mark: 0}, ContextOut: &out})
	if err != nil {
		t.Fatal(err)
	}
	const shot = 2
	if ret == shot {
		return 0
	}
	if ret != 0 {
		t.Fatalf("the program answered %d", ret)
	}
	return out.Mark
}

func check(t *testing.T, k *Kernel, name string, f frame, want uint32) {
	t.Helper()
	if got := send(t, k, f.bytes()); got != want {
		t.Errorf("%s: mark %#x, want %#x", name, got, want)
	}
}

const dropped = 0

func TestE22_NothingPassesWithoutAPolicy(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	check(t, k, "of a link that nobody attached", tcp("93.184.0.2", 443), dropped)
	attach(t, k, 1)
	check(t, k, "before its policy", tcp("93.184.0.2", 443), MarkDeny)
	check(t, k, "before its policy, IPv6", udp("2606:aaaa::2", 443), MarkDeny)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	check(t, k, "with a policy", tcp("93.184.0.2", 443), MarkAllow)
	check(t, k, "with a policy, IPv6", udp("2606:aaaa::2", 443), MarkAllow)
	if err := k.Detach(k.links[loopback].Serial); err != nil {
		t.Fatal(err)
	}
	check(t, k, "after its end", tcp("93.184.0.2", 443), dropped)
}

func TestE01_E02_E03_E17_AlwaysDenied(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	attach(t, k, 1)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	for _, dst := range []string{
		"169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", // E01
		"10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.0.1", "224.0.0.1", "0.0.0.1", "240.0.0.1", "255.255.255.255", "93.184.0.1", // E02
		"::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2001::1", "fd12::1", "ff02::1", "fe80::1", "::1", "::", "2606:aaaa::1", // E03
		"10.77.0.3", "10.77.0.1", "fd77::3", "fd77::1", // E17
	} {
		for _, port := range []uint16{80, 443, 15001, 22} {
			check(t, k, dst, tcp(dst, port), MarkDeny)
			check(t, k, dst, udp(dst, port), MarkDeny)
		}
	}
}

func TestE02_PrivateOpensOnlyByName(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	attach(t, k, 1)
	setPolicy(t, k, `{"mode":"block-all","egress":{"trafficRules":[
		{"name":"all","action":"allow","cidrs":["0.0.0.0/0","::/0"]},
		{"name":"lan","action":"allow","cidrs":["10.1.0.0/16","fd12::/32","169.254.0.0/16","10.77.0.0/16"],"ports":[{"port":5432}]}]}}`)
	check(t, k, "named", tcp("10.1.2.3", 5432), MarkAllow)
	check(t, k, "named, IPv6", tcp("fd12::5", 5432), MarkAllow)
	check(t, k, "named, another port", tcp("10.1.2.3", 5433), MarkDeny)
	check(t, k, "named, UDP", udp("10.1.2.3", 5432), MarkDeny)
	check(t, k, "not named", tcp("10.2.0.1", 5432), MarkDeny)
	check(t, k, "not named, IPv6", tcp("fd13::1", 5432), MarkDeny)
	check(t, k, "never to be named", tcp("169.254.169.254", 5432), MarkDeny)
	check(t, k, "another sandbox", tcp("10.77.0.9", 5432), MarkDeny)
	check(t, k, "public", udp("93.184.0.2", 9), MarkAllow)
}

func TestE04_E13_RulesOfAnAllowList(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 1)
	setPolicy(t, k, `{"mode":"block-all","egress":{"trafficRules":[
		{"name":"hole","action":"deny","cidrs":["93.184.5.0/24","2606:aaaa:5::/48"]},
		{"name":"net","action":"allow","cidrs":["93.184.0.0/16","2606:aaaa::/32"],"ports":[{"port":8000,"endPort":8080},{"port":7000,"protocol":"udp"}]},
		{"name":"site","action":"allow","domains":["example.com"],"ports":[{"port":443},{"port":443,"protocol":"udp"}]}]}}`)
	for _, net := range []struct{ in, hole, out string }{{"93.184.0.2", "93.184.5.1", "8.8.8.8"}, {"2606:aaaa::2", "2606:aaaa:5::1", "2606:bbbb::1"}} {
		check(t, k, "first port", tcp(net.in, 8000), MarkAllow)
		check(t, k, "last port", tcp(net.in, 8080), MarkAllow)
		check(t, k, "port below", tcp(net.in, 7999), MarkDeny)
		check(t, k, "port above", tcp(net.in, 8081), MarkDeny)
		check(t, k, "TCP port by UDP", udp(net.in, 8000), MarkDeny)
		check(t, k, "UDP port", udp(net.in, 7000), MarkAllow)
		check(t, k, "UDP port by TCP", tcp(net.in, 7000), MarkDeny)
		check(t, k, "the hole", tcp(net.hole, 8000), MarkDeny)
		check(t, k, "E04: an address without a name", tcp(net.out, 8000), MarkDeny)
		check(t, k, "what may be a name's is the proxy's", tcp(net.out, 443), MarkLocal)
		check(t, k, "E13: UDP to what no name was resolved to", udp(net.out, 443), MarkDeny)
		if err := k.learn(serial, netip.MustParseAddr(net.out), 1, time.Hour); err != nil {
			t.Fatal(err)
		}
		check(t, k, "UDP to a resolved name", udp(net.out, 443), MarkAllow)
		check(t, k, "another port of it", udp(net.out, 444), MarkDeny)
		if err := k.learn(serial+1, netip.MustParseAddr(net.hole), 1, time.Hour); err != nil {
			t.Fatal(err)
		}
		check(t, k, "another sandbox's name", udp(net.hole, 443), MarkDeny)
	}
	if err := k.learn(serial, netip.MustParseAddr("8.8.4.4"), 1, -time.Second); err != nil {
		t.Fatal(err)
	}
	check(t, k, "a name whose time is over", udp("8.8.4.4", 443), MarkDeny)
	if err := k.learn(serial, netip.MustParseAddr("8.8.4.5"), 2, time.Hour); err != nil {
		t.Fatal(err)
	}
	check(t, k, "a name of another slot", udp("8.8.4.5", 443), MarkDeny)
}

func TestE12_DNSIsNetds(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	attach(t, k, 1)
	for _, text := range []string{`{"mode":"allow-all"}`, `{"mode":"block-all"}`} {
		setPolicy(t, k, text)
		for _, dst := range []string{"8.8.8.8", "10.77.0.1", "169.254.169.254", "2606:bbbb::8", "fd77::1"} {
			check(t, k, dst, udp(dst, 53), MarkLocal)
			check(t, k, dst, tcp(dst, 53), MarkLocal)
		}
	}
	check(t, k, "DNS over TLS", tcp("8.8.8.8", 853), MarkDeny)
}

func TestE14_ICMP(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	attach(t, k, 1)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	for kind := range 256 { // errors, too: they quote what they like
		check(t, k, "ICMP", icmp("93.184.0.2", uint8(kind)), dropped)
		check(t, k, "ICMPv6", icmp("2606:bbbb::1", uint8(kind)), dropped)
	}
	check(t, k, "ICMPv6 in IPv4", raw("93.184.0.2", unix.IPPROTO_ICMPV6), dropped)
	check(t, k, "ICMP in IPv6", raw("2606:bbbb::1", unix.IPPROTO_ICMP), dropped)
}

func TestE03_E15_OnlyPlainPackets(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	attach(t, k, 1)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	for p := range 256 {
		switch p {
		case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
			continue
		}
		check(t, k, "protocol of IPv4", raw("93.184.0.2", uint8(p)), dropped)
		check(t, k, "next header of IPv6", raw("2606:bbbb::1", uint8(p)), dropped)
	}
	for name, f := range map[string]frame{
		"options":               tcp("93.184.0.2", 443).with(func(f *frame) { f.ihl = 6 }),
		"most options":          udp("93.184.0.2", 443).with(func(f *frame) { f.ihl = 15 }),
		"first fragment":        tcp("93.184.0.2", 443).with(func(f *frame) { f.fragment = 0x2000 }),
		"last fragment":         udp("93.184.0.2", 443).with(func(f *frame) { f.fragment = 0x00b9 }),
		"cut TCP":               tcp("93.184.0.2", 443).with(func(f *frame) { f.short = 7 }),
		"cut UDP":               udp("93.184.0.2", 443).with(func(f *frame) { f.short = 13 }),
		"IPv6 called IPv4":      tcp("2606:bbbb::1", 443).with(func(f *frame) { f.ethertype = unix.ETH_P_IP }),
		"IPv4 called IPv6":      tcp("93.184.0.2", 443).with(func(f *frame) { f.ethertype = unix.ETH_P_IPV6; f.payload = 60 }),
		"MPLS":                  tcp("93.184.0.2", 443).with(func(f *frame) { f.ethertype = 0x8847 }),
		"VLAN":                  tcp("93.184.0.2", 443).with(func(f *frame) { f.ethertype = 0x8100 }),
		"PPPoE":                 tcp("93.184.0.2", 443).with(func(f *frame) { f.ethertype = 0x8864 }),
		"IPv4 header too short": tcp("93.184.0.2", 443).with(func(f *frame) { f.ihl = 5; f.fragment = 0x8000 | 1 }),
		"fragment with DF":      tcp("93.184.0.2", 443).with(func(f *frame) { f.fragment = 0x6000 }),
	} {
		check(t, k, name, f, dropped)
	}
	check(t, k, "don't fragment", tcp("93.184.0.2", 443).with(func(f *frame) { f.fragment = 0x4000 }), MarkAllow)
}

func TestE16_E19_NobodyElsesAddresses(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	attach(t, k, 1)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	for name, f := range map[string]frame{
		"another's IPv4":   tcp("93.184.0.2", 443).with(func(f *frame) { f.src = netip.MustParseAddr("10.77.0.3") }),
		"another's IPv6":   tcp("2606:bbbb::1", 443).with(func(f *frame) { f.src = netip.MustParseAddr("fd77::3") }),
		"a public source":  udp("93.184.0.2", 443).with(func(f *frame) { f.src = netip.MustParseAddr("8.8.8.8") }),
		"no source":        udp("255.255.255.255", 67).with(func(f *frame) { f.src = netip.MustParseAddr("0.0.0.0") }),
		"DNS, spoofed":     udp("8.8.8.8", 53).with(func(f *frame) { f.src = netip.MustParseAddr("10.77.0.3") }),
		"ICMP, spoofed":    icmp("93.184.0.2", 3).with(func(f *frame) { f.src = netip.MustParseAddr("10.77.0.3") }),
		"another's MAC":    tcp("93.184.0.2", 443).with(func(f *frame) { f.srcMAC = net.HardwareAddr{2, 0x73, 10, 77, 0, 3} }),
		"the host's MAC":   tcp("93.184.0.2", 443).with(func(f *frame) { f.srcMAC = hostMAC }),
		"to another's MAC": tcp("93.184.0.2", 443).with(func(f *frame) { f.dstMAC = net.HardwareAddr{2, 0x73, 10, 77, 0, 3} }),
		"broadcast":        udp("255.255.255.255", 67).with(func(f *frame) { f.dstMAC = net.HardwareAddr{255, 255, 255, 255, 255, 255} }),
		"multicast":        udp("ff02::1", 67).with(func(f *frame) { f.dstMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1} }),
		"ARP":              tcp("10.77.0.1", 1).with(func(f *frame) { f.ethertype = unix.ETH_P_ARP }),
		"gratuitous ARP": tcp("10.77.0.2", 1).with(func(f *frame) {
			f.ethertype = unix.ETH_P_ARP
			f.dstMAC = net.HardwareAddr{255, 255, 255, 255, 255, 255}
		}),
		"router solicit":    icmp("ff02::2", 133),
		"router advertises": icmp("ff02::1", 134).with(func(f *frame) { f.src = netip.MustParseAddr("fe80::1") }),
	} {
		check(t, k, name, f, dropped)
	}
	n, err := k.Counters(k.links[loopback].Serial)
	if err != nil || n.Malformed < 14 || n.SentPackets < 15 {
		t.Errorf("counted %+v, %v", n, err)
	}
}

// A packet that is being judged while its policy is replaced is judged by one of the two as
// a whole: by a part of one it would find what both allow denied, or what both deny allowed.
func TestPolicySwapIsAtomic(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 1)
	texts := []string{
		`{"mode":"allow-all","egress":{"deniedCidrs":["93.184.0.0/24","2606:aaaa::/64","93.185.0.2/32"]}}`,
		`{"mode":"allow-all","egress":{"deniedCidrs":["93.184.0.0/24","2606:aaaa::/64","93.185.0.3/32"]}}`,
	}
	setPolicy(t, k, texts[0])
	sent := uint64(0)
	before := counted(t, k, serial)
	during(t, func(i int) { setPolicy(t, k, texts[i%2]) }, func() {
		for _, f := range []frame{tcp("93.184.0.9", 443), udp("2606:aaaa::9", 443)} {
			sent += sendMany(t, k, f)
		}
	})
	if n := counted(t, k, serial); n.Denied-before.Denied != sent || n.Malformed != 0 {
		t.Errorf("of %d packets that no policy allows %d were denied, %d malformed", sent, n.Denied-before.Denied, n.Malformed)
	}
	before = counted(t, k, serial)
	during(t, func(i int) { setPolicy(t, k, texts[i%2]) }, func() {
		for _, f := range []frame{tcp("93.186.0.9", 443), udp("2606:bbbb::9", 443)} {
			sendMany(t, k, f)
		}
	})
	if n := counted(t, k, serial); n.Denied != before.Denied || n.Malformed != 0 {
		t.Errorf("of what every policy allows %d packets were denied, %d malformed", n.Denied-before.Denied, n.Malformed)
	}
	k.Close()
	left, err := open(t, k.cfg.PinDir).gather()
	if err != nil || len(left) != 1 {
		t.Errorf("%d generations of entries are left, want 1; %v", len(left), err)
	}
}

// A row of a link that is detached may be another link's at once: no packet is judged by it.
func TestE16_ARowIsOneLinksAtATime(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 1)
	texts := []string{`{"mode":"allow-all"}`, `{"mode":"allow-all","egress":{"deniedCidrs":["93.185.0.2/32"]}}`}
	other := Place{Owner: 9, IPv4: addr4.Next(), IPv6: addr6.Next(), MAC: hostMAC}
	during(t, func(i int) {
		setPolicy(t, k, texts[i%2]) // a row is free now if it was not changed in place
		other.Ifindex = 1000 + i%7
		n, err := k.Attach(other)
		if err := errors.Join(err, k.Detach(n)); err != nil {
			t.Error(err)
		}
	}, func() { sendMany(t, k, tcp("93.186.0.9", 443)) })
	if n := counted(t, k, serial); n.Malformed != 0 {
		t.Errorf("%d packets were judged by another link's row", n.Malformed)
	}
}

// during does something over and over while a test does another thing.
func during(t *testing.T, swap func(int), do func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				swap(i)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	do()
}

// sendMany runs a frame through from_sandbox over and over, and says how often.
func sendMany(t *testing.T, k *Kernel, f frame) uint64 {
	t.Helper()
	const rounds, each = 100, 5000
	data := f.bytes()
	for range rounds {
		if _, err := k.obj.FromSandbox.Run(&ebpf.RunOptions{Data: data, Context: skb{}, Repeat: each}); err != nil {
			t.Fatal(err)
		}
	}
	return rounds * each
}

func counted(t *testing.T, k *Kernel, serial uint32) Counters {
	t.Helper()
	n, err := k.Counters(serial)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestX31_TheNextProcessTakesOver(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	serial := attach(t, k, 7)
	checkBoth := func(what string, mark uint32, host string) {
		t.Helper()
		for _, net := range []string{"93.184.0.", "2606:aaaa::"} {
			check(t, k, what, tcp(net+host, 443), mark)
		}
	}
	setPolicy(t, k, `{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.2/32","2606:aaaa::2/128"]}}`)
	k.Close()
	k = open(t, dir)
	checkBoth("allowed before", MarkAllow, "2")
	checkBoth("denied before", MarkDeny, "3")
	if again := attach(t, k, 7); again != serial {
		t.Errorf("the same sandbox has serial %d, then %d", serial, again)
	}
	checkBoth("attached again", MarkAllow, "2")
	setPolicy(t, k, `{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.3/32","2606:aaaa::3/128"]}}`)
	checkBoth("after a change", MarkDeny, "2")
	checkBoth("after a change", MarkAllow, "3")
	if n := len(k.entries); n != 1 {
		t.Errorf("%d generations of entries are left, want 1", n)
	}
}

func TestE23_ALinkUsedAgainStartsWithNothing(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	first := attach(t, k, 7)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	both := []string{"93.184.0.2", "2606:aaaa::2"}
	for _, ip := range both {
		if err := k.learn(first, netip.MustParseAddr(ip), 1, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	k.Close()
	k = open(t, dir)
	second := attach(t, k, 8)
	if second == first {
		t.Error("two sandboxes have one serial")
	}
	for _, ip := range both {
		check(t, k, "the last owner's policy", tcp(ip, 443), MarkDeny)
	}
	setPolicy(t, k, `{"mode":"block-all","egress":{"trafficRules":[{"name":"n","action":"allow","domains":["example.com"],"ports":[{"port":9,"protocol":"udp"}]}]}}`)
	for _, ip := range both {
		check(t, k, "the last owner's names", udp(ip, 9), MarkDeny)
	}
	if n, err := k.Counters(k.links[loopback].Serial); err != nil || n.SentPackets != 4 {
		t.Errorf("the last owner's counters: %+v, %v", n, err)
	}
}

func TestAuditOnlyPassesAndTells(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := make(chan Event, 100)
	go k.Events(ctx, func(e Event) { got <- e })
	setPolicy(t, k, `{"mode":"block-all","enforcement":"audit-only"}`)
	for _, f := range []frame{tcp("93.184.0.2", 443), udp("2606:bbbb::1", 7)} {
		check(t, k, "what would be denied", f, MarkAllow)
		flows := endAll(t, k)
		if len(flows) != 1 || flows[0].Serial != serial || flows[0].Action != policy.WouldDeny || flows[0].Reason.String() != "policy" || flows[0].Dest.Addr() != f.dst {
			t.Errorf("told %+v of %v", flows, f.dst)
		}
	}
	for _, c := range []struct {
		f      frame
		mark   uint32
		reason string
	}{
		{tcp("169.254.169.254", 80), MarkDeny, "always denied"},
		{tcp("93.184.0.2", 80).with(func(f *frame) { f.fragment = 1 }), dropped, "fragment"},
	} {
		check(t, k, c.reason, c.f, c.mark)
		select {
		case e := <-got:
			if e.Serial != serial || e.Action != policy.Deny || e.Reason.String() != c.reason || e.Dest.Addr() != c.f.dst {
				t.Errorf("told %+v, want %s to %v", e, c.reason, c.f.dst)
			}
			if age := time.Since(e.Time); age < -time.Second || age > time.Minute {
				t.Errorf("told of what happened %v ago", age)
			}
		case <-ctx.Done():
			t.Fatalf("nothing was told of %s", c.reason)
		}
		check(t, k, c.reason, c.f, c.mark) // told once a second
	}
	select {
	case e := <-got:
		t.Errorf("the same was told again: %+v", e)
	default:
	}
}

func TestOneSandboxCantDrownTheOthersEvents(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	attach(t, k, 1)
	for i := range 2000 {
		send(t, k, tcp("93.184.0.2", uint16(1000+i)).bytes())
	}
	n, err := k.Counters(k.links[loopback].Serial)
	if err != nil || n.Denied != 2000 || n.LostEvents < 1000 {
		t.Errorf("counted %+v, %v: want most events dropped", n, err)
	}
}

func TestBandwidth(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	attach(t, k, 1)
	c, err := policy.Compile(policy.Default(), fixed)
	if err != nil {
		t.Fatal(err)
	}
	f := tcp("93.184.0.2", 443).with(func(f *frame) { f.payload = 1400 }).bytes()
	through := func() (n int) {
		for range 2000 {
			if send(t, k, f) == MarkAllow {
				n++
			}
		}
		return n
	}
	if n := through(); n != 0 {
		t.Fatalf("%d packets passed before the policy", n)
	}
	sent := func(bytes uint64) Bandwidth { return Bandwidth{Sent: Rate{Bytes: bytes}} }
	for _, c2 := range []struct {
		limits Limits
		most   int
	}{
		{Limits{}, 2000},
		{Limits{Own: sent(1)}, minBurst/1400 + 1},
		{Limits{Team: "t", Shared: sent(1)}, minBurst/1400 + 1},
		{Limits{Team: "t", Own: sent(1 << 40), Shared: sent(1)}, 1}, // the team's bucket stays as empty as it is
		{Limits{Team: "t", Own: Bandwidth{Received: Rate{Bytes: 1}}}, 2000},
		{Limits{Team: "t", Own: Bandwidth{Sent: Rate{Bytes: 1, Burst: 2 * minBurst}}}, 2*minBurst/1400 + 1},
		{Limits{Team: "t", Own: sent(1)}, 1}, // a change gives nothing away
	} {
		if err := k.SetPolicy(k.links[loopback].Serial, c, c2.limits); err != nil {
			t.Fatal(err)
		}
		if n := through(); n > c2.most || n < c2.most*8/10-1 {
			t.Errorf("%+v: %d packets passed, want about %d", c2.limits, n, c2.most)
		}
	}
	if err := k.Detach(k.links[loopback].Serial); err != nil {
		t.Fatal(err)
	}
	var id netdBucketId
	var b netdBucket
	if it := k.obj.Buckets.Iterate(); it.Next(&id, &b) {
		t.Errorf("bucket %+v is left", id)
	}
}

func BenchmarkJudge(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	dir := b.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		b.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	cfg := config
	cfg.PinDir = filepath.Join(dir, "p")
	k, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	if _, err := k.Attach(Place{Ifindex: loopback, Owner: 1, IPv4: addr4, IPv6: addr6, MAC: sandboxMAC}); err != nil {
		b.Fatal(err)
	}
	c, err := policy.Compile(policy.Default(), fixed)
	if err != nil {
		b.Fatal(err)
	}
	if err := k.SetPolicy(k.links[loopback].Serial, c, Limits{}); err != nil {
		b.Fatal(err)
	}
	if err := k.SetAlways(fixed.Always()); err != nil {
		b.Fatal(err)
	}
	for _, f := range []struct {
		name string
		f    frame
	}{{"tcp4", tcp("93.184.0.2", 443).with(func(f *frame) { f.flags = 0x10 })}, {"tcp6", tcp("2606:bbbb::1", 443).with(func(f *frame) { f.flags = 0x10 })}, {"denied", tcp("169.254.169.254", 80)}} {
		b.Run(f.name, func(b *testing.B) {
			data := f.f.bytes()
			_, took, err := k.obj.FromSandbox.Benchmark(data, b.N, b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/packet")
		})
	}
	b.Run("policy", func(b *testing.B) {
		for b.Loop() {
			if err := k.SetPolicy(k.links[loopback].Serial, c, Limits{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
