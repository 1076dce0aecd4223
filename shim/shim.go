// Package shim is containerd's shim v2 over runsc: the process between containerd
// and the gVisor sandboxes of one group.
//
// containerd starts its binary for each container with `start`, which finds the
// group's serving process or founds it; that process then serves the task API for
// all containers of the group until the last is deleted, and survives containerd.
// When it dies instead, containerd runs the binary with `delete` for each of them.
// The package wires these parts together; the sandboxes' state is owned by
// internal/task.
package shim

import (
	"context"
	"log/slog"
	"os"

	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"s0.run/shim/internal/boot"
	"s0.run/shim/internal/group"
	"s0.run/shim/internal/reap"
	"s0.run/shim/internal/task"
)

// Run does what containerd's command line asks for; it exits the process on failure.
func Run(ctx context.Context) {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	reaper := reap.New()
	go reaper.Run(ctx) // for the life of the process
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn:   func(ic *plugin.InitContext) (any, error) { return serve(ic, reaper) },
	})
	shim.RunShim(ctx, boot.New(reaper), func(c *shim.Config) {
		c.NoReaper = true      // ours knows the orphans
		c.NoSetupLogger = true // its log is the first container's, which goes first
	})
}

// serve makes the task service of the serving process.
func serve(ic *plugin.InitContext, reaper *reap.Reaper) (any, error) {
	pub, err := ic.GetByID(plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	socket, err := group.Inherited(boot.ListenerFD)
	if err != nil {
		return nil, err
	}
	mark, err := socket.Mark()
	if err != nil {
		return nil, err
	}
	end := sd.(shutdown.Service)
	publisher := pub.(shim.Publisher)
	svc := task.New(task.Config{
		Reaper:  reaper,
		Publish: func(ctx context.Context, topic string, e any) error { return publisher.Publish(ctx, topic, e) },
		Exit:    end.Shutdown,
		Log:     slog.Default(),
	})
	ctx, cancel := context.WithCancel(ic.Context)
	done := make(chan struct{})
	go func() { defer close(done); svc.Run(ctx) }()
	// While these run the process still listens: who joins is turned away, and
	// finds the socket gone.
	end.RegisterCallback(func(context.Context) error { return socket.Retire(mark) })
	end.RegisterCallback(func(context.Context) error {
		cancel()
		<-done
		return publisher.Close()
	})
	return svc, nil
}
