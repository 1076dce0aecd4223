package webhook

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

func TestA17_Addresses(t *testing.T) {
	t.Parallel()
	for ip, want := range map[string]struct{ internet, private bool }{
		"8.8.8.8":              {true, true},
		"2606:4700::1111":      {true, true},
		"127.0.0.1":            {false, true},
		"127.1.2.3":            {false, true},
		"10.0.0.1":             {false, true},
		"172.16.0.1":           {false, true},
		"172.31.255.255":       {false, true},
		"192.168.1.1":          {false, true},
		"100.64.0.1":           {false, true},
		"::1":                  {false, true},
		"fd12::1":              {false, true},
		"::ffff:10.0.0.1":      {false, true},
		"::ffff:127.0.0.1":     {false, true},
		"::ffff:8.8.8.8":       {true, true},
		"0.0.0.0":              {},
		"0.1.2.3":              {},
		"169.254.169.254":      {},
		"169.254.170.2":        {},
		"::ffff:169.254.1.1":   {},
		"168.63.129.16":        {},
		"100.100.100.200":      {},
		"192.0.0.170":          {},
		"192.0.2.1":            {},
		"192.88.99.1":          {},
		"198.18.0.1":           {},
		"203.0.113.9":          {},
		"224.0.0.1":            {},
		"239.255.255.250":      {},
		"240.0.0.1":            {},
		"255.255.255.255":      {},
		"::":                   {},
		"::10.0.0.1":           {},
		"fe80::1":              {},
		"fec0::1":              {},
		"ff02::1":              {},
		"fd00:ec2::254":        {},
		"64:ff9b::a00:1":       {},
		"64:ff9b:1::a00:1":     {},
		"2001::1":              {},
		"2001:db8::1":          {},
		"2002:a00:1::":         {},
		"3fff::1":              {},
		"5f00::1":              {},
		"fe80::1%eth0":         {},
		"2606:4700::1111%eth0": {},
	} {
		addr := netip.MustParseAddr(ip)
		if got := (Policy{}).allows(addr, nil); got != want.internet {
			t.Errorf("%s: allowed %t, want %t", ip, got, want.internet)
		}
		if got := (Policy{AllowPrivate: true}).allows(addr, nil); got != want.private {
			t.Errorf("%s, private networks allowed: allowed %t, want %t", ip, got, want.private)
		}
	}
	if (Policy{}).allows(netip.Addr{}, nil) {
		t.Error("no address is allowed")
	}
	own := netip.MustParseAddr("8.8.8.8")
	if (Policy{}).allows(own, map[netip.Addr]bool{own: true}) {
		t.Error("this machine's own public address is allowed")
	}
}

func TestA17_URLs(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://example.com/hook?x=1":  "example.com:443",
		"http://Example.COM.:8080/":     "example.com:8080",
		"https://8.8.8.8/":              "8.8.8.8:443",
		"https://[2606:4700::1111]/":    "[2606:4700::1111]:443",
		"https://xn--bcher-kva.example": "xn--bcher-kva.example:443",
	} {
		if got, err := (Policy{}).Check(raw, "s"); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", raw, got, err, want)
		}
	}
	for _, raw := range []string{
		"", "example.com", "/hook", "//example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "javascript:alert(1)",
		"https:example.com", "https://", "https://:443/", "https://user@example.com/", "https://user:password@example.com/",
		"https://exa mple.com/", "https://example.com/\r\nX: y", "https://example.com/\x00", "https://bücher.example/",
		"https://" + strings.Repeat("a", 2048), "http://[::1", "http://example.com:99999999/",
		"http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.0.0.1/", "http://localhost/", "http://a.localhost./", "http://postgres:5432/",
		"http://[::ffff:10.0.0.1]/", "http://[::1]/", "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/", "http://[64:ff9b::a00:1]/",
	} {
		if dest, err := (Policy{}).Check(raw, "s"); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %q, %v", raw, dest, err)
		}
	}
	if _, err := (Policy{}).Check("https://example.com/", store.Secret(strings.Repeat("s", 1025))); err == nil {
		t.Error("a secret without end")
	}
	for raw, ok := range map[string]bool{"http://127.0.0.1:8080/": true, "http://localhost/": true, "http://169.254.169.254/": false, "http://2130706433/": false} {
		if _, err := (Policy{AllowPrivate: true}).Check(raw, ""); (err == nil) != ok {
			t.Errorf("%s, private networks allowed: %v", raw, err)
		}
	}
}

// receiver counts what reaches it.
func receiver(t *testing.T, h http.HandlerFunc) (*httptest.Server, *atomic.Int64) {
	t.Helper()
	hits := new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv, hits
}

func event() store.Event {
	return store.Event{
		EventID: "evt_sandbox_deleted_local-aaaaaaaaaaaaaaaaaaaaaaaaaa", Type: "sandbox.deleted", SandboxID: "local-aaaaaaaaaaaaaaaaaaaaaaaaaa",
		TeamID: uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), OccurredAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Payload: `{"reason":"deleted by a user"}`,
	}
}

// The check stands in the dial, so that a name that resolves to a forbidden
// address when it is dialled is as little use as the address itself.
func TestA17_TheDialIsChecked(t *testing.T) {
	t.Parallel()
	srv, hits := receiver(t, func(http.ResponseWriter, *http.Request) {})
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	denied, allowed := newSender(Policy{}), newSender(Policy{AllowPrivate: true})
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		l := store.WebhookLease{URL: "http://" + net.JoinHostPort(strings.Trim(host, "[]"), port)}
		if ok, outcome := denied.send(t.Context(), l, event()); ok || outcome != errDenied.Error() {
			t.Errorf("%s: %t, %s", host, ok, outcome)
		}
		if hits.Load() != 0 {
			t.Fatalf("%s was reached", host)
		}
		if ok, outcome := allowed.send(t.Context(), l, event()); !ok {
			t.Errorf("%s, private networks allowed: %s", host, outcome)
		}
		hits.Store(0)
	}
	for _, network := range []string{"udp4", "unix", "tcp"} {
		if err := (Policy{AllowPrivate: true}).control(t.Context(), network, "127.0.0.1:80", nil); !errors.Is(err, errDenied) {
			t.Errorf("%s: %v", network, err)
		}
	}
}

func TestA17_RedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	inside, reached := receiver(t, func(http.ResponseWriter, *http.Request) {})
	for _, status := range []int{301, 302, 303, 307, 308} {
		srv, _ := receiver(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside.URL, status) })
		ok, outcome := newSender(Policy{AllowPrivate: true}).send(t.Context(), store.WebhookLease{URL: srv.URL}, event())
		if ok || !strings.Contains(outcome, "redirect") || reached.Load() != 0 {
			t.Errorf("%d: %t, %s, %d reached the target", status, ok, outcome, reached.Load())
		}
	}
}

func TestA17_NoProxyOfTheEnvironment(t *testing.T) {
	t.Parallel()
	if (Policy{}).transport().Proxy != nil {
		t.Error("a proxy would connect in our place")
	}
}
