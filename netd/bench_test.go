package netd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

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

// discards reads what it is sent to the end, and says then how much it was.
func (w *world) discards(at string) {
	w.accepts(at, func(c *net.TCPConn) {
		n, _ := onOneCPU(c, farCPU, func(fd int, buf []byte) (int, error) { return unix.Read(fd, buf) })
		fmt.Fprint(c, n)
	})
}

// gives sends so much to whoever connects.
func (w *world) gives(at string, size int) {
	w.accepts(at, func(c *net.TCPConn) { _, _ = onOneCPU(c, farCPU, upTo(size)) })
}

// accepts has each connection to an address beyond served, and closed then.
func (w *world) accepts(at string, serve func(*net.TCPConn)) {
	w.t.Helper()
	var l net.Listener
	w.must(in(w.beyond, func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	}))
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c.(*net.TCPConn))
			c.Close()
		}
	})
	w.t.Cleanup(func() {
		l.Close()
		served.Wait()
	})
}

// takes is the rate in Gbit/s of what is given.
func (w *world) takes(ns netns.NsHandle, at string) float64 {
	w.t.Helper()
	c := w.dials(ns, at)
	defer c.Close()
	began := time.Now()
	n, err := onOneCPU(c, nearCPU, func(fd int, buf []byte) (int, error) { return unix.Read(fd, buf) })
	w.must(err)
	return gigabits(n, time.Since(began))
}

// sends is the rate in Gbit/s, until the other side has it all.
func (w *world) sends(ns netns.NsHandle, at string, size int) float64 {
	w.t.Helper()
	c := w.dials(ns, at)
	defer c.Close()
	began := time.Now()
	_, err := onOneCPU(c, nearCPU, upTo(size))
	w.must(err)
	w.must(c.CloseWrite())
	said, err := io.ReadAll(c)
	w.must(err)
	took := time.Since(began)
	if string(said) != fmt.Sprint(size) {
		w.t.Fatalf("%d bytes were sent, %s came", size, said)
	}
	return gigabits(size, took)
}

func gigabits(bytes int, d time.Duration) float64 { return float64(bytes) * 8 / 1e9 / d.Seconds() }

func (w *world) dials(ns netns.NsHandle, at string) *net.TCPConn {
	w.t.Helper()
	var c net.Conn
	w.must(in(ns, func() (err error) {
		c, err = net.Dial("tcp", at)
		return err
	}))
	return c.(*net.TCPConn)
}

// What sends and what receives have a CPU each: what they share by chance, anew in each
// transfer, changes its rate by more than half.
const nearCPU, farCPU = 0, 1

// onOneCPU has a thread of one CPU move pieces over a connection until one is empty.
func onOneCPU(c *net.TCPConn, cpu int, move func(fd int, buf []byte) (int, error)) (moved int, err error) {
	file, err := c.File()
	if err != nil {
		return 0, err
	}
	defer file.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and ends with its thread
		var cpus unix.CPUSet
		cpus.Set(cpu % runtime.NumCPU())
		fd := int(file.Fd())
		if err = errors.Join(unix.SchedSetaffinity(0, &cpus), unix.SetNonblock(fd, false)); err != nil {
			return
		}
		n, buf := 1, make([]byte, 1<<20)
		for n > 0 && err == nil {
			if n, err = move(fd, buf); err == unix.EINTR {
				n, err = 1, nil
				continue
			}
			moved += max(n, 0)
		}
	}()
	<-done
	return moved, errors.Join(err, unix.SetNonblock(int(file.Fd()), true))
}

// upTo sends so many bytes in all.
func upTo(size int) func(fd int, buf []byte) (int, error) {
	return func(fd int, buf []byte) (n int, err error) {
		if size > 0 {
			n, err = unix.Write(fd, buf[:min(len(buf), size)])
			size -= max(n, 0)
		}
		return n, err
	}
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
