package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"s0.run/internal/policy"
)

// What a program of the kernel's answers.
const (
	passes    = 0
	shot      = 2
	redirects = 7
)

// leaves runs a frame through from_sandbox and says what becomes of it.
func leaves(t testing.TB, k *Kernel, f frame) uint32 {
	t.Helper()
	b := f.bytes()
	ret, err := k.obj.FromSandbox.Run(&ebpf.RunOptions{Data: b, DataOut: make([]byte, len(b)+256), Context: skb{}})
	if err != nil {
		t.Fatal(err)
	}
	return ret
}

// returns runs a frame through from_uplink.
func returns(t *testing.T, k *Kernel, name string, b []byte, want uint32) {
	t.Helper()
	out := make([]byte, len(b)+256)
	ret, err := k.obj.FromUplink.Run(&ebpf.RunOptions{Data: b, DataOut: out, Context: skb{}})
	if err != nil {
		t.Fatal(err)
	}
	if ret != want {
		t.Errorf("%s: answered %d, want %d", name, ret, want)
	}
	if ret == redirects && (!bytes.Equal(out[:6], sandboxMAC) || !bytes.Equal(out[6:12], hostMAC)) {
		t.Errorf("%s: sent from %x to %x", name, out[6:12], out[:6])
	}
}

// answer is what comes back for a packet.
func answer(f frame) frame {
	return f.with(func(b *frame) {
		b.src, b.dst, b.sport, b.dport, b.flags = f.dst, addr4, f.dport, f.sport, 0x12
		if f.dst.Is6() {
			b.dst = addr6
		}
		b.srcMAC, b.dstMAC = hostMAC, hostMAC // of the wire to the host
	})
}

// about is an ICMP error of a router's that quotes a packet.
func about(f frame, kind uint8, change func(quoted []byte)) []byte {
	quoted := f.bytes()[14:]
	e := answer(f).with(func(e *frame) {
		e.protocol, e.icmp, e.src, e.payload = unix.IPPROTO_ICMP, kind, netip.MustParseAddr("198.51.100.7"), len(quoted)
		if f.dst.Is6() {
			e.protocol, e.src = unix.IPPROTO_ICMPV6, netip.MustParseAddr("2606:cccc::7")
		}
	})
	if change != nil {
		change(quoted)
	}
	b := e.bytes()
	copy(b[len(b)-12-len(quoted):], quoted) // behind the eight bytes that every error begins with
	return b
}

var direct = []frame{tcp("93.184.0.2", 443), udp("93.184.0.2", 9), tcp("2606:bbbb::1", 443), udp("2606:bbbb::1", 9)}

// Into a sandbox comes what belongs to a flow that left straight, and errors about its
// packets: nothing else that is sent to its own address.
func TestE14_E17_WhatComesBackBelongsToAFlow(t *testing.T) {
	needKernel(t)
	for _, peerCounted := range []bool{true, false} {
		whatComesBack(t, openAs(t, pins(t), peerCounted))
	}
}

func whatComesBack(t *testing.T, k *Kernel) {
	attach(t, k, 1)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	if err := k.SetUplink(loopback); err != nil {
		t.Fatal(err)
	}
	for _, f := range direct {
		f.sport = 40000
		back := answer(f)
		tooBig := map[bool]uint8{false: 3, true: 2}[f.dst.Is6()]
		returns(t, k, "before anything left", back.bytes(), shot)
		returns(t, k, "an error before anything left", about(f, tooBig, nil), shot)
		if got := leaves(t, k, f); got != redirects {
			t.Fatalf("%v leaves: %d", f.dst, got)
		}
		returns(t, k, "an answer", back.bytes(), redirects)
		returns(t, k, "an error", about(f, tooBig, nil), redirects)
		for name, b := range map[string][]byte{
			"another port of theirs":   back.with(func(b *frame) { b.sport++ }).bytes(),
			"another port of ours":     back.with(func(b *frame) { b.dport++ }).bytes(),
			"somebody else":            back.with(func(b *frame) { b.src = b.src.Next() }).bytes(),
			"another protocol":         back.with(func(b *frame) { b.protocol ^= unix.IPPROTO_TCP ^ unix.IPPROTO_UDP }).bytes(),
			"another sandbox":          back.with(func(b *frame) { b.dst = b.dst.Next() }).bytes(),
			"cut off":                  back.with(func(b *frame) { b.short = 18 }).bytes(),
			"no error":                 about(f, map[bool]uint8{false: 8, true: 128}[f.dst.Is6()], nil),
			"a redirect":               about(f, map[bool]uint8{false: 5, true: 137}[f.dst.Is6()], nil),
			"about another port":       about(f.with(func(f *frame) { f.sport++ }), tooBig, nil),
			"about another sandbox's":  about(f, tooBig, func(q []byte) { q[map[bool]int{false: 15, true: 23}[f.dst.Is6()]]++ }),
			"about what is no flow":    about(f, tooBig, func(q []byte) { q[map[bool]int{false: 9, true: 6}[f.dst.Is6()]] = unix.IPPROTO_GRE }),
			"a protocol without ports": back.with(func(b *frame) { b.protocol = unix.IPPROTO_GRE }).bytes(),
		} {
			returns(t, k, name, b, shot)
		}
		returns(t, k, "for netd", back.with(func(b *frame) {
			b.dst = netip.MustParseAddr(map[bool]string{false: "10.213.0.2", true: "fd73::2"}[f.dst.Is6()])
		}).bytes(), passes)
	}
	rest := answer(direct[1]).with(func(b *frame) { b.fragment = 100 })
	returns(t, k, "the rest of a packet", rest.bytes(), redirects)
	returns(t, k, "the rest of somebody else's", rest.with(func(b *frame) { b.dst = b.dst.Next() }).bytes(), shot)
	returns(t, k, "ARP", answer(direct[0]).with(func(b *frame) { b.ethertype = unix.ETH_P_ARP }).bytes(), passes)
}

// What goes past the host's end of a link is judged, limited and counted before it does; what
// goes through it, there.
func TestE21_WhatPassesTheLinkIsJudgedBefore(t *testing.T) {
	needKernel(t)
	for _, past := range []bool{true, false} {
		k := openAs(t, pins(t), past)
		serial := attach(t, k, 1)
		if err := k.SetUplink(loopback); err != nil {
			t.Fatal(err)
		}
		refused := map[bool]uint32{true: shot, false: redirects}[past]
		var want Counters // of what came in
		counted := func(what string) {
			t.Helper()
			got, err := k.Counters(serial)
			if !past {
				want = Counters{}
			}
			if err != nil || got.ReceivedPackets != want.ReceivedPackets || got.ReceivedBytes != want.ReceivedBytes || got.Denied != want.Denied || got.Throttled != want.Throttled {
				t.Errorf("past the link: %v: %s: counted %+v (%v), want %+v", past, what, got, err, want)
			}
		}
		for _, f := range direct {
			f.sport = 40000
			setPolicy(t, k, `{"mode":"allow-all"}`)
			leaves(t, k, f)
			back := answer(f).with(func(b *frame) { b.payload = 300 }).bytes()
			others := [][]byte{about(f, map[bool]uint8{false: 3, true: 2}[f.dst.Is6()], nil)}
			if f.dst.Is4() {
				others = append(others, answer(f).with(func(b *frame) { b.fragment = 100 }).bytes())
			}
			for _, b := range append(others, back, back) {
				returns(t, k, "an answer", b, redirects)
				want.ReceivedPackets++
				want.ReceivedBytes += uint64(len(b))
			}
			counted("answers")
			if flows := endAll(t, k); past && (len(flows) != 1 || flows[0].Received != uint64(2*len(back))) {
				t.Errorf("told %+v of answers of %d bytes", flows, 2*len(back))
			}
			leaves(t, k, f)
			setPolicy(t, k, `{"mode":"block-all"}`)
			if f.protocol == unix.IPPROTO_UDP {
				returns(t, k, "of whom the policy has closed", back, refused)
				want.Denied++
				counted("what the policy closed")
			}
			endAll(t, k)
		}
	}
}

// The bandwidth of what comes in holds on whichever way it does.
func TestBandwidthOfWhatComesBack(t *testing.T) {
	needKernel(t)
	k := openAs(t, pins(t), true)
	serial := attach(t, k, 1)
	if err := k.SetUplink(loopback); err != nil {
		t.Fatal(err)
	}
	c, err := policy.Compile(mustParse(t, `{"mode":"allow-all"}`), fixed)
	if err != nil {
		t.Fatal(err)
	}
	f := direct[0].with(func(f *frame) { f.sport = 40000 })
	slow := Bandwidth{Received: Rate{Bytes: 1}}
	for _, limits := range []Limits{{Own: slow}, {Team: "t", Shared: slow}} {
		if err := k.SetPolicy(serial, c, limits); err != nil {
			t.Fatal(err)
		}
		leaves(t, k, f)
		back := answer(f).with(func(b *frame) { b.payload = 1400 }).bytes()
		most := minBurst / len(back)
		for range most {
			returns(t, k, "within the burst", back, redirects)
		}
		returns(t, k, "beyond it", back, shot)
		if receive(t, k, back) {
			t.Error("the link has a bandwidth of its own")
		}
		if n, err := k.Counters(serial); err != nil || n.Throttled == 0 || n.ReceivedPackets%uint64(most) != 0 {
			t.Errorf("counted %+v, %v", n, err)
		}
	}
}

// A flow goes the way on which it began; one that has ended, and a sandbox that has, get
// nothing back.
func TestE23_AFlowKeepsItsWay(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 1)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	for _, f := range direct {
		f.sport = 40000
		check(t, k, "no way out", f, MarkAllow)
		if err := k.SetUplink(loopback); err != nil {
			t.Fatal(err)
		}
		check(t, k, "a flow of before", f, MarkAllow)
		returns(t, k, "the answer of a flow of before", answer(f).bytes(), shot)
		next := f.with(func(f *frame) { f.sport++ })
		if got := leaves(t, k, next); got != redirects {
			t.Errorf("%v leaves: %d", f.dst, got)
		}
		if err := k.SetUplink(0); err != nil {
			t.Fatal(err)
		}
		check(t, k, "the way out is gone", next, MarkAllow)
	}
	if err := k.Detach(serial); err != nil {
		t.Fatal(err)
	}
	returns(t, k, "a sandbox that has ended", answer(direct[0].with(func(f *frame) { f.sport = 40001 })).bytes(), shot)
	attach(t, k, 2)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	for _, f := range direct {
		returns(t, k, "its successor", answer(f.with(func(f *frame) { f.sport = 40001 })).bytes(), shot)
	}
}

// An address leads to the link that had it last, whatever ends afterwards, and a process
// that takes over finds what an earlier one had not come to.
func TestE23_AnAddressLeadsToOneLink(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	leads := func(k *Kernel, want int) {
		t.Helper()
		for _, ip := range []netip.Addr{addr4, addr6} {
			var at uint32
			if err := k.obj.Addresses.Lookup(netdAddress{Ip: ip.As16()}, &at); want == 0 && err == nil || want != 0 && (err != nil || at != uint32(want)) {
				t.Errorf("%s leads to %d, %v; want %d", ip, at, err, want)
			}
		}
	}
	at := func(ifindex int, owner uint64) uint32 {
		serial, err := k.Attach(Place{Ifindex: ifindex, Owner: owner, IPv4: addr4, IPv6: addr6, MAC: sandboxMAC})
		if err != nil {
			t.Fatal(err)
		}
		return serial
	}
	first := at(1000, 1)
	leads(k, 1000)
	second := at(1001, 2)
	if err := k.Detach(first); err != nil {
		t.Fatal(err)
	}
	leads(k, 1001)
	for _, ip := range []netip.Addr{addr4, addr6} {
		if err := k.obj.Addresses.Delete(netdAddress{Ip: ip.As16()}); err != nil {
			t.Fatal(err)
		}
	}
	stale := netdAddress{Ip: addr6.Next().As16()}
	if err := k.obj.Addresses.Put(stale, uint32(1000)); err != nil {
		t.Fatal(err)
	}
	k.Close()
	k = open(t, dir)
	leads(k, 1001)
	var ifindex uint32
	if err := k.obj.Addresses.Lookup(stale, &ifindex); err == nil {
		t.Error("an address of nobody's leads somewhere")
	}
	if err := k.Detach(second); err != nil {
		t.Fatal(err)
	}
	leads(k, 0)
}
