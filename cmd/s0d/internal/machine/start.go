package machine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"s0.run/api"
	"s0.run/cmd/s0d/internal/child"
	"s0.run/cmd/s0d/internal/containerd"
	"s0.run/cmd/s0d/internal/install"
	"s0.run/cmd/s0d/internal/node"
	"s0.run/cmd/s0d/internal/postgres"
	"s0.run/internal/sealed"
	"s0.run/noded"
)

// start brings everything up in the order of who needs whom.
func (s *server) start(ctx context.Context) error {
	s.launch(ctx, "control socket", func(ctx context.Context) error { return s.control.serve(ctx, s.cfg.controlSocket()) })
	s.launch(ctx, "logs", func(ctx context.Context) error {
		child.TrimLogs(ctx, filepath.Dir(s.cfg.LogFile()), s.log)
		return nil
	})
	images, err := s.startRegistry(ctx)
	if err != nil {
		return err
	}
	if err := s.startChildren(ctx); err != nil {
		return err
	}
	if err := s.startVolumed(ctx); err != nil {
		return err
	}
	if err := s.startNoded(ctx); err != nil {
		return err
	}
	if err := s.startNetd(ctx); err != nil {
		return err
	}
	if err := s.startAPI(ctx, images); err != nil {
		return err
	}
	s.mintKey(ctx)
	return s.awaitWarm(ctx)
}

// startChildren starts containerd and PostgreSQL beside each other.
func (s *server) startChildren(ctx context.Context) error {
	var children []child.Config
	ctrd := containerd.New(containerd.Config{
		Binary: s.cfg.binary("containerd"), ShimDir: s.cfg.BinDir,
		Root: s.cfg.data("containerd"), State: s.cfg.run("containerd"), Namespace: containerdNamespace, Nice: s.cfg.Nice,
	})
	if err := ctrd.Prepare(); err != nil {
		return fmt.Errorf("preparing containerd: %w", err)
	}
	children = append(children, child.Config{
		Name: "containerd", Command: ctrd.Command, Ready: ctrd.Ready,
		StopSignal: containerd.StopSignal, StopGrace: containerdGrace,
	})
	if s.cfg.privateDatabase() {
		db, err := s.prepareDatabase(ctx)
		if err != nil {
			return err
		}
		children = append(children, child.Config{
			Name: "PostgreSQL", Command: db.Command, Ready: db.Ready,
			StopSignal: postgres.StopSignal, StopGrace: postgresGrace,
		})
	}
	ctx, cancel := context.WithTimeout(ctx, childReadyTimeout)
	defer cancel()
	var starting errgroup.Group
	for _, cfg := range children {
		cfg.Log, cfg.LogFile = s.log, s.cfg.logFile(cfg.Name)
		c := s.launchChild(ctx, cfg)
		starting.Go(func() error { return s.awaitChild(ctx, cfg.Name, c) })
	}
	return starting.Wait()
}

func (s *server) prepareDatabase(ctx context.Context) (*postgres.Cluster, error) {
	bin, err := postgres.FindBinaries(s.cfg.PostgresBin)
	if err != nil {
		return nil, err
	}
	db, err := postgres.New(postgres.Config{
		BinDir: bin, User: s.cfg.PostgresUser, DataDir: s.cfg.data("postgres"), SocketDir: s.cfg.run("postgres"),
	})
	if err != nil {
		return nil, err
	}
	made, err := db.Prepare(ctx)
	if err != nil {
		return nil, err
	}
	if made {
		s.say("  PostgreSQL   made a private cluster in %s", s.cfg.data("postgres"))
	}
	s.cfg.DatabaseURL = db.URL()
	return db, nil
}

func (s *server) launchChild(ctx context.Context, cfg child.Config) *child.Child {
	c := child.New(cfg)
	s.mu.Lock()
	s.children[cfg.Name] = c
	s.mu.Unlock()
	s.launch(ctx, cfg.Name, c.Run)
	return c
}

func (s *server) awaitChild(ctx context.Context, name string, c *child.Child) error {
	if err := c.WaitReady(ctx); err != nil {
		return err
	}
	s.say("  %-12s runs", name)
	return nil
}

func (s *server) startNoded(ctx context.Context) error {
	// Sandboxes run from the older file. The directory holds nothing else.
	if err := install.File(s.cfg.binary("procd"), s.cfg.procdDir(), 0o755); err != nil {
		return err
	}
	if s.cfg.ObjectStore != "" && s.cfg.ObjectKeyFile == "" {
		if err := noded.MakeObjectKey(s.cfg.objectKey()); err != nil {
			return err
		}
	}
	ready := make(chan struct{})
	cfg := noded.Config{
		Cluster: s.cfg.Cluster, Version: s.cfg.Version,
		DataDir: s.cfg.data("noded"), RunDir: s.cfg.run("noded"),
		Socket: s.cfg.nodeSocket(), Local: s.node, AdminSocket: s.cfg.run("noded-admin.sock"),
		ContainerdSocket: filepath.Join(s.cfg.run("containerd"), "containerd.sock"), ContainerdNamespace: containerdNamespace, Snapshotter: "overlayfs",
		Runsc: s.cfg.binary("runsc"), ProcdDir: s.cfg.procdDir(), CgroupParent: s.cfg.CgroupParent,
		PlainHTTPRegistries: []string{s.cfg.RegistryListen}, RegistryAuthFile: s.cfg.registryAuth(),
		ImageRegistries: s.cfg.ImageRegistries, KeepImages: s.cfg.KeepImages,
		AllowRunc: s.cfg.AllowRunc, AllowOldRunc: s.cfg.AllowOldRunc,
		ObjectStore: s.cfg.ObjectStore, ObjectKeyFile: s.cfg.objectKey(), ObjectDryRun: s.cfg.ObjectDryRun,
		MaxSandboxes: s.cfg.MaxSandboxes, ColdStarts: s.cfg.ColdStarts, SandboxWriteOps: s.cfg.SandboxWriteOps, SandboxCIDR: s.cfg.SandboxCIDR, SandboxCIDR6: s.cfg.SandboxCIDR6, NetdSocket: s.cfg.netdSocket(),
		Log: s.log.With("daemon", "noded"), Ready: func() { close(ready) },
	}
	if s.cfg.Volumes {
		cfg.VolumedSocket = s.cfg.volumedSocket()
	}
	s.launch(ctx, "noded", func(ctx context.Context) error { return noded.Run(ctx, cfg) })
	return s.awaitPart(ctx, "noded", ready)
}

func (s *server) startAPI(ctx context.Context, images map[string]string) error {
	credentialKey, err := sealed.Ensure(s.cfg.credentialKeys())
	if err != nil {
		return err
	}
	ready := make(chan struct{})
	cfg := api.Config{
		Listen: s.cfg.Listen, DatabaseURL: s.cfg.DatabaseURL, Nodes: []string{"unix://" + s.cfg.nodeSocket()},
		Local:       s.node,
		AdminSocket: s.cfg.run("api-admin.sock"), KeyFile: s.cfg.data("api.key"),
		RegionID: "local", Cluster: s.cfg.Cluster,
		AdminEmail: s.cfg.AdminEmail, AdminPassword: s.cfg.AdminPassword, OnBootstrap: s.bootstrapped,
		DefaultImage: images[defaultImage], TemplateImages: images, PoolMin: s.cfg.PoolMin, PoolMax: s.cfg.PoolMax, AllowedHosts: s.cfg.AllowedHosts, TrustedProxies: s.cfg.TrustedProxies,
		Registry: s.cfg.RegistryListen, PushRegistry: s.cfg.PushRegistry, RegistryKeyFile: s.cfg.registryKey(), ImageRegistries: s.cfg.ImageRegistries,
		PublicDomain: s.cfg.PublicDomain, PoolNamespace: s.cfg.PoolNamespace, Kubeconfig: s.cfg.Kubeconfig,
		RateLimit: s.cfg.RateLimit, RateBurst: s.cfg.RateBurst, Quotas: s.cfg.Quotas,
		WebhookAllowPrivate: s.cfg.HooksPrivate, AllowRegistration: s.cfg.AllowRegistration, OIDCFile: s.cfg.OIDCFile,
		CredentialKeyFile: credentialKey,
		Log:               s.log.With("daemon", "api"),
		Ready: func(addr string) {
			s.mu.Lock()
			s.status.API = "http://" + addr
			s.mu.Unlock()
			close(ready)
		},
	}
	s.launch(ctx, "api", func(ctx context.Context) error { return api.Run(ctx, cfg) })
	return s.awaitPart(ctx, "api", ready)
}

func (s *server) awaitPart(ctx context.Context, name string, ready <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, partReadyTimeout)
	defer cancel()
	select {
	case <-ready:
		s.say("  %-12s serves", name)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s: %w; the log is %s", name, context.Cause(ctx), s.cfg.LogFile())
	}
}

// awaitWarm waits for the first warm slot, so that the first claim is a quick
// one. A pool that can't be warmed is shown, and leaves the rest usable.
func (s *server) awaitWarm(ctx context.Context) error {
	if s.cfg.PoolMin == 0 || s.cfg.PoolNamespace != "" { // Kubernetes decides what is warmed, and when
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, warmTimeout)
	defer cancel()
	s.say("  pool         warming the first sandbox (the first time, its image is unpacked)")
	var problem string
	err := s.cfg.Node().Follow(waiting, func(v *node.View) bool {
		if problem != v.LastError && v.LastError != "" {
			s.say("  pool         can't warm a sandbox: %s", v.LastError)
		}
		problem = v.LastError
		return len(v.Slots) > 0
	})
	switch {
	case err == nil:
		s.say("  pool         has a warm sandbox")
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(waiting.Err(), context.DeadlineExceeded):
		s.say("  pool         still has no warm sandbox after %s; `s0d doctor` says more, the log is %s", warmTimeout, s.cfg.LogFile())
	default:
		return err
	}
	return nil
}
