package api

import (
	"context"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

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
	"s0.run/api/internal/runtimes"
	"s0.run/api/internal/templates"
	"s0.run/api/internal/tunnel"
	"s0.run/api/internal/volumes"
	"s0.run/api/internal/volumesync"
	"s0.run/api/internal/webhook"
	"s0.run/api/internal/wsapi"
	"s0.run/internal/nodecert"
	"s0.run/internal/sandbox"
)

// wire makes the parts from each other.
func (s *server) wire(signer *auth.Signer, id *identity.Service, authority *nodecert.Authority) {
	log, reg := s.cfg.Log, prometheus.NewRegistry()
	s.metrics = promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	s.auth = auth.NewAuthenticator(signer, s.store)
	s.catalog = templates.NewCatalog(s.store, s.domain.String(), log)
	s.table = placement.New()
	s.wireNodes(authority)
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
	s.wireHTTP(id, plane, reg)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("s0_api_free_slots", "Slots that can be claimed.", func() float64 { return float64(s.table.Free()) }),
		gauge("s0_api_synced_nodes", "Nodes whose stream is whole.", func() float64 { return float64(len(s.table.Synced())) }),
		gauge("s0_api_orphans", "Sandboxes without a row in the database: they end ten minutes after they were first seen.", func() float64 { return float64(s.lifecycle.Orphans()) }))
}

// wireNodes makes what speaks with the nodes. What they say is for parts that are made
// later: nobody hears of it before run.
func (s *server) wireNodes(authority *nodecert.Authority) {
	var dial func(context.Context, nodes.Member) (net.Conn, error)
	if authority != nil {
		s.members = members.New(members.Config{
			Store: s.store, Authority: authority, Cluster: s.cfg.Cluster, Table: s.table, Drained: s.drainedNodes, Log: s.cfg.Log,
		})
		dial = s.members.Dial
	}
	s.nodes = nodes.New(nodes.Config{
		Sockets: s.cfg.Nodes, Local: s.cfg.Local, DialMember: dial, Cluster: s.cfg.Cluster, Table: s.table, Log: s.cfg.Log,
		OnSync: func(node string) {
			s.images.Kick() // a pool of an image's tag is made anew once its digest is known
			s.pools.Kick()
			s.bandwidth.Kick()
			s.events.Follow(node)
		},
		OnEnd:    func(node string, id sandbox.ID) { s.lifecycle.Ended(node, id) },
		OnStored: func(node string, id sandbox.ID) { s.lifecycle.Stored(node, id) },
		OnGone:   func(string) { s.pools.Kick() }, // the others have its share
		OnCordon: func() { s.pools.Kick() },
	})
}

// wireHTTP makes what clients speak with.
func (s *server) wireHTTP(id *identity.Service, plane *dataplane.Plane, reg *prometheus.Registry) {
	log := s.cfg.Log
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
}

// drainedNodes has everybody look who cares which nodes get nothing new.
func (s *server) drainedNodes() {
	s.pools.Kick()
	s.lifecycle.Drained()
}

func gauge(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
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
