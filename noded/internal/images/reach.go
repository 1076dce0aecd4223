package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const (
	// dialTimeout bounds one connection, tokenTimeout a question for a token with
	// its answer.
	dialTimeout, tokenTimeout = 30 * time.Second, time.Minute
	// maxTokenBytes bounds that answer.
	maxTokenBytes = 1 << 20
	maxRedirects  = 10
)

// registries answers how to speak to a registry: a tenant names it, and it names
// others in turn, where tokens are given out and where layers are kept.
func (i *Images) registries(host string, p *progress) ([]docker.RegistryHost, error) {
	plain := slices.Contains(i.cfg.PlainHTTPHosts, host)
	defaults := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(func(string) (bool, error) { return plain, nil }))
	hosts, err := defaults(host)
	if err != nil {
		return nil, err
	}
	for n := range hosts {
		r := counted{newReach(hosts[n].Host, plain), p}
		hosts[n].Client = &http.Client{Transport: r, CheckRedirect: redirects}
		token := &http.Client{Transport: short{r}, CheckRedirect: redirects, Timeout: tokenTimeout}
		hosts[n].Authorizer = docker.NewDockerAuthorizer(docker.WithAuthClient(token))
	}
	return hosts, nil
}

func redirects(_ *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errors.New("too many redirects")
	}
	return nil
}

// reach is how far a registry may send us: to its own host, and with TLS to any
// host whose address is not one of this machine or its link. So no registry
// makes the node ask itself, or its cloud's metadata service, for anything.
type reach struct {
	name    string // the registry's own host, without a port
	plain   bool   // it is spoken to without TLS
	own     http.RoundTripper
	foreign http.RoundTripper
}

func newReach(host string, plain bool) *reach {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	foreign := docker.DefaultHTTPTransport(nil)
	foreign.DialContext = (&net.Dialer{Timeout: dialTimeout, ControlContext: refuseLocal}).DialContext
	return &reach{name: name, plain: plain, own: docker.DefaultHTTPTransport(nil), foreign: foreign}
}

// RoundTrip implements http.RoundTripper, for each hop of a redirect anew.
func (r *reach) RoundTrip(req *http.Request) (*http.Response, error) {
	own := req.URL.Hostname() == r.name
	if req.URL.Scheme != "https" && !(own && r.plain) {
		return nil, fmt.Errorf("registry %s points to %s://%s: want https", r.name, req.URL.Scheme, req.URL.Host)
	}
	if own {
		return r.own.RoundTrip(req)
	}
	if proxy, err := http.ProxyFromEnvironment(req); err != nil || proxy != nil {
		// The operator's proxy, not we, looks names up, and may be local.
		if ip, perr := netip.ParseAddr(req.URL.Hostname()); perr == nil && local(ip) {
			return nil, errLocal
		}
		return r.own.RoundTrip(req)
	}
	return r.foreign.RoundTrip(req)
}

// refuseLocal looks at the address that is dialled, after the name was looked up.
func refuseLocal(_ context.Context, _, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if local(at.Addr()) {
		return errLocal
	}
	return nil
}

var errLocal = errors.New("the registry points to an address of this machine or its link")

// metadata are the addresses of clouds' services for their machines that are not
// link-local.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16"),
}

func local(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || slices.Contains(metadata, ip)
}

// short bounds an answer that is read into memory.
type short struct{ http.RoundTripper }

func (s short) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := s.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxTokenBytes), resp.Body}
	}
	return resp, err
}
