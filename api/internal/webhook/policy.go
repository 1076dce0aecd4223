package webhook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/publicnet"
)

const (
	maxURLBytes    = 2048
	maxSecretBytes = 1024
)

// Policy says where webhooks may go. The zero Policy is for the internet alone.
type Policy struct {
	// AllowPrivate lets webhooks reach loopback, private and shared networks and
	// this machine's own addresses: for development, and where every tenant may
	// reach what the API server reaches.
	AllowPrivate bool
}

// Check refuses a webhook that can't be or must not be, as far as its text tells.
// What its name resolves to is looked at when it is dialled, each time (A17).
func (p Policy) Check(raw string, secret store.Secret) (destination string, err error) {
	u, err := parse(raw)
	if err != nil {
		return "", errdefs.New(errdefs.InvalidArgument, "config.webhook.url: %v", err)
	}
	if len(secret) > maxSecretBytes {
		return "", errdefs.New(errdefs.InvalidArgument, "config.webhook.secret: longer than %d bytes", maxSecretBytes)
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if err := p.checkHost(host); err != nil {
		return "", errdefs.New(errdefs.InvalidArgument, "config.webhook.url: %v", err)
	}
	return net.JoinHostPort(host, port(u)), nil
}

func parse(raw string) (*url.URL, error) {
	if raw == "" {
		return nil, errors.New("it is required")
	}
	if len(raw) > maxURLBytes || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("want at most %d bytes of printable ASCII", maxURLBytes)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Opaque != "" || u.Hostname() == "":
		return nil, errors.New("want an absolute URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("want http or https")
	case u.User != nil:
		return nil, errors.New("a user name or password is not allowed")
	}
	if n, err := strconv.ParseUint(port(u), 10, 16); err != nil || n == 0 {
		return nil, errors.New("want a port from 1 to 65535")
	}
	return u, nil
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}

func (p Policy) checkHost(host string) error {
	if ip, err := netip.ParseAddr(host); err == nil {
		if !p.allows(ip, nil) {
			return errors.New("this address is not allowed")
		}
		return nil
	}
	labels := strings.Split(host, ".")
	last := labels[len(labels)-1]
	switch {
	case last == "" || strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x"):
		return errors.New("this host is neither a name nor an address in its plain form")
	case !p.AllowPrivate && (last == "localhost" || len(labels) == 1): // names of this machine and its network
		return errors.New("this address is not allowed")
	}
	return nil
}

// errDenied is what dialling an address ends in that the policy does not allow.
var errDenied = errors.New("this address is not allowed")

// control is called by the dialer with every address that it is about to connect
// to, after the name was resolved: what it refuses is not connected to, however
// the name got that address.
func (p Policy) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return errDenied
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil || !p.allows(to.Addr(), ownAddresses()) {
		return errDenied
	}
	return nil
}

// ownAddresses are this machine's: what listens on all of them trusts whoever
// comes from here.
func ownAddresses() map[netip.Addr]bool {
	own := map[netip.Addr]bool{}
	list, _ := net.InterfaceAddrs() // without it the ranges below still hold
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own[ip.Unmap()] = true
			}
		}
	}
	return own
}

func (p Policy) allows(ip netip.Addr, own map[netip.Addr]bool) bool {
	if publicnet.IsPrivate(ip) || own[ip.Unmap()] && publicnet.Is(ip) {
		return p.AllowPrivate
	}
	return publicnet.Is(ip)
}

// transport makes connections that obey the policy, one for each attempt: no
// proxy from the environment, and no connection that was checked for another.
func (p Policy) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: attemptTimeout, ControlContext: p.control}
	return &http.Transport{
		DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true,
		TLSHandshakeTimeout: attemptTimeout, ResponseHeaderTimeout: attemptTimeout, MaxResponseHeaderBytes: maxAnswerHeader,
	}
}
