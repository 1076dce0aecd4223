package httpapi

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// Whose bucket a request is charged to, and whose address is recorded, is not the
// client's to choose.
func TestClientIsWhatAnAttackerCannotChange(t *testing.T) {
	t.Parallel()
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for name, c := range map[string]struct {
		remote, forwarded string
		trusted           []netip.Prefix
		want              string
	}{
		"an address":                 {"192.0.2.1:1000", "", nil, "192.0.2.1"},
		"believed by nobody":         {"192.0.2.1:1000", "203.0.113.9", nil, "192.0.2.1"},
		"not believed of a stranger": {"192.0.2.1:1000", "203.0.113.9", trusted, "192.0.2.1"},
		"of a proxy":                 {"10.0.0.1:1000", "203.0.113.9", trusted, "203.0.113.9"},
		"the right-most":             {"10.0.0.1:1000", "198.51.100.1, 203.0.113.9", trusted, "203.0.113.9"},
		"through two proxies":        {"10.0.0.1:1000", "198.51.100.1, 203.0.113.9,10.9.9.9", trusted, "203.0.113.9"},
		"with a port":                {"10.0.0.1:1000", "203.0.113.9:4711", trusted, "203.0.113.9"},
		"IPv6 with a port":           {"[fd00::1]:1000", "[2001:db8::1]:4711", trusted, "2001:db8::1"},
		"IPv6":                       {"[fd00::1]:1000", "2001:db8::1", trusted, "2001:db8::1"},
		"all are proxies":            {"10.0.0.1:1000", "10.0.0.2", trusted, "10.0.0.2"},
		"no address":                 {"10.0.0.1:1000", "203.0.113.9, unknown", trusted, "10.0.0.1"},
		"nothing":                    {"10.0.0.1:1000", "", trusted, "10.0.0.1"},
		"without end":                {"10.0.0.1:1000", "203.0.113.9," + strings.Repeat("10.0.0.3,", 1000) + "10.0.0.2", trusted, "10.0.0.3"},
		"mapped":                     {"[::ffff:192.0.2.1]:1", "", nil, "192.0.2.1"},
		"mapped proxy":               {"[::ffff:10.0.0.1]:1", "203.0.113.9", trusted, "203.0.113.9"},
		"with a zone":                {"[fe80::1%eth0]:1", "", nil, "fe80::1"},
		"a unix socket":              {"@", "203.0.113.9", trusted, "@"},
	} {
		r := &http.Request{RemoteAddr: c.remote, Header: http.Header{}}
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := clientOf(r, c.trusted); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
