package netns

import (
	"testing"

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
	if after[idle.ID] != before[idle.ID] {
		t.Errorf("the neighbour's traffic went from %+v to %+v", before[idle.ID], after[idle.ID])
	}
	one, err := n.TrafficOf(busy)
	if err != nil || one.TxBytes != after[busy.ID].TxBytes {
		t.Errorf("%+v (%v), want %+v", one, err, after[busy.ID])
	}
	for _, s := range []Slot{newSlot(t, n, 1), newSlot(t, n, 3)} { // another's link; none
		if got, err := n.TrafficOf(s); err == nil {
			t.Errorf("index %d of another sandbox: %+v", s.Index, got)
		}
	}
}

func TestTrafficIsTheSandboxsView(t *testing.T) {
	t.Parallel()
	got := traffic(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Statistics: &netlink.LinkStatistics{
		RxBytes: 1, TxBytes: 2, RxPackets: 3, TxPackets: 4, RxDropped: 5, TxDropped: 6, RxErrors: 10, TxErrors: 20,
	}}})
	if want := (Traffic{RxBytes: 2, TxBytes: 1, RxPackets: 4, TxPackets: 3, RxErrors: 26, TxErrors: 15}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := traffic(&netlink.Veth{}); got != (Traffic{}) {
		t.Errorf("%+v of a link without counters", got)
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
