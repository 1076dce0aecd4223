package netd_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"s0.run/internal/netdapi"
)

// BenchmarkThroughput sends through netd and, in turns with it, through one plain
// veth with NAT: the share is what counts, for both get the same machine.
func BenchmarkThroughput(b *testing.B) {
	w := newWorld(b)
	w.start()
	box := w.sandbox()
	box.policy(`{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.0/24"]}}`)
	plain := w.plain()
	at := net.JoinHostPort(far4, "9")
	w.discards(at)
	const size = 256 << 20
	var ours, theirs []float64
	for b.Loop() {
		theirs = append(theirs, w.sends(plain, at, size))
		ours = append(ours, w.sends(box.ns, at, size))
	}
	b.ReportMetric(slices.Max(theirs), "plain-Gbit/s")
	b.ReportMetric(slices.Max(ours), "netd-Gbit/s")
	b.ReportMetric(100*slices.Max(ours)/slices.Max(theirs), "%")
}

// plain is a namespace behind a veth of the host, with its NAT.
func (w *world) plain() netns.NsHandle { return w.behind(w.host, "plain", "10.99.0") }

// hop is one behind a namespace more, which translates and forwards as the data plane
// does, and judges nothing.
func (w *world) hop() netns.NsHandle {
	middle := w.behind(w.host, "hop", "10.98.0")
	w.must(in(middle, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	return w.behind(middle, "far", "10.97.0")
}

// behind is a namespace whose way out is a veth of another, which has its address
// translated.
func (w *world) behind(gateway netns.NsHandle, link, network string) netns.NsHandle {
	w.t.Helper()
	ns := w0(w.t)
	w.wire(link, gateway, []string{network + ".1/24"}, "eth0", ns, []string{network + ".2/24"})
	h := w.handle(ns)
	l, err := h.LinkByName("eth0")
	w.must(err)
	w.must(h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(network + ".1")}))
	conn, err := nftables.New(nftables.WithNetNSFd(int(gateway)))
	w.must(err)
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: link})
	chain := conn.AddChain(&nftables.Chain{Name: "c_post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: netip.MustParseAddr(network + ".2").AsSlice()},
		&expr.Masq{},
	}})
	w.must(conn.Flush())
	return ns
}

func (w *world) discards(at string) {
	w.t.Helper()
	w.must(in(w.beyond, func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				n, _ := io.Copy(io.Discard, c)
				fmt.Fprint(c, n)
				c.Close()
			}
		}()
		return nil
	}))
}

// gives sends so much to whoever connects.
func (w *world) gives(at string, size int64) {
	w.t.Helper()
	w.must(in(w.beyond, func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			buf := make([]byte, 1<<20)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				for range size / int64(len(buf)) {
					if _, err := c.Write(buf); err != nil {
						break
					}
				}
				c.Close()
			}
		}()
		return nil
	}))
}

// takes is the rate in Gbit/s.
func (w *world) takes(ns netns.NsHandle, at string) float64 {
	w.t.Helper()
	began := time.Now()
	var c net.Conn
	w.must(in(ns, func() (err error) {
		c, err = net.Dial("tcp", at)
		return err
	}))
	defer c.Close()
	size, buf := 0, make([]byte, 1<<20)
	for {
		n, err := c.Read(buf)
		size += n
		if err == io.EOF {
			return float64(size) * 8 / 1e9 / time.Since(began).Seconds()
		}
		w.must(err)
	}
}

// sends is the rate in Gbit/s.
func (w *world) sends(ns netns.NsHandle, at string, size int) float64 {
	w.t.Helper()
	var c net.Conn
	w.must(in(ns, func() (err error) {
		c, err = net.Dial("tcp", at)
		return err
	}))
	defer c.Close()
	buf := make([]byte, 1<<20)
	began := time.Now()
	for range size / len(buf) {
		_, err := c.Write(buf)
		w.must(err)
	}
	w.must(c.(*net.TCPConn).CloseWrite())
	_, err := io.ReadAll(c)
	w.must(err)
	return float64(size) * 8 / 1e9 / time.Since(began).Seconds()
}

// BenchmarkPolicy is a change of a policy, over the socket and back.
func BenchmarkPolicy(b *testing.B) {
	w := newWorld(b)
	w.start()
	box := w.sandbox()
	for _, n := range []int{1, 100, 250} {
		b.Run(fmt.Sprint(n, " networks"), func(b *testing.B) {
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				text := `{"mode":"block-all","egress":{"allowedPorts":[{"port":` + fmt.Sprint(1+i%60000) + `}],"allowedCidrs":["93.184.0.0/24"`
				for j := range n - 1 {
					text += fmt.Sprintf(`,"11.%d.%d.0/24"`, j/256, j%256)
				}
				began := time.Now()
				box.policy(text + `]}}`)
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkAttach is a sandbox more: its words, with the default policy.
func BenchmarkAttach(b *testing.B) {
	w := newWorld(b)
	w.start()
	box := w.link(0)
	ctx := context.Background()
	var attach, policy time.Duration
	for b.Loop() {
		began := time.Now()
		w.must(w.client.Attach(ctx, box.slot))
		attached := time.Now()
		w.must(w.client.SetPolicy(ctx, netdapi.Policy{ID: box.slot.ID, Generation: 1, Team: "team"}))
		attach, policy = attach+attached.Sub(began), policy+time.Since(attached)
		b.StopTimer()
		w.must(w.client.Detach(ctx, box.slot.ID, 0))
		b.StartTimer()
	}
	b.ReportMetric(float64(attach.Microseconds())/float64(b.N), "attach-µs")
	b.ReportMetric(float64(policy.Microseconds())/float64(b.N), "policy-µs")
}
