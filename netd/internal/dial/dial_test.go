package dial

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"s0.run/internal/errdefs"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func nothing(netip.Addr) bool { return false }

func dialer(t *testing.T, config Config) *Dialer {
	t.Helper()
	d, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// serve accepts connections and has f answer each.
func serve(t *testing.T, f func(net.Conn)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); f(c) }()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestE01_ForbiddenAddressesAreRefusedByTheSocket(t *testing.T) {
	t.Parallel()
	port := serve(t, func(net.Conn) { t.Error("somebody connected") })
	d := dialer(t, Config{Forbidden: func(a netip.Addr) bool { return a == loopback }})
	for _, addr := range []string{"127.0.0.1", "::ffff:127.0.0.1"} {
		if _, err := d.Dial(t.Context(), Target{Sandbox: "s", Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Port: port}); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	proxied := Target{Sandbox: "s", Addrs: []netip.Addr{loopback}, Port: port, Proxy: &Proxy{Addrs: []netip.Addr{loopback}, Port: port}}
	if _, err := d.Dial(t.Context(), proxied); !errors.Is(err, ErrForbidden) {
		t.Errorf("a forbidden proxy: %v", err)
	}
	if n := d.Open("s"); n != 0 {
		t.Errorf("%d places are lost", n)
	}
}

func TestD10_ASandboxHasSoManyConnections(t *testing.T) {
	t.Parallel()
	port := serve(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	d := dialer(t, Config{Forbidden: nothing, PerSandbox: 3})
	target := Target{Sandbox: "a", Addrs: []netip.Addr{loopback}, Port: port}
	var open []*Conn
	for range 3 {
		c, err := d.Dial(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, err := d.Dial(t.Context(), target); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("the fourth: %v", err)
	}
	other := target
	other.Sandbox = "b"
	if c, err := d.Dial(t.Context(), other); err != nil {
		t.Errorf("a neighbour: %v", err)
	} else {
		c.Close()
	}
	open[0].Close()
	open[0].Close()
	if n := d.Open("a"); n != 2 {
		t.Errorf("%d are open after one was closed twice", n)
	}
	for _, c := range open {
		c.Close()
	}
	if len(d.open) != 0 {
		t.Errorf("left: %v", d.open)
	}
}

func TestX33_TheNextAddressHasATurn(t *testing.T) {
	t.Parallel()
	port := serve(t, func(c net.Conn) { c.Write([]byte("x")) })
	d := dialer(t, Config{Forbidden: nothing})
	// Nobody listens on 127.0.0.2's port: refused at once.
	c, err := d.Dial(t.Context(), Target{Sandbox: "s", Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.2"), loopback}, Port: port})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Dial(ctx, Target{Sandbox: "s", Addrs: []netip.Addr{loopback}, Port: port}); err == nil {
		t.Error("an ended caller got a connection")
	}
	if _, err := d.Dial(t.Context(), Target{Sandbox: "s", Port: port}); err == nil {
		t.Error("no address, a connection")
	}
}

// socks answers one CONNECT as a SOCKS5 proxy with a user and a password would.
func socks(t *testing.T, user, pass string) func(net.Conn) {
	return func(c net.Conn) {
		buf := make([]byte, 512)
		io.ReadFull(c, buf[:2])
		io.ReadFull(c, buf[:buf[1]])
		c.Write([]byte{5, 2})
		io.ReadFull(c, buf[:2])
		n := int(buf[1])
		io.ReadFull(c, buf[:n+1])
		gotUser, m := string(buf[:n]), int(buf[n])
		io.ReadFull(c, buf[:m])
		if gotUser != user || string(buf[:m]) != pass {
			c.Write([]byte{1, 1})
			return
		}
		c.Write([]byte{1, 0})
		io.ReadFull(c, buf[:10])
		if buf[3] != 1 {
			t.Errorf("the proxy was not told an address: type %d", buf[3])
			return
		}
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(buf[4:8])), binary.BigEndian.Uint16(buf[8:]))
		c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		io.WriteString(c, to.String())
	}
}

func TestThroughSOCKS5(t *testing.T) {
	t.Parallel()
	port := serve(t, socks(t, "me", "secret"))
	d := dialer(t, Config{Forbidden: nothing})
	target := Target{
		Sandbox: "s", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}, Port: 443,
		Proxy: &Proxy{Addrs: []netip.Addr{loopback}, Port: port, User: "me", Pass: "secret"},
	}
	c, err := d.Dial(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(c); string(got) != "192.0.2.7:443" {
		t.Errorf("the proxy was asked for %q", got)
	}
	c.Close()
	target.Proxy.Pass = "wrong"
	if _, err := d.Dial(t.Context(), target); err == nil || d.Open("s") != 0 {
		t.Errorf("a wrong password: %v, %d open", err, d.Open("s"))
	}
}
