package netd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
	"s0.run/netd"
)

// deadline bounds every wait of a test on a machine that does much else.
const deadline = time.Minute

// childEnv has this program run a netd instead of tests.
const childEnv = "S0_TEST_NETD"

func TestMain(m *testing.M) {
	if text := os.Getenv(guestEnv); text != "" {
		if err := runGuest(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	text := os.Getenv(childEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	cfg := netd.Default()
	at := strings.Split(text, ",")
	cfg.NetNS, cfg.RunDir, cfg.Socket = at[0], at[1], at[2]
	if len(at) > 3 { // of tests of the proxy
		cfg.Resolvers, cfg.CredentialKeyDir = []netip.AddrPort{netip.MustParseAddrPort(at[3])}, at[4]
	}
	cfg.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := netd.Run(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// world is three networks: the data plane with sandboxes, the host, and the internet
// behind it, which has every address that the host has a route to.
type world struct {
	t                    testing.TB
	dir                  string
	inside, host, beyond netns.NsHandle
	cfg                  netd.Config
	env                  []string // for the netd, beside this process'
	client               *netdapi.Client
	process              *exec.Cmd
	sandboxes            int
}

// Addresses of the internet, and of the host in it.
const (
	far4, other4, host4 = "93.184.0.2", "93.184.0.3", "93.184.0.1"
	far6, other6, host6 = "2606:aaaa::2", "2606:aaaa::3", "2606:aaaa::1"
)

func newWorld(t testing.TB) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	dir := t.TempDir()
	w := &world{t: t, dir: dir, inside: w0(t), host: w0(t), beyond: w0(t)}
	path := filepath.Join(dir, "inside")
	w.must(os.WriteFile(path, nil, 0o600))
	w.must(unix.Mount(fmt.Sprintf("/proc/self/fd/%d", w.inside), path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	w.wire("wan", w.host, []string{host4 + "/24", host6 + "/64"}, "eth", w.beyond, []string{far4 + "/24", other4 + "/24", far6 + "/64", other6 + "/64", "169.254.169.254/32", "10.9.0.1/24", "fd12::1/64"})
	h := w.handle(w.host)
	for _, dst := range []string{"169.254.169.254/32", "10.9.0.0/24", "100.64.0.0/10"} {
		_, n, err := net.ParseCIDR(dst)
		w.must(err)
		l, err := h.LinkByName("wan")
		w.must(err)
		w.must(h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: n, Gw: net.ParseIP(far4)}))
	}
	w.cfg = netd.Default()
	w.cfg.NetNS, w.cfg.RunDir, w.cfg.Socket = path, filepath.Join(dir, "run"), filepath.Join(dir, "netd.sock")
	w.must(os.Mkdir(w.cfg.RunDir, 0o700))
	t.Cleanup(func() { unix.Unmount(filepath.Join(w.cfg.RunDir, "bpf"), unix.MNT_DETACH) })
	w.client = netdapi.NewClient(w.cfg.Socket)
	t.Cleanup(w.client.Close)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// w0 makes a network namespace.
func w0(t testing.TB) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and ends with its thread
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		var err error
		ns, err = netns.Get()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// in runs f on a thread inside a namespace.
func in(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and ends with its thread
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (w *world) handle(ns netns.NsHandle) *netlink.Handle {
	w.t.Helper()
	h, err := netlink.NewHandleAt(ns)
	w.must(err)
	w.t.Cleanup(h.Close)
	return h
}

func (w *world) wire(name string, ns netns.NsHandle, addrs []string, peer string, peerNS netns.NsHandle, peerAddrs []string) {
	w.t.Helper()
	h, p := w.handle(ns), w.handle(peerNS)
	w.must(h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: peer, PeerNamespace: netlink.NsFd(int(peerNS)), PeerTxQLen: -1}))
	for _, e := range []struct {
		h     *netlink.Handle
		name  string
		addrs []string
	}{{h, name, addrs}, {p, peer, peerAddrs}} {
		l, err := e.h.LinkByName(e.name)
		w.must(err)
		for _, a := range e.addrs {
			addr, err := netlink.ParseAddr(a)
			w.must(err)
			if addr.IP.To4() == nil {
				addr.Flags = unix.IFA_F_NODAD
			}
			w.must(e.h.AddrAdd(l, addr))
		}
		w.must(e.h.LinkSetUp(l))
	}
}

// start starts a netd in the host's namespace and waits for it.
func (w *world) start() {
	w.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	settings := []string{w.cfg.NetNS, w.cfg.RunDir, w.cfg.Socket}
	if len(w.cfg.Resolvers) > 0 {
		settings = append(settings, w.cfg.Resolvers[0].String(), w.cfg.CredentialKeyDir)
	}
	cmd.Env = append(append(os.Environ(), childEnv+"="+strings.Join(settings, ",")), w.env...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	w.must(in(w.host, cmd.Start))
	w.process = cmd
	w.t.Cleanup(func() { w.kill(cmd) })
	w.eventually("netd answers", func() error {
		if ended(cmd.Process.Pid) {
			w.t.Fatal("netd has ended")
		}
		_, err := w.client.Info(context.Background())
		return err
	})
}

// ended asks without taking the answer away. The process' state in /proc does not say:
// netd begins anew from another thread, and its first is a zombie for that moment.
func ended(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

func (w *world) kill(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	w.client.Close()
}

func (w *world) eventually(what string, f func() error) {
	w.t.Helper()
	end := time.Now().Add(deadline)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var hostMAC = net.HardwareAddr{0x02, 0x73, 0, 0, 0, 1}

// box is a sandbox's network, made as noded makes it.
type box struct {
	w    *world
	ns   netns.NsHandle
	slot netdapi.Slot
	mac  net.HardwareAddr
}

func (w *world) sandbox() *box {
	w.t.Helper()
	b := w.link(0)
	w.must(w.client.Attach(context.Background(), b.slot))
	return b
}

// link makes a sandbox's network and tells nobody. Index 0 takes a new one.
func (w *world) link(index int) *box {
	w.t.Helper()
	if index == 0 {
		w.sandboxes++
		index = w.sandboxes
	}
	n := byte(index + 1)
	id, err := sandbox.NewID("t")
	w.must(err)
	b := &box{w: w, ns: w0(w.t), mac: net.HardwareAddr{0x02, 0x73, 10, 77, 0, n}}
	b.slot = netdapi.Slot{
		ID: id, Generation: 1, Ifindex: 1<<16 + index, MAC: b.mac.String(),
		IPv4: netip.AddrFrom4([4]byte{10, 77, 0, n}), IPv6: netip.AddrFrom16([16]byte{0xfd, 0x77, 15: n}),
	}
	h := w.handle(w.inside)
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("sx", index), Index: b.slot.Ifindex, Group: 77, HardwareAddr: hostMAC, Flags: net.FlagUp, TxQLen: -1},
		PeerName:  "eth0", PeerHardwareAddr: b.mac, PeerNamespace: netlink.NsFd(int(b.ns)), PeerTxQLen: -1,
	}
	w.must(h.LinkAdd(link))
	w.must(h.LinkSetAlias(link, string(id)))
	b.configure(h, link)
	return b
}

// bare is a link without a sandbox behind it.
func (w *world) bare(h *netlink.Handle, index int) netdapi.Slot {
	w.t.Helper()
	id, err := sandbox.NewID("t")
	w.must(err)
	hi, lo := byte(index>>8), byte(index)
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("sx", index), Index: 1<<16 + index, Group: 77, TxQLen: -1, NumTxQueues: 1, NumRxQueues: 1},
		PeerName:  fmt.Sprint("px", index), PeerTxQLen: -1,
	}
	w.must(h.LinkAdd(link))
	w.must(h.LinkSetAlias(link, string(id)))
	return netdapi.Slot{
		ID: id, Generation: 1, Ifindex: 1<<16 + index, MAC: net.HardwareAddr{0x02, 0x73, 10, 77, hi, lo}.String(),
		IPv4: netip.AddrFrom4([4]byte{10, 77, hi, lo}), IPv6: netip.AddrFrom16([16]byte{0xfd, 0x77, 14: hi, 15: lo}),
	}
}

func (b *box) configure(h *netlink.Handle, link netlink.Link) {
	w := b.w
	w.t.Helper()
	lo, err := h.LinkByName("lo")
	w.must(err)
	inner := w.handle(b.ns)
	eth, err := inner.LinkByName("eth0")
	w.must(err)
	for _, a := range []struct{ own, gateway netip.Addr }{{b.slot.IPv4, netip.MustParseAddr("10.77.0.1")}, {b.slot.IPv6, netip.MustParseAddr("fd77::1")}} {
		one := func(ip netip.Addr) *net.IPNet {
			return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
		}
		nodad := 0
		if a.own.Is6() {
			nodad = unix.IFA_F_NODAD
		}
		w.must(h.AddrReplace(lo, &netlink.Addr{IPNet: one(a.gateway), Flags: nodad}))
		w.must(h.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.own.AsSlice(), HardwareAddr: b.mac}))
		w.must(h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: one(a.own)}))
		w.must(inner.AddrReplace(eth, &netlink.Addr{IPNet: one(a.own), Flags: nodad}))
		w.must(inner.LinkSetUp(eth))
		w.must(inner.NeighSet(&netlink.Neigh{LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.gateway.AsSlice(), HardwareAddr: hostMAC}))
		w.must(inner.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: one(a.gateway)}))
		w.must(inner.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: a.gateway.AsSlice()}))
	}
}

func (b *box) policy(text string) {
	b.w.t.Helper()
	b.w.must(b.w.client.SetPolicy(context.Background(), netdapi.Policy{ID: b.slot.ID, Generation: b.slot.Generation, Team: "team", Policy: json.RawMessage(text)}))
}

// dial connects from inside the sandbox.
func (b *box) dial(network, to string) (c net.Conn, err error) {
	return b.dialWithin(network, to, deadline)
}

func (b *box) dialWithin(network, to string, timeout time.Duration) (c net.Conn, err error) {
	err = in(b.ns, func() (err error) {
		d := net.Dialer{Timeout: timeout}
		c, err = d.Dial(network, to)
		return err
	})
	return c, err
}

// says sends a word over a new connection and returns what comes back.
func (b *box) says(network, to, word string) (string, error) {
	c, err := b.dial(network, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if network[:3] != "udp" {
		return exchange(c, word)
	}
	for end := time.Now().Add(deadline); ; { // datagrams and refusals of them may be lost
		got, err := within(c, word, 300*time.Millisecond)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return got, err
		}
	}
}

func exchange(c net.Conn, word string) (string, error) { return within(c, word, deadline) }

func within(c net.Conn, word string, limit time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, word); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func (b *box) reaches(network, to string) {
	b.w.t.Helper()
	if got, err := b.says(network, to, "ping"); err != nil || got != "echo ping" {
		b.w.t.Errorf("%s to %s: %q, %v", network, to, got, err)
	}
}

func (b *box) refused(network, to string) {
	b.w.t.Helper()
	if got, err := b.says(network, to, "ping"); !errors.Is(err, syscall.ECONNREFUSED) {
		b.w.t.Errorf("%s to %s: %q, %v; want it refused", network, to, got, err)
	}
}

// serves answers whatever is sent to an address in a namespace, until the test ends.
func (w *world) serves(ns netns.NsHandle, network, at string) {
	w.t.Helper()
	w.must(in(ns, func() error {
		if network[:3] == "udp" {
			p, err := net.ListenPacket(network, at)
			if err != nil {
				return err
			}
			w.t.Cleanup(func() { p.Close() })
			go echoPackets(p)
			return nil
		}
		l, err := net.Listen(network, at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go echoStreams(l)
		return nil
	}))
}

func echoPackets(p net.PacketConn) {
	buf := make([]byte, 2000)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = p.WriteTo(append([]byte("echo "), buf[:n]...), from)
	}
}

func echoStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 2000)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(append([]byte("echo "), buf[:n]...)); err != nil {
					return
				}
			}
		}()
	}
}

// sink sees every IP packet that reaches a link.
type sink struct {
	fd   int
	done chan struct{}

	mu   sync.Mutex
	seen []seen
}

type seen struct {
	protocol uint8
	src      netip.Addr
	dst      netip.AddrPort
	payload  int // of TCP and UDP
}

func (w *world) sink(ns netns.NsHandle, link string) *sink {
	w.t.Helper()
	s := &sink{done: make(chan struct{})}
	w.must(in(ns, func() (err error) {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)<<8 | unix.ETH_P_ALL>>8
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Index})
	}))
	go s.run()
	w.t.Cleanup(func() {
		unix.Shutdown(s.fd, unix.SHUT_RDWR)
		close(s.done)
	})
	return s
}

func (s *sink) run() {
	buf := make([]byte, 70000)
	unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000})
	for {
		select {
		case <-s.done:
			unix.Close(s.fd)
			return
		default:
		}
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err != nil {
			continue
		}
		if l, ok := from.(*unix.SockaddrLinklayer); !ok || l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if p, ok := parse(buf[:n]); ok {
			s.mu.Lock()
			s.seen = append(s.seen, p)
			s.mu.Unlock()
		}
	}
}

func parse(b []byte) (p seen, ok bool) {
	if len(b) < 14+20 {
		return p, false
	}
	var dst netip.Addr
	rest := 34
	switch uint16(b[12])<<8 | uint16(b[13]) {
	case unix.ETH_P_IP:
		p.protocol, p.src, dst = b[23], netip.AddrFrom4([4]byte(b[26:30])), netip.AddrFrom4([4]byte(b[30:34]))
	case unix.ETH_P_IPV6:
		if len(b) < 54 {
			return p, false
		}
		p.protocol, p.src, dst, rest = b[20], netip.AddrFrom16([16]byte(b[22:38])), netip.AddrFrom16([16]byte(b[38:54])), 54
		if p.protocol == unix.IPPROTO_ICMPV6 && len(b) > 54 && b[54] >= 133 {
			return p, false // neighbours of the test's own wires
		}
		if p.protocol == unix.IPPROTO_HOPOPTS && dst == netip.MustParseAddr("ff02::16") {
			return p, false // the host itself, which says what it listens to
		}
	default:
		return p, false
	}
	if p.protocol == unix.IPPROTO_TCP && len(b) >= rest+20 {
		end := 14 + int(b[16])<<8 + int(b[17]) // of what the packet says that it is: a short frame is padded
		if rest == 54 {
			end = rest + int(b[18])<<8 + int(b[19])
		}
		p.payload = max(end-rest-int(b[rest+12]>>4)*4, 0)
	}
	if p.protocol == unix.IPPROTO_UDP && len(b) >= rest+8 {
		p.payload = max(int(b[rest+4])<<8+int(b[rest+5])-8, 0)
	}
	port := uint16(0)
	if (p.protocol == unix.IPPROTO_TCP || p.protocol == unix.IPPROTO_UDP) && len(b) >= rest+4 {
		port = uint16(b[rest+2])<<8 | uint16(b[rest+3])
	}
	p.dst = netip.AddrPortFrom(dst, port)
	return p, true
}

func (s *sink) packets() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]seen(nil), s.seen...)
}

// inject puts a frame on the sandbox's end of its link, whatever is in it.
func (b *box) inject(frames ...[]byte) {
	b.w.t.Helper()
	b.w.must(in(b.ns, func() error {
		l, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: l.Index, Halen: 6}); err != nil {
				return err
			}
		}
		return nil
	}))
}
