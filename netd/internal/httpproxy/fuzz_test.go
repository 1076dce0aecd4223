package httpproxy

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"testing"

	"s0.run/internal/policy"
)

// FuzzAuthority: whom a request is for is one canonical name or one plain address, and
// reading what it stands for again changes nothing.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"good.example", "GOOD.example.:443", "1.2.3.4:80", "[::1]", "[::ffff:1.2.3.4]:80", "[fe80::1%25x]", "127.1", "a:b", "", ":80", "good.example:0", "x@y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		name, addr, port, err := authority(host)
		if err != nil {
			return
		}
		if (name == "") == !addr.IsValid() {
			t.Fatalf("%q is both or neither: %q, %v", host, name, addr)
		}
		bare := name
		if name == "" {
			if bare = addr.String(); addr.Zone() != "" || addr.Is4In6() {
				t.Fatalf("%q is %v", host, addr)
			}
		} else if again, err := policy.Name(name); err != nil || again != name {
			t.Fatalf("%q is %q, then %q", host, name, again)
		}
		again := net.JoinHostPort(bare, strconv.Itoa(int(max(port, 1))))
		if u, err := url.Parse("http://" + again + "/"); err != nil || u.User != nil || u.Path != "/" {
			t.Fatalf("%q becomes %q", host, again)
		}
		if n, a, p, err := authority(again); err != nil || n != name || a != addr || p != max(port, 1) {
			t.Fatalf("%q: %q, %v, %d; then %q, %v, %d, %v", host, name, addr, port, n, a, p, err)
		}
		if _, err := netip.ParseAddr(name); name != "" && err == nil {
			t.Fatalf("%q is an address and a name", host)
		}
	})
}
