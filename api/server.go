package api

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/apidoc"
	"s0.run/api/internal/auth"
	"s0.run/api/internal/bandwidth"
	"s0.run/api/internal/capture"
	"s0.run/api/internal/claim"
	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/egress"
	"s0.run/api/internal/events"
	"s0.run/api/internal/exposure"
	"s0.run/api/internal/httpapi"
	"s0.run/api/internal/identity"
	"s0.run/api/internal/images"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/members"
	"s0.run/api/internal/metering"
	"s0.run/api/internal/ndjson"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/observe"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/pools"
	"s0.run/api/internal/quota"
	"s0.run/api/internal/replicasets"
	"s0.run/api/internal/runtimes"
	"s0.run/api/internal/services"
	"s0.run/api/internal/sso"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/api/internal/tunnel"
	"s0.run/api/internal/volumes"
	"s0.run/api/internal/volumesync"
	"s0.run/api/internal/webhook"
	"s0.run/api/internal/wsapi"
	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodecert"
	"s0.run/internal/regauth"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

const (
	databaseWait  = time.Minute      // for a database that starts at the same time
	databasePause = time.Second      // between two looks
	stopGrace     = 10 * time.Second // for requests that are being served
	loadTimeout   = 5 * time.Second
	nodesWait     = 3 * time.Second // for those that can't be reached, others don't wait longer
	listenPause   = time.Second     // before changes are listened for again
)

// server is the parts of one API server.
type server struct {
	cfg      Config
	listener net.Listener
	admin    net.Listener // nil: none
	joining  net.Listener // nil: no nodes join here
	store    *store.Store
	auth     *auth.Authenticator
	catalog  *templates.Catalog
	table    *placement.Table
	nodes    *nodes.Set
	members  *members.Keeper // nil: there are only this machine's nodes
	pools    interface {     // where there are pools: on the nodes, or in Kubernetes
		Kick()
		Run(context.Context) error
	}
	images    *images.Keeper
	registry  *images.Registry // nil: none
	network   *egress.Keeper
	volumes   *volumes.Keeper
	bandwidth *bandwidth.Keeper
	lifecycle *lifecycle.Keeper
	webhooks  *webhook.Dispatcher
	events    *events.Feed
	captures  *capture.Capturer
	claimer   *claim.Claimer
	meter     *metering.Meter
	sockets   *wsapi.Server
	watches   *ndjson.Server
	domain    services.Domain
	sso       *sso.Service
	runtimes  *runtimes.Starter
	exposure  *exposure.Proxy
	http      *http.Server
	metrics   http.Handler
	doc       *apidoc.Doc
	sealTo    *sealed.PublicKey // credentials; nil: there are none
	draining  atomic.Bool       // it stops: others shall be asked
}

// open acquires what a server needs: listeners, keys, a database with the first
// user and the builtin template in it. Nothing runs yet.
func open(ctx context.Context, cfg Config) (_ *server, err error) {
	s := &server{cfg: cfg}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, err
	}
	if cfg.AdminSocket != "" {
		if s.admin, err = daemon.ListenUnix(cfg.AdminSocket); err != nil {
			return nil, err
		}
	}
	authority, err := s.openNodes()
	if err != nil {
		return nil, err
	}
	if s.domain, err = s.publicDomain(); err != nil {
		return nil, err
	}
	key, err := auth.LoadKey(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	signer, err := auth.NewSigner(key)
	if err != nil {
		return nil, err
	}
	if s.store, err = openStore(ctx, cfg); err != nil {
		return nil, err
	}
	if s.sso, err = s.openSSO(); err != nil {
		return nil, err
	}
	if s.registry, err = s.openRegistry(); err != nil {
		return nil, err
	}
	id := identity.New(identity.Config{Store: s.store, Signer: signer, Hasher: auth.NewHasher(), RegionID: cfg.RegionID, AllowRegistration: cfg.AllowRegistration})
	if err := s.bootstrap(ctx, id); err != nil {
		return nil, err
	}
	doc, err := apidoc.New(contract)
	if err != nil {
		return nil, err
	}
	s.doc = doc
	if cfg.CredentialKeyFile != "" {
		if s.sealTo, err = sealed.ReadPublic(cfg.CredentialKeyFile); err != nil {
			return nil, err
		}
	}
	s.wire(signer, id, authority)
	if s.members != nil {
		if err := s.members.Load(ctx, s.nodes); err != nil {
			return nil, err
		}
	}
	if cfg.PoolNamespace != "" {
		if s.pools, err = replicasets.New(replicasets.Config{Catalog: s.catalog, Kubeconfig: cfg.Kubeconfig, Namespace: cfg.PoolNamespace, Cluster: cfg.Cluster, Log: cfg.Log}); err != nil {
			return nil, fmt.Errorf("pools in Kubernetes: %w", err)
		}
	}
	return s, s.catalog.Load(ctx)
}

// openNodes reads what nodes are certified with, and listens for those that want to be.
func (s *server) openNodes() (*nodecert.Authority, error) {
	if s.cfg.NodeCADir == "" {
		return nil, nil
	}
	authority, err := nodecert.EnsureAuthority(s.cfg.NodeCADir)
	if err != nil || s.cfg.NodeListen == "" {
		return authority, err
	}
	l, err := net.Listen("tcp", s.cfg.NodeListen)
	if err != nil {
		return nil, err
	}
	s.joining = daemon.Bound(l, members.MaxConns, members.MaxConnsOfOne)
	return authority, nil
}

// openSSO reads which providers there are. None of them is asked yet.
func (s *server) openSSO() (*sso.Service, error) {
	var settings sso.Settings
	if s.cfg.OIDCFile != "" {
		if err := daemon.LoadYAML(s.cfg.OIDCFile, &settings); err != nil {
			return nil, err
		}
	}
	return sso.New(sso.Config{Settings: settings, PublicURL: s.ownURL(), Store: s.store, Log: s.cfg.Log})
}

// openRegistry reads the key that the machine's registry knows as well.
func (s *server) openRegistry() (*images.Registry, error) {
	if s.cfg.Registry == "" {
		return nil, nil
	}
	key, err := regauth.LoadKey(s.cfg.RegistryKeyFile)
	if err != nil {
		return nil, err
	}
	return &images.Registry{Pull: s.cfg.Registry, Push: s.cfg.PushRegistry, Key: key}, nil
}

// ownURL is where this machine's own browsers find the server.
func (s *server) ownURL() string {
	_, port, _ := net.SplitHostPort(s.listener.Addr().String())
	return "http://localhost:" + port
}

// openStore waits for a database that is not up yet.
func openStore(ctx context.Context, cfg Config) (*store.Store, error) {
	deadline := time.Now().Add(databaseWait)
	for {
		s, err := store.Open(ctx, cfg.DatabaseURL)
		if !errdefs.Is(err, errdefs.Unavailable) || time.Now().After(deadline) {
			return s, err
		}
		cfg.Log.Warn("waiting for the database", "err", err)
		select {
		case <-time.After(databasePause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// bootstrap makes this server's region, the first user and the builtin templates.
func (s *server) bootstrap(ctx context.Context, id *identity.Service) error {
	if err := s.store.EnsureRegion(ctx, s.cfg.RegionID); err != nil {
		return err
	}
	password, err := id.Bootstrap(ctx, s.cfg.AdminEmail, s.cfg.AdminPassword)
	if err != nil {
		return fmt.Errorf("making the first user: %w", err)
	}
	if password != "" && s.cfg.OnBootstrap != nil {
		s.cfg.OnBootstrap(s.cfg.AdminEmail, password)
	}
	limits, _ := quota.Defaults(s.cfg.Quotas) // checked before
	if err := s.store.SetQuotaDefaults(ctx, limits); err != nil {
		return err
	}
	builtins := templates.Builtins{Images: maps.Clone(s.cfg.TemplateImages), PoolMin: s.cfg.PoolMin, PoolMax: s.cfg.PoolMax}
	if builtins.Images == nil {
		builtins.Images = map[string]string{}
	}
	builtins.Images["default"] = s.cfg.DefaultImage
	return builtins.Put(ctx, s.store)
}

// wire makes the parts from each other.
func (s *server) wire(signer *auth.Signer, id *identity.Service, authority *nodecert.Authority) {
	log, reg := s.cfg.Log, prometheus.NewRegistry()
	s.metrics = promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	s.auth = auth.NewAuthenticator(signer, s.store)
	s.catalog = templates.NewCatalog(s.store, s.domain.String(), log)
	s.table = placement.New()
	var dial func(context.Context, nodes.Member) (net.Conn, error)
	if authority != nil {
		s.members = members.New(members.Config{
			Store: s.store, Authority: authority, Cluster: s.cfg.Cluster, Table: s.table, Drained: s.drainedNodes, Log: log,
		})
		dial = s.members.Dial
	}
	s.nodes = nodes.New(nodes.Config{
		Sockets: s.cfg.Nodes, Local: s.cfg.Local, DialMember: dial, Cluster: s.cfg.Cluster, Table: s.table, Log: log,
		OnSync: func(node string) {
			s.pools.Kick()
			s.bandwidth.Kick()
			s.events.Follow(node)
		},
		OnEnd:    func(node string, id sandbox.ID) { s.lifecycle.Ended(node, id) },
		OnStored: func(node string, id sandbox.ID) { s.lifecycle.Stored(node, id) },
		OnGone:   func(string) { s.pools.Kick() }, // the others have its share
		OnCordon: func() { s.pools.Kick() },
	})
	s.pools = pools.New(pools.Config{Catalog: s.catalog, Table: s.table, Nodes: s.nodes, Log: log})
	s.images = images.New(images.Config{
		Store: s.store, Registry: s.registry, Allowed: s.cfg.ImageRegistries, Table: s.table, Nodes: s.nodes, Catalog: s.catalog,
		Changed: s.templatesChanged, Log: log,
	})
	s.network = egress.New(egress.Config{Store: s.store, Nodes: s.nodes, Table: s.table, Key: s.sealTo, Log: log})
	s.volumes = volumes.New(volumes.Config{Store: s.store, Table: s.table, Nodes: s.nodes, Key: s.sealTo, Log: log})
	s.lifecycle = lifecycle.New(lifecycle.Config{Store: s.store, Table: s.table, Nodes: s.nodes, Network: s.network, Volumes: s.volumes, Log: log})
	s.bandwidth = bandwidth.New(bandwidth.Config{Store: s.store, Table: s.table, Nodes: s.nodes, Log: log})
	s.meter = metering.New(metering.Config{Store: s.store, Table: s.table, Nodes: s.nodes, Log: log})
	hooks := webhook.Policy{AllowPrivate: s.cfg.WebhookAllowPrivate}
	s.webhooks = webhook.New(webhook.Config{Store: s.store, Policy: hooks, Metrics: reg, Log: log})
	s.events = events.New(events.Config{Store: s.store, Nodes: s.nodes, Changed: s.webhooks.Kick, Log: log})
	s.claimer = claim.New(claim.Config{
		Store: s.store, Catalog: s.catalog, Table: s.table, Nodes: s.nodes, Network: s.network, Volumes: s.volumes, Hooks: hooks, Metrics: claim.NewMetrics(reg), Log: log,
	})
	s.captures = capture.New(capture.Config{
		Store: s.store, Catalog: s.catalog, Nodes: s.nodes, Registry: s.images, Trusted: s.cfg.ImageRegistries,
		Changed: s.templatesChanged, Log: log,
	})
	plane := dataplane.New(dataplane.Config{Store: s.store, Table: s.table, Nodes: s.nodes, Resumer: s.lifecycle, Volumes: s.volumes})
	s.wireExposure(plane)
	proxies, _ := s.cfg.proxies() // checked before
	hosts := httpapi.NewHostList(s.hostNames())
	s.watches = ndjson.New()
	s.sockets = wsapi.New(wsapi.Config{Plane: plane, CheckOrigin: hosts.SameOrigin, Log: log})
	s.http = httpapi.New(httpapi.Config{
		Store: s.store, Auth: s.auth, Identity: id, SSO: s.sso, Catalog: s.catalog, Images: s.images, Captures: s.captures, Table: s.table, Claimer: s.claimer,
		Lifecycle: s.lifecycle, Network: s.network, Volumes: s.volumes, Plane: plane, Sockets: s.sockets, Watches: s.watches,
		Sync:    volumesync.New(volumesync.Config{Store: s.store, Plane: plane, Volumes: s.volumes, Log: log}),
		Events:  &events.View{Store: s.store, Feed: s.events, RegionID: s.cfg.RegionID},
		Observe: observe.New(observe.Config{Plane: plane, RegionID: s.cfg.RegionID}), Exposure: s.exposure, Runtimes: s.runtimes, Domain: s.domain,
		RegionID: s.cfg.RegionID, Cluster: s.cfg.Cluster, Registry: reg, Log: log,
		TemplatesChanged: s.templatesChanged, Hosts: hosts, Rate: s.cfg.RateLimit, Burst: s.cfg.RateBurst, Metrics: s.metrics, MetricsToken: s.cfg.MetricsToken,
		Doc: s.doc, TrustedProxies: proxies, Draining: s.draining.Load,
	}).Server()
	s.http.RegisterOnShutdown(s.sockets.Close)
	s.http.RegisterOnShutdown(s.watches.Close)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("s0_api_free_slots", "Slots that can be claimed.", func() float64 { return float64(s.table.Free()) }),
		gauge("s0_api_synced_nodes", "Nodes whose stream is whole.", func() float64 { return float64(len(s.table.Synced())) }))
}

// drainedNodes has everybody look who cares which nodes get nothing new.
func (s *server) drainedNodes() {
	s.pools.Kick()
	s.lifecycle.Drained()
}

func gauge(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}

// publicDomain is where sandboxes' services are found from outside: by default
// on this machine, whose every name below localhost is itself.
func (s *server) publicDomain() (services.Domain, error) {
	root := s.cfg.PublicDomain
	if root == "" {
		_, port, _ := net.SplitHostPort(s.listener.Addr().String())
		root = "http://s0.localhost:" + port
	}
	return services.NewDomain(s.cfg.RegionID, root)
}

// wireExposure makes what serves sandboxes' ports.
func (s *server) wireExposure(plane *dataplane.Plane) {
	s.runtimes = runtimes.New(runtimes.Config{Plane: plane, Tunnels: tunnel.New(plane), Log: s.cfg.Log})
	s.exposure = exposure.New(exposure.Config{
		Store: s.store, Runtimes: s.runtimes, Resumer: waker{s.lifecycle}, Domain: s.domain,
		OurToken: s.auth.MayBeOurs, Rate: s.cfg.RateLimit, Burst: s.cfg.RateBurst, Log: s.cfg.Log,
	})
}

// waker is what an exposed service's visitor may do to a sandbox that is asleep.
type waker struct{ keeper *lifecycle.Keeper }

// Resume implements exposure.Resumer.
func (w waker) Resume(ctx context.Context, to dataplane.Target) error {
	_, err := w.keeper.Resume(ctx, to.Team, to.ID)
	return err
}

func (s *server) hostNames() []string {
	host, _, _ := net.SplitHostPort(s.cfg.Listen)
	return append([]string{host, s.sso.PublicHost()}, s.cfg.AllowedHosts...)
}

// templatesChanged makes a change that was stored here seen here at once; other
// replicas are told by the database.
func (s *server) templatesChanged(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	if err := s.catalog.Load(ctx); err != nil {
		s.cfg.Log.Warn("could not load the templates; the database will tell again", "err", err)
		return
	}
	s.pools.Kick()
}

// run serves until ctx ends. The requests end before what they work with.
func (s *server) run(ctx context.Context) error {
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	g, background := errgroup.WithContext(background)
	context.AfterFunc(background, stopServing)
	g.Go(func() error { return s.nodes.Run(background) })
	g.Go(func() error { return s.pools.Run(background) })
	g.Go(func() error { return s.images.Run(background) })
	g.Go(func() error { return s.lifecycle.Run(background) })
	g.Go(func() error { return s.network.Run(background) })
	g.Go(func() error { return s.volumes.Run(background) })
	g.Go(func() error { return s.bandwidth.Run(background) })
	g.Go(func() error { return s.meter.Run(background) })
	g.Go(func() error { return s.events.Run(background) })
	g.Go(func() error { return s.webhooks.Run(background) })
	g.Go(func() error { return s.followChanges(background) })
	if s.admin != nil {
		g.Go(func() error { return s.serveAdmin(background) })
	}
	if s.members != nil {
		g.Go(func() error { return s.members.Run(background, s.nodes) })
	}
	if s.joining != nil {
		srv := s.members.Server()
		g.Go(func() error {
			return daemon.Serve(background, srv, tls.NewListener(s.joining, srv.TLSConfig), stopGrace)
		})
	}
	s.awaitNodes(serving)
	if s.cfg.Ready != nil {
		s.cfg.Ready(s.listener.Addr().String())
	}
	err := daemon.Serve(s.drained(serving), s.http, s.listener, stopGrace)
	s.sockets.Close()
	s.watches.Close()
	s.exposure.Close()
	s.runtimes.Close()
	s.captures.Close()
	s.claimer.Wait()
	stopBackground()
	if failed := g.Wait(); failed != nil {
		return failed
	}
	return err
}

// awaitNodes lets requests wait in the listener's queue until it is known which node is which.
func (s *server) awaitNodes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, nodesWait)
	defer cancel()
	s.nodes.Settled(ctx)
}

func (s *server) serveAdmin(ctx context.Context) error {
	mux := daemon.AdminMux()
	mux.Handle("GET /metrics", s.metrics)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: loadTimeout, ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
	return daemon.Serve(ctx, srv, s.admin, 0)
}

// drained ends a while after ctx does. Until then everything is served, but /readyz
// says no: whoever spreads requests over servers goes elsewhere before this one
// takes no more.
func (s *server) drained(ctx context.Context) context.Context {
	drained, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		s.draining.Store(true)
		time.AfterFunc(s.cfg.Drain, cancel)
	})
	return drained
}

// followChanges drops from memory what changed in the database, whoever changed
// it. While nobody can tell, what is in memory has its own short life.
func (s *server) followChanges(ctx context.Context) error {
	for {
		err := s.store.Listen(ctx, func(table string) { s.changed(ctx, table) })
		if ctx.Err() != nil {
			return nil
		}
		s.cfg.Log.Warn("lost the database's notifications", "err", err)
		select {
		case <-time.After(listenPause/2 + rand.N(listenPause)): // replicas must not come back in step (G14)
		case <-ctx.Done():
			return nil
		}
	}
}

// changed handles one notification; "" stands for whatever may have been missed.
func (s *server) changed(ctx context.Context, table string) {
	switch table {
	case "", store.TableAPIKeys, store.TableUsers, store.TableTeams, store.TableMembers:
		s.auth.Forget()
	}
	switch table {
	case "", store.TableQuotas, store.TableDefaults:
		s.claimer.LimitsChanged()
		s.bandwidth.Kick()
	}
	switch table {
	case "", store.TableUses:
		s.network.Kick()
	}
	switch table {
	case "", store.TableNodes:
		if s.members != nil {
			s.members.Kick()
		}
	}
	if table != store.TableTemplates && table != "" {
		return
	}
	for ctx.Err() == nil {
		err := s.catalog.Load(ctx)
		if err == nil {
			s.pools.Kick()
			return
		}
		s.cfg.Log.Warn("could not load the templates", "err", err)
		select {
		case <-time.After(listenPause):
		case <-ctx.Done():
		}
	}
}

// close gives back what open acquired.
func (s *server) close() {
	if s.listener != nil {
		s.listener.Close()
	}
	if s.admin != nil {
		s.admin.Close()
	}
	if s.joining != nil {
		s.joining.Close()
	}
	if s.store != nil {
		s.store.Close()
	}
}
