package noded

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"s0.run/internal/daemon"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/disk"
	"s0.run/noded/internal/egress"
	"s0.run/noded/internal/guest"
	"s0.run/noded/internal/images"
	"s0.run/noded/internal/layer"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/netns"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/runtime"
	"s0.run/noded/internal/server"
	"s0.run/noded/internal/slots"
	"s0.run/noded/internal/snapshots"
	"s0.run/noded/internal/stats"
)

// machine is what package lifecycle drives.
type machine struct {
	runtime lifecycle.Runtime
	images  imageStore
	layers  server.Layers // nil: sandboxes have no files
	disk    localDisk
	network lifecycle.Network
	guests  lifecycle.Guests // nil: no sandbox is a virtual machine
	groups  lifecycle.Groups
	egress  lifecycle.Egress // nil: through netd
	usage   stats.Groups
	traffic stats.Traffic
	ready   func(context.Context) error
}

// localDisk is package disk as the others know it.
type localDisk interface {
	lifecycle.Disk
	RoomFor(bytes int64) error
	Crowded() bool
}

// imageStore is package images as the others know it.
type imageStore interface {
	slots.Images
	server.Images
	// Run removes what nothing uses.
	Run(ctx context.Context, wanted func() (refs []string, ok bool)) error
}

// machineOf is the real one, or one that only pretends.
func machineOf(cfg Config, classes []string, s *daemon.Stack) (machine, error) {
	if cfg.Simulate {
		return simulated(s), nil
	}
	return openMachine(cfg, classes, s)
}

// egressOr is what tells who enforces policies: the agent that talks to netd, but for a
// machine that pretends.
func (m machine) egressOr(agent *egress.Agent) lifecycle.Egress {
	if m.egress != nil {
		return m.egress
	}
	return agent
}

func simulated(s *daemon.Stack) machine {
	n := noop.New()
	s.Push(n.Close)
	return machine{
		runtime: noop.Runtime{Node: n}, images: noop.Images{Node: n}, disk: noop.Disk{Node: n}, network: noop.Network{Node: n}, groups: noop.Groups{Node: n}, egress: noop.Egress{},
		usage: noop.Groups{Node: n}, traffic: noop.Network{Node: n},
		ready: func(context.Context) error { return nil },
	}
}

// diskOf is the disk that sandboxes write to, with its bound.
func diskOf(cfg Config) (cgroup.Disk, error) {
	if cfg.SandboxWriteOps < 0 {
		return cgroup.Disk{}, nil
	}
	device, err := cgroup.DiskOf(cfg.DataDir)
	return cgroup.Disk{Device: device, WriteOps: cfg.SandboxWriteOps}, err
}

// openMachine connects to containerd and the kernel.
func openMachine(cfg Config, classes []string, s *daemon.Stack) (machine, error) {
	network, err := netns.Open(netns.Config{Dir: filepath.Join(cfg.RunDir, "netns"), CIDR: cfg.SandboxCIDR, CIDR6: cfg.SandboxCIDR6})
	if err != nil {
		return machine{}, err
	}
	s.Push(network.Close)
	layout, err := cgroup.Detect()
	if err != nil {
		return machine{}, err
	}
	if layout.Disk, err = diskOf(cfg); err != nil {
		return machine{}, err
	}
	groups, err := cgroup.Open(layout, filepath.Join(cfg.CgroupParent, cfg.scope()))
	if err != nil {
		return machine{}, err
	}
	if layout.Disk.WriteOps > 0 && !groups.BoundsDisk() {
		cfg.Log.Warn("how often a sandbox writes to the disk can't be bounded here", "device", layout.Disk.Device)
	}
	s.Push(groups.Close)
	rt, err := runtime.New(runtime.Config{
		Socket: cfg.ContainerdSocket, Namespace: cfg.ContainerdNamespace, Snapshotter: cfg.Snapshotter,
		Runsc: cfg.Runsc, RunscRoot: filepath.Join(cfg.RunDir, "runsc"), AllowRunc: cfg.AllowRunc, Kata: slices.Contains(classes, string(sandbox.Kata)), Log: cfg.Log,
	})
	if err != nil {
		return machine{}, err
	}
	s.Push(func() {
		if err := rt.Close(); err != nil {
			cfg.Log.Warn("closing the connection to containerd", "error", err)
		}
	})
	adapter := &containers{Runtime: rt, scope: cfg.scope(), exits: make(chan lifecycle.Exit)}
	s.Start("runtime", adapter.Run)
	room := disk.New(cfg.DataDir)
	store := images.New(images.Config{
		Client: rt.Client(), Snapshotter: cfg.Snapshotter, PlainHTTPHosts: cfg.PlainHTTPRegistries, Registries: cfg.ImageRegistries,
		Credentials: registryAuth(cfg.RegistryAuthFile, cfg.Log), Room: room.Room, KeepFor: cfg.KeepImages, Log: cfg.Log,
	})
	layers, err := layer.New(layer.Config{Source: rt, Room: room.Room, Dir: filepath.Join(cfg.DataDir, "layers")})
	if err != nil {
		return machine{}, err
	}
	return machine{runtime: adapter, images: resolver{store}, layers: layers, disk: room, network: network, guests: guest.Guests{}, groups: groups, usage: groups, traffic: network, ready: rt.Ready}, nil
}

// scopeLabel marks our containers with whose they are.
const scopeLabel = "run.s0.noded/scope"

// containers is package runtime as lifecycle knows it.
type containers struct {
	*runtime.Runtime
	scope string
	exits chan lifecycle.Exit
}

// Run runs the runtime and passes on its exits.
func (c *containers) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for e := range c.Runtime.Exits() { // closed when the runtime ends
			select {
			case c.exits <- exit(e):
			case <-ctx.Done():
			}
		}
	})
	return c.Runtime.Run(ctx)
}

func exit(e runtime.Exit) lifecycle.Exit {
	switch e.Reason {
	case "exited":
		return lifecycle.Exit{ID: e.ID, Reason: fmt.Sprintf("exited with status %d", e.Status)}
	case "lost":
		return lifecycle.Exit{ID: e.ID, Reason: lifecycle.NotRunning, Unseen: true}
	}
	return lifecycle.Exit{ID: e.ID, Reason: e.Reason}
}

func (c *containers) Start(ctx context.Context, spec lifecycle.Container) error {
	spec.Labels = map[string]string{scopeLabel: c.scope}
	return c.Runtime.Start(ctx, runtime.Container(spec))
}

// Target is what an image must be bound to for a container to start from it.
func (c *containers) Target(ctx context.Context, spec lifecycle.Container) (snapshots.Origin, error) {
	return c.Runtime.Target(ctx, runtime.Container(spec))
}

// List leaves out what another noded has in the same namespace.
func (c *containers) List(ctx context.Context) ([]lifecycle.Status, error) {
	found, err := c.Runtime.List(ctx)
	if err != nil {
		return nil, err
	}
	var ours []lifecycle.Status
	for _, s := range found {
		if s.Labels[scopeLabel] == c.scope {
			ours = append(ours, lifecycle.Status{ID: s.ID, Ended: s.Ended, Taskless: !s.Task})
		}
	}
	return ours, nil
}

func (c *containers) Exits() <-chan lifecycle.Exit { return c.exits }

// resolver is package images as lifecycle knows it.
type resolver struct{ *images.Images }

func (r resolver) Ensure(ctx context.Context, ref string) (string, error) {
	img, err := r.Images.Ensure(ctx, ref)
	return img.Ref, err
}
