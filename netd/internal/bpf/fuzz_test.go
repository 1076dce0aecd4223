package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"s0.run/internal/policy"
)

// FuzzFrame holds what the program lets pass against a reader of frames that knows
// nothing but what may pass, and against the policy's own judge.
func FuzzFrame(f *testing.F) {
	needKernel(f)
	k := open(f, pins(f))
	attach(f, k, 1)
	const text = `{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.0/24","2606:aaaa::/64"],"allowedPorts":[{"port":443},{"port":9,"protocol":"udp"}]}}`
	setPolicy(f, k, text)
	parsed, err := policy.Parse([]byte(text))
	if err != nil {
		f.Fatal(err)
	}
	c, err := policy.Compile(parsed, fixed)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []frame{
		tcp("93.184.0.2", 443), udp("93.184.0.2", 9), tcp("2606:aaaa::2", 443), udp("2606:aaaa::2", 9), udp("8.8.8.8", 53), tcp("2606:bbbb::2", 53),
		icmp("93.184.0.2", 8), raw("93.184.0.2", unix.IPPROTO_GRE), raw("2606:aaaa::2", unix.IPPROTO_DSTOPTS), tcp("169.254.169.254", 443),
		tcp("93.184.0.2", 443).with(func(f *frame) { f.ihl = 6 }), tcp("93.184.0.2", 443).with(func(f *frame) { f.fragment = 0x2000 }),
	} {
		f.Add(seed.bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 14 || len(b) > 3000 {
			return // no frame
		}
		_, err := k.obj.ToSandbox.Run(&ebpf.RunOptions{Data: b})
		if errors.Is(err, unix.EINVAL) && len(b) < 14+40 {
			return // the kernel tries no program on an IP packet without room for its header
		} else if err != nil {
			t.Fatal(err)
		}
		mark := send(t, k, b)
		if mark == dropped || mark == MarkDeny {
			return
		}
		flow, ok := plainFlow(b)
		switch {
		case !ok:
			t.Fatalf("mark %#x for what is no plain packet of the sandbox", mark)
		case mark == MarkLocal && flow.Port == 53:
		case mark != MarkAllow || !c.Judge(flow).Allow || flow.Port == 53:
			t.Fatalf("mark %#x for %+v", mark, flow)
		}
	})
}

// plainFlow reads a frame that may pass.
func plainFlow(b []byte) (f policy.Flow, ok bool) {
	if !bytes.Equal(b[:6], hostMAC) || !bytes.Equal(b[6:12], sandboxMAC) {
		return f, false
	}
	rest := b[14:]
	proto, least := byte(0), 8
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		if len(rest) < 20 || rest[0] != 0x45 || binary.BigEndian.Uint16(rest[6:])&0x3fff != 0 || netip.AddrFrom4([4]byte(rest[12:16])) != addr4 {
			return f, false
		}
		proto, f.Addr, rest = rest[9], netip.AddrFrom4([4]byte(rest[16:20])), rest[20:]
	case unix.ETH_P_IPV6:
		if len(rest) < 40 || rest[0]>>4 != 6 || netip.AddrFrom16([16]byte(rest[8:24])) != addr6 {
			return f, false
		}
		proto, f.Addr, rest = rest[6], netip.AddrFrom16([16]byte(rest[24:40])), rest[40:]
	default:
		return f, false
	}
	if f.Proto = policy.Proto(proto); f.Proto == policy.ProtoTCP {
		least = 14
	}
	if f.Proto != policy.ProtoTCP && f.Proto != policy.ProtoUDP || len(rest) < least {
		return f, false
	}
	f.Port = binary.BigEndian.Uint16(rest[2:])
	return f, true
}

// FuzzBack holds what comes in to a sandbox's own address against a reader that knows
// which flows there are.
func FuzzBack(f *testing.F) {
	needKernel(f)
	k := open(f, pins(f))
	attach(f, k, 1)
	setPolicy(f, k, `{"mode":"allow-all"}`)
	if err := k.SetUplink(loopback); err != nil {
		f.Fatal(err)
	}
	for _, out := range direct {
		out.sport = 40000
		if got := leaves(f, k, out); got != redirects {
			f.Fatalf("%v leaves: %d", out.dst, got)
		}
		f.Add(answer(out).bytes())
		f.Add(about(out, 3, nil))
		f.Add(about(out, 2, nil))
		f.Add(answer(out).with(func(b *frame) { b.fragment, b.dport = 100, 1 }).bytes())
		f.Add(answer(out).with(func(b *frame) { b.ihl = 6 }).bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 14+40 || len(b) > 3000 {
			return // the kernel tries no program on an IP packet without room for its header
		}
		ret, err := k.obj.FromUplink.Run(&ebpf.RunOptions{Data: b, DataOut: make([]byte, len(b)+256)})
		if err != nil {
			t.Fatal(err)
		}
		if ret == redirects && !mayReturn(b) {
			t.Fatal("it came in")
		}
	})
}

// mayReturn reads a frame that answers what has left, or is about it.
func mayReturn(b []byte) bool {
	rest := b[14:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		if netip.AddrFrom4([4]byte(rest[16:20])) != addr4 {
			return false
		}
		if binary.BigEndian.Uint16(rest[6:])&0x1fff != 0 {
			return true // not the first part of something
		}
		head := int(rest[0]&0xf) * 4
		if p := rest[9]; p != unix.IPPROTO_ICMP {
			return isDirect(p, rest[12:16], rest[head:], false)
		}
		head += 8
		return len(rest) >= head+20 && bytes.Equal(rest[head+12:head+16], addr4.AsSlice()) && isDirect(rest[head+9], rest[head+16:head+20], rest[head+20:], true)
	case unix.ETH_P_IPV6:
		if netip.AddrFrom16([16]byte(rest[24:40])) != addr6 {
			return false
		}
		p, next := rest[6], rest[40:]
		if p == unix.IPPROTO_FRAGMENT && len(next) >= 8 {
			if binary.BigEndian.Uint16(next[2:])&0xfff8 != 0 {
				return true
			}
			p, next = next[0], next[8:]
		}
		if p != unix.IPPROTO_ICMPV6 {
			return isDirect(p, rest[8:24], next, false)
		}
		return len(next) >= 48 && bytes.Equal(next[16:32], addr6.AsSlice()) && isDirect(next[14], next[32:48], next[48:], true)
	}
	return false
}

// isDirect says whether whom a packet is from, or to if it is one that was sent, has a flow.
func isDirect(protocol uint8, theirs, ports []byte, sent bool) bool {
	if len(ports) < 4 {
		return false
	}
	their, our := binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[2:])
	if sent {
		their, our = our, their
	}
	for _, f := range direct {
		if f.protocol == protocol && bytes.Equal(f.dst.AsSlice(), theirs) && f.dport == their && our == 40000 {
			return true
		}
	}
	return false
}
