package netd_test

import (
	"fmt"
	"net"
	"testing"
)

// received are the bytes that the sandbox's end of its link has counted: use is metered by
// them.
func (b *box) received() uint64 {
	b.w.t.Helper()
	eth, err := b.w.handle(b.ns).LinkByName("eth0")
	b.w.must(err)
	return eth.Attrs().Statistics.RxBytes
}

// counted is what both have at one time: the kernel itself tells a link now and then which
// groups it is in.
func (b *box) counted() (link, netd uint64) {
	b.w.t.Helper()
	for {
		before, err := b.counters()
		b.w.must(err)
		link = b.received()
		after, err := b.counters()
		b.w.must(err)
		if before.ReceivedBytes == after.ReceivedBytes {
			return link, after.ReceivedBytes
		}
	}
}

// What comes in is counted once where it is metered, whichever way it takes: past the host's
// end of the link, through it, and from the proxy.
func TestTheSandboxsEndCountsWhatComesIn(t *testing.T) {
	byBothWays(t, func(t *testing.T, w *world, _ bool) {
		const size = 4 << 20
		for _, ip := range []string{far4, far6} {
			w.exchanges(net.JoinHostPort(ip, "2222"))
		}
		for _, way := range []string{direct, proxied} {
			b := w.sandbox()
			b.policy(way)
			link, known := b.counted()
			for _, ip := range []string{far4, far6} {
				if _, err := b.exchange(net.JoinHostPort(ip, "2222"), 0, size); err != nil {
					t.Fatal(err)
				}
			}
			w.eventually("both have counted the same", func() error {
				l, k := b.counted()
				if l, k = l-link, k-known; l != k || l < 2*size {
					return fmt.Errorf("the link has counted %d bytes, netd %d, of %d", l, k, 2*size)
				}
				return nil
			})
		}
	})
}
