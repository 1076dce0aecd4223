package netns

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"s0.run/internal/sandbox"
)

// ping sends packets of a sandbox's, which nobody answers.
func ping(t *testing.T, n *Net, s Slot, count, size int) {
	t.Helper()
	err := inside(n.Path(s.ID), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range count {
			if err := unix.Sendto(fd, make([]byte, size), 0, &unix.SockaddrInet4{Port: 9, Addr: n.gateway.As4()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// isAbout: a kernel tells of its IPv6 groups now and then, in some bytes.
func isAbout(now, was uint64) bool { return now >= was && now < was+1000 }

func TestTraffic(t *testing.T) {
	n := openNet(t)
	busy, idle := newSlot(t, n, 1), newSlot(t, n, 2)
	add(t, n, busy)
	add(t, n, idle)
	before, err := n.Traffic()
	if err != nil || len(before) != 2 {
		t.Fatalf("%v (%v)", before, err)
	}
	ping(t, n, busy, 10, 1000)
	after, err := n.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	// With headers; the gateway may say that nobody listens.
	sent := after[busy.ID].TxBytes - before[busy.ID].TxBytes
	if packets := after[busy.ID].TxPackets - before[busy.ID].TxPackets; packets < 10 || sent < 10_000 || sent > 11_000 {
		t.Errorf("sent 10 packets of 1000 bytes: %d of %d counted", packets, sent)
	}
	if now, was := after[idle.ID], before[idle.ID]; !isAbout(now.TxBytes, was.TxBytes) || !isAbout(now.RxBytes, was.RxBytes) {
		t.Errorf("the neighbour's traffic went from %+v to %+v", before[idle.ID], after[idle.ID])
	}
	one, err := n.TrafficOf(busy)
	if err != nil || !isAbout(one.TxBytes, after[busy.ID].TxBytes) {
		t.Errorf("%+v (%v), want %+v", one, err, after[busy.ID])
	}
	for _, s := range []Slot{newSlot(t, n, 1), newSlot(t, n, 3)} { // another's link; none
		if got, err := n.TrafficOf(s); err == nil {
			t.Errorf("index %d of another sandbox: %+v", s.Index, got)
		}
	}
}

// What a program moves to a sandbox's end past the host's is what the sandbox received.
func TestTrafficPastTheHostsEnd(t *testing.T) {
	n := openNet(t)
	from, to := newSlot(t, n, 1), newSlot(t, n, 2)
	add(t, n, from)
	add(t, n, to)
	moves(t, n, from, to)
	before, err := n.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	const count, size, all = 10, 1000, 10 * (14 + 20 + 8 + 1000)
	ping(t, n, from, count, size)
	after, err := n.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	packets, bytes := after[to.ID].RxPackets-before[to.ID].RxPackets, after[to.ID].RxBytes-before[to.ID].RxBytes
	if packets < count || !isAbout(bytes, all) {
		t.Errorf("%d packets of %d bytes came: %d of %d bytes counted", count, all, packets, bytes)
	}
}

// moves has IPv4 of one sandbox come to another.
func moves(t *testing.T, n *Net, from, to Slot) {
	t.Helper()
	if version, err := features.LinuxVersionCode(); err != nil || version < 6<<16|7<<8 {
		t.Skipf("Linux %#x does not count what is moved (%v), and netd moves nothing", version, err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(to.Ifindex())),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirectPeer.Call(),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from.Ifindex(), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := n.host.QdiscAdd(qdisc); err != nil {
		t.Fatal(err)
	}
	err = n.host.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Ifindex(), Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_IP},
		Fd:          program.FD(), Name: "moves", DirectAction: true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTrafficIsTheSandboxsView(t *testing.T) {
	t.Parallel()
	got := view(&netlink.LinkStatistics{RxBytes: 2, TxBytes: 1, RxPackets: 4, TxPackets: 3, RxDropped: 7, TxDropped: 8, RxErrors: 9, TxErrors: 30},
		&netlink.LinkStatistics{RxBytes: 1, TxBytes: 1, RxPackets: 3, TxPackets: 1, RxDropped: 5, TxDropped: 6, RxErrors: 10, TxErrors: 20})
	if want := (Traffic{RxBytes: 2, TxBytes: 1, RxPackets: 4, TxPackets: 3, RxErrors: 26, TxErrors: 15}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func BenchmarkTrafficOf100(b *testing.B) {
	n := openNet(b)
	var ids []sandbox.ID
	for i := range uint32(100) {
		s := newSlot(b, n, i+1)
		add(b, n, s)
		ids = append(ids, s.ID)
	}
	for b.Loop() {
		if all, err := n.Traffic(); err != nil || len(all) != len(ids) {
			b.Fatal(len(all), err)
		}
	}
}
