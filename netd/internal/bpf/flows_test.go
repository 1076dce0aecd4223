package bpf

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"s0.run/internal/policy"
)

// receive runs a frame through to_sandbox and reports whether it got there.
func receive(t *testing.T, k *Kernel, frame []byte) bool {
	t.Helper()
	ret, err := k.obj.ToSandbox.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: skb{}})
	if err != nil {
		t.Fatal(err)
	}
	return ret == 0
}

// endAll ends every flow, as if a day had passed.
func endAll(t *testing.T, k *Kernel) (all []Flow) {
	t.Helper()
	if err := k.endFlows(bootTime()+uint64(24*time.Hour), func(f Flow) { all = append(all, f) }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestFlowsAreToldWithTheirSizes(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 1)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	for _, f := range []frame{tcp("93.184.0.2", 443), tcp("2606:bbbb::1", 443), udp("93.184.0.2", 9), udp("2606:bbbb::1", 9)} {
		f.sport, f.payload = 40000, 100
		back := f.with(func(b *frame) {
			b.srcMAC, b.dstMAC, b.src, b.dst, b.sport, b.dport = hostMAC, sandboxMAC, f.dst, addr4, f.dport, f.sport
			if f.dst.Is6() {
				b.dst = addr6
			}
			b.flags, b.payload = 0x12, 300
		})
		sent, received := f.bytes(), back.bytes()
		for range 3 {
			check(t, k, "a packet", f.with(func(f *frame) { f.flags = 0x10 }), MarkAllow)
			if !receive(t, k, received) {
				t.Fatal("nothing comes back")
			}
		}
		flows := endAll(t, k)
		if len(flows) != 1 {
			t.Fatalf("%v: told %+v", f.dst, flows)
		}
		got := flows[0]
		if got.Serial != serial || got.Action != policy.Allow || got.Protocol != f.protocol || got.Source != f.sport || got.Dest.Addr() != f.dst || got.Dest.Port() != f.dport ||
			got.Sent != uint64(3*len(sent)) || got.Received != uint64(3*len(received)) || got.Last.Before(got.Began) {
			t.Errorf("told %+v of 3 times %d and %d bytes with %v", got, len(sent), len(received), f.dst)
		}
	}
}

func TestWhenAFlowIsOver(t *testing.T) {
	t.Parallel()
	const tcp, udp = 6, 17
	for name, c := range map[string]struct {
		protocol uint8
		f        netdFlow
		after    time.Duration
	}{
		"closed":            {tcp, netdFlow{FinSent: 1, FinReceived: 1, Received: 1}, ClosedIdle},
		"reset":             {tcp, netdFlow{Reset: 1, Received: 1}, ClosedIdle},
		"unanswered":        {tcp, netdFlow{}, UnansweredIdle},
		"half closed":       {tcp, netdFlow{FinReceived: 1, Received: 1}, HalfClosedIdle},
		"established":       {tcp, netdFlow{Received: 1}, EstablishedIdle},
		"datagrams":         {udp, netdFlow{Received: 1}, DatagramIdle},
		"datagrams one way": {udp, netdFlow{}, UnansweredIdle},
	} {
		c.f.Last = 1
		key := netdFlowKey{Protocol: c.protocol}
		if over(&key, &c.f, 1+uint64(c.after)) || !over(&key, &c.f, 2+uint64(c.after)) {
			t.Errorf("%s: not over just after %v", name, c.after)
		}
		if over(&key, &c.f, 0) {
			t.Errorf("%s: over before its last packet", name)
		}
	}
}

// Whoever opens flows without end has no more than his part, and nobody else's.
func TestD09_FlowsAreBoundedPerSandbox(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	first := attach(t, k, 1)
	setPolicy(t, k, `{"mode":"allow-all"}`)
	syn := func(k *Kernel, n int) uint32 {
		return send(t, k, tcp("93.184.0.2", 443).with(func(f *frame) { f.sport = uint16(1024 + n) }).bytes())
	}
	const most = 4096
	for n := range most {
		if got := syn(k, n); got != MarkAllow {
			t.Fatalf("flow %d: mark %#x", n, got)
		}
	}
	ctx, told := t.Context(), make(chan Event, 1)
	go k.Events(ctx, func(e Event) {
		select {
		case told <- e:
		default:
		}
	})
	for n := most; n < most+100; n++ {
		if got := syn(k, n); got != MarkDeny {
			t.Fatalf("flow %d: mark %#x", n, got)
		}
	}
	select {
	case e := <-told:
		if e.Serial != first || e.Action != policy.Deny || e.Reason.String() != "too many flows" {
			t.Errorf("told %+v", e)
		}
	case <-time.After(time.Minute):
		t.Error("nothing was told of too many flows")
	}
	check(t, k, "a flow that is open", tcp("93.184.0.2", 443).with(func(f *frame) { f.sport, f.flags = 1024, 0x10 }), MarkAllow)
	k.Close()

	next := open(t, dir) // which knows how many there are
	if got := syn(next, most); got != MarkDeny {
		t.Errorf("after a restart: mark %#x", got)
	}
	if flows := endAll(t, next); len(flows) != most {
		t.Errorf("%d flows have ended", len(flows))
	}
	if got := syn(next, most); got != MarkAllow {
		t.Errorf("after the others have ended: mark %#x", got)
	}
	second := attach(t, next, 2) // in the first one's place, which has a flow left
	setPolicy(t, next, `{"mode":"allow-all"}`)
	if got := syn(next, 0); got != MarkAllow || second == first {
		t.Errorf("another sandbox: mark %#x", got)
	}
	var left []uint32
	if err := next.EndFlows(func(f Flow) { left = append(left, f.Serial) }); err != nil || len(left) != 1 || left[0] != first {
		t.Errorf("flows of %v have ended with their link, %v", left, err)
	}
	var opened uint64
	if err := next.obj.Opened.Lookup(first, &opened); err == nil {
		t.Error("the first one's count is left")
	}
}
