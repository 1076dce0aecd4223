package images

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"

	"s0.run/internal/errdefs"
	"s0.run/internal/publicnet"
)

const (
	// dialTimeout bounds one connection, tokenTimeout a question for a token with
	// its answer.
	dialTimeout, tokenTimeout = 30 * time.Second, time.Minute
	// maxTokenBytes bounds that answer.
	maxTokenBytes = 1 << 20
	maxRedirects  = 10
)

func (i *Images) resolver(p *progress) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(host string) ([]docker.RegistryHost, error) {
		return i.registries(host, p)
	}})
}

// registries answers how to speak to a registry: a tenant names it, and it names
// others in turn, where tokens are given out and where layers are kept.
func (i *Images) registries(host string, p *progress) ([]docker.RegistryHost, error) {
	plain := slices.Contains(i.cfg.PlainHTTPHosts, host)
	if !plain && !i.cfg.Registries.Allows(host) {
		return nil, refusal(errdefs.Unprocessable, "registry %s is not one that this node may pull from", host)
	}
	vouched := plain || i.cfg.Registries.Lists(host)
	defaults := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(func(string) (bool, error) { return plain, nil }))
	hosts, err := defaults(host)
	if err != nil {
		return nil, err
	}
	for n := range hosts {
		r := counted{newReach(hosts[n].Host, plain, vouched), p}
		hosts[n].Client = &http.Client{Transport: r, CheckRedirect: redirects}
		token := &http.Client{Transport: short{r}, CheckRedirect: redirects, Timeout: tokenTimeout}
		hosts[n].Authorizer = docker.NewDockerAuthorizer(docker.WithAuthClient(token), docker.WithAuthCreds(i.credentials(host)))
	}
	return hosts, nil
}

// credentials gives the node's own to the registry that they are for: it alone is
// asked as who we are, also when it sends us elsewhere for a token.
func (i *Images) credentials(registry string) func(string) (string, string, error) {
	return func(string) (string, string, error) {
		if i.cfg.Credentials == nil {
			return "", "", nil
		}
		user, password := i.cfg.Credentials(registry)
		return user, password, nil
	}
}

func redirects(_ *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errors.New("too many redirects")
	}
	return nil
}

// reach is how far a registry may send us: to its own host, and with TLS to any
// host whose address is a public one. So no registry makes the node ask itself,
// its cloud's metadata service or its network for anything; the registry itself
// may be there when the operator has named it.
type reach struct {
	name    string // the registry's own host, without a port
	plain   bool   // it is spoken to without TLS
	own     http.RoundTripper
	foreign http.RoundTripper
	proxied http.RoundTripper // through the operator's proxy
}

func newReach(host string, plain, vouched bool) *reach {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	foreign := docker.DefaultHTTPTransport(nil)
	foreign.DialContext = (&net.Dialer{Timeout: dialTimeout, ControlContext: publicnet.Control}).DialContext
	r := &reach{name: name, plain: plain, own: foreign, foreign: foreign, proxied: docker.DefaultHTTPTransport(nil)}
	if vouched {
		r.own = r.proxied
	}
	return r
}

// RoundTrip implements http.RoundTripper, for each hop of a redirect anew.
func (r *reach) RoundTrip(req *http.Request) (*http.Response, error) {
	own := req.URL.Hostname() == r.name
	if req.URL.Scheme != "https" && !(own && r.plain) {
		return nil, fmt.Errorf("registry %s points to %s://%s: want https", r.name, req.URL.Scheme, req.URL.Host)
	}
	if own && r.own == r.proxied {
		return r.own.RoundTrip(req)
	}
	if proxy, err := http.ProxyFromEnvironment(req); err != nil || proxy != nil {
		// The operator's proxy, not we, looks names up, and may be local.
		if ip, perr := netip.ParseAddr(req.URL.Hostname()); perr == nil && !publicnet.Is(ip) {
			return nil, publicnet.ErrNotPublic
		}
		return r.proxied.RoundTrip(req)
	}
	return r.foreign.RoundTrip(req)
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
