package api

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"s0.run/api/internal/apidoc"
	"s0.run/api/internal/auth"
	"s0.run/api/internal/bandwidth"
	"s0.run/api/internal/capture"
	"s0.run/api/internal/claim"
	"s0.run/api/internal/egress"
	"s0.run/api/internal/events"
	"s0.run/api/internal/exposure"
	"s0.run/api/internal/identity"
	"s0.run/api/internal/images"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/members"
	"s0.run/api/internal/metering"
	"s0.run/api/internal/ndjson"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/quota"
	"s0.run/api/internal/replicasets"
	"s0.run/api/internal/runtimes"
	"s0.run/api/internal/services"
	"s0.run/api/internal/sso"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/api/internal/volumes"
	"s0.run/api/internal/webhook"
	"s0.run/api/internal/wsapi"
	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodecert"
	"s0.run/internal/regauth"
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
	signer, err := openSigner(cfg.KeyFile)
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
	if s.doc, err = readContract(); err != nil {
		return nil, err
	}
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
	if err := s.openPools(); err != nil {
		return nil, err
	}
	return s, s.catalog.Load(ctx)
}

func openSigner(keyFile string) (*auth.Signer, error) {
	key, err := auth.LoadKey(keyFile)
	if err != nil {
		return nil, err
	}
	return auth.NewSigner(key)
}

// openPools has Kubernetes keep the pools, where it shall.
func (s *server) openPools() (err error) {
	if s.cfg.PoolNamespace == "" {
		return nil
	}
	s.pools, err = replicasets.New(replicasets.Config{
		Catalog: s.catalog, Kubeconfig: s.cfg.Kubeconfig, Namespace: s.cfg.PoolNamespace, Cluster: s.cfg.Cluster, Log: s.cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("pools in Kubernetes: %w", err)
	}
	return nil
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
