package netd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/ca"
	"s0.run/netd/internal/dataplane"
	"s0.run/netd/internal/dial"
	"s0.run/netd/internal/dnsproxy"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/proxy"
	"s0.run/netd/internal/table"
	"s0.run/netd/internal/vault"
)

// resolvConf names the machine's own resolvers, which are asked when no others are
// configured.
const resolvConf = "/etc/resolv.conf"

// front is what sandboxes talk to: the proxy and the resolver on the data plane's
// sockets. It is told of policies after the kernel judges by them.
type front struct {
	*proxy.Proxy
	vault     *vault.Vault
	held      *held
	sandboxes *table.Table // set before anything is served
}

// frontConfig is what a front is made of.
type frontConfig struct {
	Config
	host, inside *os.File // network namespaces
	records      *audit.Queue
	held         *held
}

// newFront makes a front, which knows no sandbox before it is given its table.
func newFront(cfg frontConfig) (*front, error) {
	keys, identities, err := readKeys(cfg.CredentialKeyDir)
	if err != nil {
		return nil, err
	}
	resolvers := cfg.Resolvers
	if len(resolvers) == 0 {
		if resolvers, err = dnsproxy.Upstreams(resolvConf); err != nil {
			return nil, fmt.Errorf("reading the machine's resolvers: %w", err)
		}
	}
	f := &front{held: cfg.held, vault: vault.New(vault.Config{Keys: keys})}
	f.Proxy, err = proxy.New(proxy.Config{
		Lookup: func(a netip.Addr) (guest.Guest, bool) { return f.sandboxes.Lookup(a) },
		Learn: func(g guest.Guest, a netip.Addr, slots uint64, ttl time.Duration) {
			f.sandboxes.Learn(g, a, slots, ttl)
		},
		Forbidden: func(a netip.Addr) bool { return f.sandboxes.Forbidden(a) },
		Resolvers: resolvers, DialResolver: dial.ResolverFrom(cfg.host, cfg.inside),
		Credentials: f.vault, Identities: identities, Records: cfg.records, Keep: cfg.held.keep, Log: cfg.Log,
	})
	return f, err
}

// readKeys reads what opens credentials, and what sandboxes' authorities are made of;
// without a directory nothing opens, and authorities end with this process.
func readKeys(dir string) (*sealed.Keyring, *ca.Root, error) {
	if dir == "" {
		return &sealed.Keyring{}, ca.NewLoneRoot(), nil
	}
	keys, err := sealed.ReadKeyring(dir)
	if err != nil {
		return nil, nil, err
	}
	identities, err := ca.NewRoot(keys.Roots())
	return keys, identities, err
}

// start serves the sockets until the stack is stopped.
func (f *front) start(l *dataplane.Listeners, s *daemon.Stack) {
	s.Start("proxy", f.Run)
	s.Start("proxy's connections", func(ctx context.Context) error {
		return together(ctx, f.resume,
			func(ctx context.Context) error { return f.Serve(ctx, l.Proxy4) },
			func(ctx context.Context) error { return f.Serve(ctx, l.Proxy6) })
	})
	s.Start("DNS, IPv4", func(ctx context.Context) error { return f.ServeDNS(ctx, l.DNSUDP4, l.DNSTCP4) })
	s.Start("DNS, IPv6", func(ctx context.Context) error { return f.ServeDNS(ctx, l.DNSUDP6, l.DNSTCP6) })
}

// together runs parts that end at once, when ctx does or the first of them.
func together(ctx context.Context, parts ...func(context.Context) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ends := make(chan error, len(parts))
	for _, part := range parts {
		go func() { ends <- part(ctx) }()
	}
	for range parts {
		err = errors.Join(err, <-ends)
		cancel()
	}
	return err
}

// resume goes on with what an earlier netd has left, until ctx ends.
func (f *front) resume(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case h := <-f.held.back:
			wg.Go(func() { f.Resume(ctx, h) })
		case <-ctx.Done():
			return nil
		}
	}
}

// Changing is told of a sandbox's policy and of the credentials that belong to it.
func (f *front) Changing(g guest.Guest, p netdapi.Policy) { f.vault.Set(g, p.Credentials) }

// Changed is told when they are in force.
func (f *front) Changed(g guest.Guest) { f.Proxy.Changed(g) }

// Ended is told of a sandbox's end.
func (f *front) Ended(g guest.Guest) {
	f.vault.Drop(g.ID, g.Gen)
	f.Gone(g, !f.sandboxes.Has(g.ID))
}

// CA is who answers a sandbox in others' places.
func (f *front) CA(id sandbox.ID) (netdapi.CA, error) {
	if !f.sandboxes.Has(id) {
		return netdapi.CA{}, errdefs.New(errdefs.NotFound, "sandbox %s is not attached", id)
	}
	pem, err := f.Proxy.CA(id)
	if err != nil {
		return netdapi.CA{}, err
	}
	host, err := f.SSHHost(id)
	return netdapi.CA{PEM: string(pem), SSHHost: host}, err
}
