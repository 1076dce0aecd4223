package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// maxHops bounds how far back a request's way is followed.
const maxHops = 32

// clientOf is the address that a request comes from. A proxy that the operator
// trusts says for whom it asks; of what the header claims, the last address that
// no trusted proxy has, for whoever is there could write anything before it.
func clientOf(r *http.Request, trusted []netip.Prefix) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	client, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	client = client.Unmap()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && len(hops)-i <= maxHops && among(client, trusted); i-- {
		before, ok := parseHop(hops[i])
		if !ok {
			break
		}
		client = before
	}
	return client.WithZone("").String()
}

func among(a netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

// parseHop reads an address, which some proxies write with a port.
func parseHop(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap(), true
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return a.Unmap(), err == nil
}
