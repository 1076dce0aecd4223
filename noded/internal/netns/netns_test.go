package netns

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

var (
	testCIDR  = netip.MustParsePrefix("10.77.0.0/16")
	testCIDR6 = netip.MustParsePrefix("fd77::/64")
)

func openNet(t testing.TB) *Net {
	t.Helper()
	s0test.NeedRoot(t)
	n, err := Open(Config{Dir: filepath.Join(t.TempDir(), "netns"), CIDR: testCIDR, CIDR6: testCIDR6})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		slots, err := n.List()
		if err != nil {
			t.Error(err)
		}
		for _, s := range slots {
			if err := n.Remove(s); err != nil {
				t.Error(err)
			}
		}
		n.Close()
		if err := remove(n.dataplanePath()); err != nil {
			t.Error(err)
		}
	})
	return n
}

func newSlot(t testing.TB, n *Net, index uint32) Slot {
	t.Helper()
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	return n.Slot(id, index)
}

func add(t testing.TB, n *Net, s Slot) {
	t.Helper()
	if err := n.Add(s); err != nil {
		t.Fatal(err)
	}
}

func listed(t testing.TB, n *Net) []Slot {
	t.Helper()
	all, err := n.List()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b Slot) int { return int(a.Index) - int(b.Index) })
	return all
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	n := &Net{cfg: Config{CIDR: netip.MustParsePrefix("10.77.0.0/29"), CIDR6: testCIDR6}}
	if got := n.Slot("a", 1).IP.String(); got != "10.77.0.2" {
		t.Errorf("first address: %s", got)
	}
	if got := n.MaxIndex(); got != 5 {
		t.Errorf("highest index of a /29: %d", got)
	}
	if got := n.Slot("a", n.MaxIndex()).IP.String(); got != "10.77.0.6" {
		t.Errorf("last address: %s", got)
	}
	for _, cidr := range []string{"10.77.0.0/30", "fd77::/64"} {
		if _, err := Open(Config{Dir: t.TempDir(), CIDR: netip.MustParsePrefix(cidr), CIDR6: testCIDR6}); err == nil {
			t.Errorf("range %s accepted", cidr)
		}
	}
}

func TestLayout(t *testing.T) {
	n := openNet(t)
	s := newSlot(t, n, 3)
	add(t, n, s)

	host, err := n.host.LinkByIndex(firstIfindex + 3)
	if err != nil {
		t.Fatal(err)
	}
	if a := host.Attrs(); a.Name != "sx3" || a.Alias != string(s.ID) || a.Group != Group || a.Flags&net.FlagUp == 0 {
		t.Errorf("host end: %+v", a)
	}
	h, err := handleAt(n.Path(s.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if mac := eth0.Attrs().HardwareAddr.String(); mac != "02:73:0a:4d:00:04" {
		t.Errorf("MAC %s", mac)
	}
	addrs, err := h.AddrList(eth0, netlink.FAMILY_ALL)
	if err != nil || len(addrs) != 2 || addrs[0].IPNet.String() != "10.77.0.4/32" || addrs[1].IPNet.String() != "fd77::4/128" {
		t.Errorf("addresses %v (%v), want only 10.77.0.4/32 and fd77::4/128", addrs, err)
	}
	routes, err := h.RouteGet(net.IPv4(93, 184, 216, 34))
	if err != nil || len(routes) != 1 || routes[0].Gw.String() != "10.77.0.1" {
		t.Errorf("route to the world: %v (%v)", routes, err)
	}
	routes, err = h.RouteGet(net.ParseIP("2606:aaaa::1"))
	if err != nil || len(routes) != 1 || routes[0].Gw.String() != "fd77::1" {
		t.Errorf("route to the world of IPv6: %v (%v)", routes, err)
	}
	neigh, err := h.NeighList(eth0.Attrs().Index, netlink.FAMILY_V4)
	if err != nil || len(neigh) != 1 || neigh[0].State != netlink.NUD_PERMANENT || neigh[0].HardwareAddr.String() != hostMAC.String() {
		t.Errorf("neighbours %v (%v)", neigh, err)
	}
}

// R5 by construction: with no netd, what a sandbox sends reaches its own gateway
// address and nothing else.
func TestX31_NoNetdNoEgress(t *testing.T) {
	n := openNet(t)
	a, b := newSlot(t, n, 1), newSlot(t, n, 2)
	add(t, n, a)
	add(t, n, b)

	for name, to := range map[string]string{
		"metadata":        "169.254.169.254:80",
		"world":           "93.184.216.34:443",
		"another sandbox": b.IP.String() + ":80",
		"gateway":         "10.77.0.1:22",
	} {
		if err := dialFrom(n, a, to); err == nil {
			t.Errorf("%s (%s) answered", name, to)
		}
	}
	sent := transmitted(t, n, b)
	if err := dialFrom(n, a, b.IP.String()+":81"); err == nil {
		t.Error("another sandbox answered")
	}
	if got := transmitted(t, n, b); got != sent {
		t.Errorf("%d packets were forwarded to another sandbox", got-sent)
	}
}

// dialFrom dials from inside a slot's namespace.
func dialFrom(n *Net, s Slot, to string) error {
	return inside(n.Path(s.ID), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // Go's own dialer may change threads
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		addr := netip.MustParseAddrPort(to)
		timeout := unix.NsecToTimeval((200 * time.Millisecond).Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
	})
}

// transmitted counts what the data plane has sent towards a slot.
func transmitted(t *testing.T, n *Net, s Slot) uint64 {
	t.Helper()
	link, err := n.host.LinkByIndex(firstIfindex + int(s.Index))
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.TxPackets
}

func TestRemoveIsIdempotentAndComplete(t *testing.T) {
	n := openNet(t)
	a, b := newSlot(t, n, 1), newSlot(t, n, 2)
	add(t, n, a)
	add(t, n, b)
	if got := listed(t, n); !slices.Equal(got, []Slot{a, b}) {
		t.Fatalf("listed %v, want %v", got, []Slot{a, b})
	}
	for range 2 {
		if err := n.Remove(a); err != nil {
			t.Fatal(err)
		}
	}
	if got := listed(t, n); !slices.Equal(got, []Slot{b}) {
		t.Fatalf("listed %v, want %v", got, []Slot{b})
	}
	// The index is free again, and the old id has no claim on its new owner.
	c := newSlot(t, n, a.Index)
	add(t, n, c)
	if err := n.Remove(a); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, n); !slices.Equal(got, []Slot{c, b}) {
		t.Fatalf("listed %v, want %v", got, []Slot{c, b})
	}
}

func TestReopenFindsEverything(t *testing.T) {
	n := openNet(t)
	s := newSlot(t, n, 9)
	add(t, n, s)
	again, err := Open(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := listed(t, again); !slices.Equal(got, []Slot{s}) {
		t.Fatalf("listed %v, want %v", got, []Slot{s})
	}
}

// X03: whatever an Add that died left behind is listed and can be removed.
func TestX03_HalfMadeNetworks(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, n *Net, s Slot){
		"file without namespace": func(t *testing.T, n *Net, s Slot) {
			if err := os.WriteFile(n.Path(s.ID), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"namespace without link": func(t *testing.T, n *Net, s Slot) {
			if err := create(n.Path(s.ID), quietIPv6); err != nil {
				t.Fatal(err)
			}
		},
		"link without alias": func(t *testing.T, n *Net, s Slot) {
			add(t, n, s)
			if err := n.host.LinkSetAlias(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: firstIfindex + int(s.Index)}}, ""); err != nil {
				t.Fatal(err)
			}
		},
		"link without namespace": func(t *testing.T, n *Net, s Slot) {
			add(t, n, s)
			held, err := os.Open(n.Path(s.ID)) // as a process of the sandbox would
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { held.Close() })
			if err := remove(n.Path(s.ID)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := openNet(t)
			s := newSlot(t, n, 5)
			leave(t, n, s)
			got := listed(t, n)
			if len(got) != 1 || got[0].ID != s.ID {
				t.Fatalf("listed %v, want %s", got, s.ID)
			}
			if err := n.Remove(s); err != nil { // as the journal's record knows it
				t.Fatal(err)
			}
			if got := listed(t, n); len(got) != 0 {
				t.Fatalf("listed %v after removal", got)
			}
			if _, err := n.host.LinkByIndex(firstIfindex + 5); err == nil {
				t.Fatal("the link is still there")
			}
			add(t, n, newSlot(t, n, 5))
		})
	}
}

func TestAddOfWhatExistsFails(t *testing.T) {
	n := openNet(t)
	s := newSlot(t, n, 1)
	add(t, n, s)
	if err := n.Add(s); err == nil || !strings.Contains(err.Error(), string(s.ID)) {
		t.Fatalf("second Add: %v", err)
	}
	if err := n.Add(n.Slot(s.ID, 0)); err == nil {
		t.Fatal("index 0 accepted")
	}
}

func BenchmarkAddRemove(b *testing.B) {
	n := openNet(b)
	var adds, removes time.Duration
	for i := range b.N {
		s := newSlot(b, n, uint32(i%60000)+1)
		start := time.Now()
		add(b, n, s)
		adds += time.Since(start)
		start = time.Now()
		if err := n.Remove(s); err != nil {
			b.Fatal(err)
		}
		removes += time.Since(start)
	}
	b.ReportMetric(float64(adds.Microseconds())/float64(b.N), "add-µs")
	b.ReportMetric(float64(removes.Microseconds())/float64(b.N), "remove-µs")
}
