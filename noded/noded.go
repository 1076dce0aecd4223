// Package noded is the daemon that owns a node's sandboxes: it warms slots, turns
// them into tenants' sandboxes, and ends them.
//
// This package wires the parts in internal/ to each other and to the machine,
// in the order in which they need one another, and takes them down in the
// reverse. Its journal is the truth about the node; the sandboxes go on running
// without it. It knows no database, no Kubernetes and no tenant's name beyond
// what a claim tells.
package noded

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"s0.run/internal/daemon"
	"s0.run/internal/netdapi"
	"s0.run/internal/nodeapi"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/egress"
	"s0.run/noded/internal/events"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/member"
	"s0.run/noded/internal/procevents"
	"s0.run/noded/internal/server"
	"s0.run/noded/internal/slots"
	"s0.run/noded/internal/snapshots"
	"s0.run/noded/internal/stats"
	"s0.run/noded/internal/trust"
)

const (
	// stopGrace is what running calls get to finish when the node stops; streams
	// never do, so it is short.
	stopGrace = time.Second
	// headerTimeout and idleTimeout bound what a connection may keep waiting.
	headerTimeout, idleTimeout = 5 * time.Second, 2 * time.Minute
	// readyTimeout bounds /readyz.
	readyTimeout = 3 * time.Second
	// maxStreams is per connection: api has every attached reader on one.
	maxStreams = 10000
	// maxFrameBytes is what a client keeps for each request whose body goes on.
	maxFrameBytes = 32 << 10
	// A request whose sandbox does not read it holds up to streamWindow. All of them
	// together must never use up connWindow: one connection carries every tenant's.
	streamWindow = 256 << 10
	connWindow   = 1 << 30

	// API servers have two connections each. Who says nothing is hung up on after
	// headerTimeout, its handshake included.
	maxConns, maxConnsOfOne = 1024, 64
)

// Run runs a noded until ctx ends. Sandboxes outlive it; the next Run with the
// same directories takes them up again.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("noded: %w", err)
	}
	s := daemon.NewStack()
	defer s.Stop()
	if err := open(ctx, cfg, s); err != nil {
		return fmt.Errorf("noded: %w", err)
	}
	if err := s.Wait(ctx); err != nil {
		return fmt.Errorf("noded: %w", err)
	}
	return nil
}

// open brings everything up, the journal first and the listener last.
func open(ctx context.Context, cfg Config, s *daemon.Stack) error {
	classes, err := runtimeClasses(ctx, cfg)
	if err != nil {
		return err
	}
	if err := lock(cfg.RunDir, s); err != nil {
		return err
	}
	j, err := openJournal(cfg.DataDir, s)
	if err != nil {
		return err
	}
	m, err := machineOf(cfg, classes, s)
	if err != nil {
		return err
	}
	store, err := openObjectStore(cfg, m.disk)
	if err != nil {
		return err
	}
	metrics, hub := newMetrics(), events.NewHub()
	believed := trust.Dir(filepath.Join(cfg.RunDir, "sandboxes"))
	agent, err := openEgress(cfg, believed)
	if err != nil {
		return err
	}
	portals, err := openVolumes(cfg, s)
	if err != nil {
		return err
	}
	var sampler *stats.Sampler // is there before anything runs
	manager := lifecycle.New(lifecycle.Config{
		Cluster: cfg.Cluster, Scope: cfg.scope(), Max: cfg.MaxSandboxes, ColdStarts: cfg.ColdStarts,
		DataDir: filepath.Join(cfg.DataDir, "sandboxes"), ImageDir: filepath.Join(cfg.DataDir, "paused"), Snapshots: snapshots.NewStore(filepath.Join(cfg.DataDir, "snapshots")), RunDir: string(believed), BinDir: cfg.ProcdDir,
		Journal: j, Runtime: m.runtime, Images: m.images, Disk: m.disk, Archive: store.forLifecycle(), Network: m.network, Egress: m.egressOr(agent), Groups: m.groups, Volumes: portals.forLifecycle(), Guests: m.guests,
		Hub: hub, Metrics: lifecycle.NewMetrics(metrics), Log: cfg.Log,
		Ending: func(r lifecycle.Running) { sampler.Ended(r) },
	})
	sampler = stats.New(stats.Config{Sandboxes: manager, Groups: m.usage, Traffic: m.traffic, Verdicts: agent, Metrics: metrics, Log: cfg.Log})
	if err := manager.Load(); err != nil {
		return err
	}
	s.Start("egress", agent.Run)
	s.Start("lifecycle", manager.Run)
	manager.Adopt(ctx)
	store.keep(cfg, manager, m.disk, metrics, s)
	pools := slots.New(slots.Config{Lifecycle: manager, Images: m.images, Warmups: warmups(), Hub: hub, Metrics: metrics, Log: cfg.Log})
	s.Start("pools", pools.Run)
	s.Start("images", func(ctx context.Context) error { return m.images.Run(ctx, inUse(pools, manager)) })
	if err := serveAdmin(cfg, s, metrics, manager, m.ready); err != nil {
		return err
	}
	s.Start("stats", sampler.Run)
	stopping := make(chan struct{})
	relay := procevents.New(procevents.Config{Hub: hub, Proc: manager.Proc, Stopping: stopping, Log: cfg.Log})
	s.Start("events relay", relay.Run)
	return serve(cfg, s, stopping, server.New(server.Config{
		Info: info(cfg, classes), Lifecycle: manager, Pools: pools, Stats: sampler, Images: m.images, Layers: m.layers, Archive: store.forServer(), Volumes: portals.forServer(), Hub: hub, Events: relay, Network: agent, Stopping: stopping, Log: cfg.Log,
	}))
}

func openJournal(dir string, s *daemon.Stack) (*journal.Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	j, err := journal.Open(filepath.Join(dir, "journal.db"))
	if err == nil {
		s.Start("journal", j.Run)
	}
	return j, err
}

// inUse tells which images a slot or a sandbox uses; not ok: that is not known yet.
func inUse(pools *slots.Pools, manager *lifecycle.Manager) func() (refs []string, ok bool) {
	return func() (refs []string, ok bool) {
		refs, ok = pools.Wanted()
		return append(refs, manager.Images()...), ok
	}
}

func newMetrics() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// openEgress makes what tells netd: whom sandboxes believe is written before it is told.
func openEgress(cfg Config, believed trust.Dir) (*egress.Agent, error) {
	if err := believed.Prepare(); err != nil {
		return nil, err
	}
	agent := egress.New(egress.Config{Socket: cfg.NetdSocket, Log: cfg.Log, Believe: func(id sandbox.ID, who netdapi.CA, ssh []policy.Server) error {
		return believed.Believe(id, trust.Identity{Certificate: who.PEM, HostKey: who.SSHHost}, ssh)
	}})
	return agent, agent.LoadBandwidth(filepath.Join(cfg.DataDir, "bandwidth.json"))
}

// warmups is how many slots are warmed at a time: a start uses about one CPU,
// and the node is there for the sandboxes that run.
func warmups() int { return min(max(runtime.NumCPU()/2, 1), 4) }

func info(cfg Config, classes []string) *nodeapi.InfoResponse {
	return &nodeapi.InfoResponse{Node: cfg.Node, Cluster: cfg.Cluster, Version: cfg.Version, RuntimeClasses: classes, NetworkPolicy: cfg.NetdSocket != "", MaxSandboxes: uint32(cfg.MaxSandboxes)}
}

// lock makes the run directory this process's alone.
func lock(dir string, s *daemon.Stack) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("run dir %s is in use by another noded: %w", dir, err)
	}
	s.Push(func() { f.Close() })
	return nil
}

// nodeServer serves the node API on one listener.
func nodeServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrameBytes,
			MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow,
		},
	}
}

// localServer serves it on this machine.
func localServer(h http.Handler) *http.Server {
	srv := nodeServer(h)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}

// serve listens for the node API and says that the node is ready. It closes
// stopping when it is told to stop.
func serve(cfg Config, s *daemon.Stack, stopping chan<- struct{}, h http.Handler) error {
	l, err := daemon.ListenUnix(cfg.Socket)
	if err != nil {
		return err
	}
	if err := serveMembers(cfg, s, h); err != nil {
		l.Close()
		return err
	}
	if cfg.Local != nil {
		s.Start("node API within the process", func(ctx context.Context) error { return cfg.Local.Serve(ctx, h, stopGrace) })
	}
	// Stopped before the others: whoever follows the node's events ends then, wherever he is.
	s.Start("node API", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { close(stopping) })
		defer stop()
		return daemon.Serve(ctx, localServer(h), l, stopGrace)
	})
	cfg.Log.Info("noded is ready", "node", cfg.Node, "socket", cfg.Socket)
	if cfg.Ready != nil {
		cfg.Ready()
	}
	return nil
}

// serveMembers serves the node API to API servers of the cluster on other machines, as soon
// as this node is a member of it.
func serveMembers(cfg Config, s *daemon.Stack, h http.Handler) error {
	if cfg.Listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	m, err := member.Open(member.Config{
		Dir: cfg.CertDir, Cluster: cfg.Cluster, Node: cfg.Node, ControlPlane: cfg.ControlPlane, TokenFile: cfg.JoinTokenFile,
		Pin: cfg.ControlPlanePin, TrustFile: cfg.ControlPlaneCA, Advertise: cfg.advertised(l.Addr()), Log: cfg.Log,
	})
	if err != nil {
		l.Close()
		return err
	}
	srv := nodeServer(h)
	srv.Protocols.SetHTTP2(true)
	srv.TLSConfig, srv.ErrorLog = m.TLS(), slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug) // anybody can fill it
	s.Start("node API for members", func(ctx context.Context) error {
		return daemon.Serve(ctx, srv, tls.NewListener(daemon.Bound(l, maxConns, maxConnsOfOne), srv.TLSConfig), stopGrace)
	})
	s.Start("membership", m.Run)
	cfg.Log.Info("noded listens for API servers", "node", cfg.Node, "address", l.Addr().String())
	return nil
}

// advertised is where servers are told to reach this node; without a host, they are told
// the address that it asks them from.
func (c Config) advertised(bound net.Addr) string {
	if c.Advertise != "" {
		return c.Advertise
	}
	tcp, ok := bound.(*net.TCPAddr)
	if !ok || tcp.IP.IsUnspecified() {
		_, port, _ := net.SplitHostPort(bound.String())
		return net.JoinHostPort("", port)
	}
	return bound.String()
}

// serveAdmin serves what operators and probes ask: healthy is a node whose state
// can be looked at, ready one whose containerd answers, too.
func serveAdmin(cfg Config, s *daemon.Stack, metrics *prometheus.Registry, m *lifecycle.Manager, ready func(context.Context) error) error {
	if cfg.AdminSocket == "" {
		return nil
	}
	l, err := daemon.ListenUnix(cfg.AdminSocket)
	if err != nil {
		return err
	}
	mux := daemon.AdminMux()
	mux.Handle("/metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok, holding", m.Holding()) })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	s.Start("admin", func(ctx context.Context) error {
		return daemon.Serve(ctx, srv, l, stopGrace)
	})
	return nil
}
