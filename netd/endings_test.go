package netd_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// E23: a connection of a sandbox whose end netd did not come to before it was killed
// brings nothing to whoever gets its address next.
func TestE23_AnAddressUsedAgainAfterACrash(t *testing.T) {
	w := newWorld(t)
	w.start()
	var peers []net.PacketConn
	for _, at := range both("80", far4, far6) {
		w.must(in(w.beyond, func() error {
			p, err := net.ListenPacket("udp", at)
			peers = append(peers, p)
			return err
		}))
	}
	first := w.sandbox()
	first.policy(`{"mode":"allow-all"}`)
	var from []net.Addr
	for i, at := range both("80", far4, far6) {
		from = append(from, first.sends(peers[i], at))
	}
	w.must(w.client.Detach(t.Context(), first.slot.ID, 0))
	w.kill(w.process) // seconds before it would have had them forgotten
	h := w.handle(w.inside)
	link, err := h.LinkByIndex(first.slot.Ifindex)
	w.must(err)
	w.must(h.LinkDel(link))
	second := w.link(w.sandboxes)
	inside := w.sink(second.ns, "eth0")
	w.start()
	if all := w.trackedOf(w.host, first); len(all) > 0 {
		t.Errorf("D09: the host tracks %v, which nobody ends any more", all)
	}
	w.must(w.client.Attach(t.Context(), second.slot))
	second.policy(`{"mode":"allow-all"}`)
	for i, p := range peers {
		for range 5 {
			_, err := p.WriteTo([]byte("for the first"), from[i])
			w.must(err)
		}
		p.Close()
	}
	w.far("81")
	for _, at := range both("81", far4, far6) {
		second.reaches("tcp", at)
	}
	for _, p := range inside.packets() {
		if p.protocol == unix.IPPROTO_UDP {
			t.Errorf("a datagram for the first came in to %s", p.dst)
		}
	}
}

// sends sends a datagram from the sandbox to a socket, until it is there, and returns
// whom it came from.
func (b *box) sends(to net.PacketConn, at string) net.Addr {
	b.w.t.Helper()
	c, err := b.dial("udp", at)
	b.w.must(err)
	b.w.t.Cleanup(func() { c.Close() })
	buf := make([]byte, 100)
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		_, _ = c.Write([]byte("hello"))
		b.w.must(to.SetReadDeadline(time.Now().Add(300 * time.Millisecond)))
		if _, from, err := to.ReadFrom(buf); err == nil {
			return from
		}
	}
	b.w.t.Fatalf("no datagram to %s arrives", at)
	return nil
}

// E21: a peer that goes on sending when a policy has closed does not get in.
func TestE21_DatagramsOfAClosedPeer(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("81")
	b := w.sandbox()
	for _, a := range []string{far4, far6} {
		b.policy(`{"mode":"allow-all"}`)
		var peer net.PacketConn
		w.must(in(w.beyond, func() (err error) {
			peer, err = net.ListenPacket("udp", net.JoinHostPort(a, "80"))
			return err
		}))
		from := b.sends(peer, net.JoinHostPort(a, "80"))
		inside := w.sink(b.ns, "eth0")
		datagrams := func(word string) (n int) {
			for _, p := range inside.packets() {
				if p.protocol == unix.IPPROTO_UDP && p.payload == len(word) {
					n++
				}
			}
			return n
		}
		const answer, late = "answer", "too late" // who looks may not have come to the last answer by then
		w.eventually("an answer comes in while it may", func() error {
			_, err := peer.WriteTo([]byte(answer), from)
			w.must(err)
			if datagrams(answer) == 0 {
				return unix.EAGAIN
			}
			return nil
		})
		other := netip.MustParseAddr(other4)
		b.policy(`{"mode":"block-all","egress":{"allowedCidrs":["` + netip.PrefixFrom(other, 32).String() + `"]}}`)
		b.reaches("tcp", net.JoinHostPort(other4, "81"))
		for range 5 {
			_, err := peer.WriteTo([]byte(late), from)
			w.must(err)
		}
		b.reaches("tcp", net.JoinHostPort(other4, "81"))
		if n := datagrams(late); n > 0 {
			t.Errorf("%d datagrams of %s came in", n, a)
		}
		peer.Close()
	}
}
