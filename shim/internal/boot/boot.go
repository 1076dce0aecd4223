// Package boot is what containerd calls the shim's binary for, beside serving:
// `start` finds or founds the process that will serve a container, `delete`
// removes what a container left when that process has died.
//
// Both are short-lived processes that know nothing but the bundle, which is their
// working directory. The package owns no state.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"golang.org/x/sys/unix"

	"s0.run/internal/shimapi"
	"s0.run/shim/internal/bundle"
	"s0.run/shim/internal/cgroup"
	"s0.run/shim/internal/clean"
	"s0.run/shim/internal/group"
	"s0.run/shim/internal/reap"
	"s0.run/shim/internal/runsc"
)

// ListenerFD is where the serving process inherits its listener.
const ListenerFD = 3

// Manager implements containerd's shim binary commands.
type Manager struct{ reaper *reap.Reaper }

var _ shim.Shim = Manager{}

// New makes a Manager; the reaper waits for its processes and must be running.
func New(r *reap.Reaper) Manager { return Manager{reaper: r} }

// Name is the runtime's name.
func (Manager) Name() string { return shimapi.Runtime }

// Info describes the runtime.
func (m Manager) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	return &types.RuntimeInfo{Name: m.Name(), Version: &types.RuntimeVersion{Version: shimapi.Runtime}}, nil
}

// Start answers the address of the process that will serve the container in the
// working directory. That process waits for it when Start has returned.
func (Manager) Start(ctx context.Context, p *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	b, err := bundle.Open(dir)
	if err != nil {
		return nil, err
	}
	if p.GetSocketDir() == "" {
		return nil, errors.New("containerd named no socket directory")
	}
	key := group.Key{Containerd: p.GetContainerdGrpcAddress(), Namespace: p.GetNamespace(), Group: b.Spec.Group}
	if key.Group == "" {
		key.Group = p.GetInstanceID()
	}
	socket := group.SocketIn(p.GetSocketDir(), key)
	if err := b.WriteSocket(socket.Address()); err != nil {
		return nil, err
	}
	if err := join(ctx, socket, key, p.GetInstanceID()); err != nil {
		return nil, fmt.Errorf("shim of group %s: %w", key.Group, err)
	}
	return &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: socket.Address()}, nil
}

func join(ctx context.Context, socket group.Socket, key group.Key, id string) error {
	if socket.Join(ctx, id) == nil {
		return nil
	}
	err := socket.Found(ctx, id, func(l *os.File) error { return serve(l, key) })
	if err != nil {
		return err
	}
	if err := socket.Join(ctx, id); err != nil {
		return errors.Join(err, socket.Bury()) // if it died: nobody else will
	}
	return nil
}

// serve starts the serving process. It belongs to no bundle: it outlives the
// container that it was founded for.
func serve(listener *os.File, key group.Key) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-namespace", key.Namespace, "-id", key.Group, "-address", key.Containerd)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{listener} // becomes ListenerFD
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := move(cmd.Process.Pid); err != nil {
		return errors.Join(fmt.Errorf("moving the shim: %w", err), cmd.Process.Kill())
	}
	// Best effort: lowering the score needs a capability that may be missing.
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		slog.Debug("oom score of the shim", "error", err)
	}
	return cmd.Process.Release()
}

// move puts the serving process where it outlives containerd, if we were told where.
// Before it serves anything it has no child that would stay behind.
func move(pid int) error {
	path := os.Getenv(shimapi.CgroupEnv)
	if path == "" {
		return nil
	}
	return cgroup.Open(path).Enter(pid)
}

// Stop removes a container whose shim has died, and tells how it ended. What a
// living shim serves is not touched.
func (m Manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	if _, err := namespaces.NamespaceRequired(ctx); err != nil {
		return shim.StopStatus{}, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return shim.StopStatus{}, err
	}
	// containerd also runs this for a new container whose bundle is a sibling.
	b, err := bundle.Open(filepath.Join(filepath.Dir(dir), id))
	if err != nil {
		return shim.StopStatus{}, err
	}
	rec, err := b.ReadRecord()
	if err != nil {
		slog.Warn("the container's record is lost", "sandbox", id, "error", err)
	}
	if !rec.Deleted {
		if rec.Pid != 0 && !rec.Exited && served(ctx, b) {
			// containerd gives up a shim that is slow to answer when it starts. Its
			// sandboxes live, and who owns them can end them without containerd.
			return shim.StopStatus{}, fmt.Errorf("%s is served by a shim that lives", id)
		}
		if err := m.destroy(ctx, b, id); err != nil {
			return shim.StopStatus{}, fmt.Errorf("removing what is left of %s: %w", id, err)
		}
	}
	return status(rec), nil
}

func served(ctx context.Context, b *bundle.Bundle) bool {
	address, err := b.Socket()
	return err == nil && group.SocketAt(address).Served(ctx)
}

// destroy removes a container that nobody serves any more, and the socket of
// whom that was.
func (m Manager) destroy(ctx context.Context, b *bundle.Bundle, id string) error {
	left := clean.Sandbox{Bundle: b, Runsc: runsc.ForBundle(b, id, m.reaper), Group: cgroup.Open(b.Spec.CgroupsPath)}
	if err := left.Destroy(ctx); err != nil {
		return err
	}
	address, err := b.Socket()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return group.SocketAt(address).Bury()
}

func status(rec bundle.Record) shim.StopStatus {
	if rec.Exited {
		return shim.StopStatus{Pid: rec.Pid, ExitStatus: rec.Status, ExitedAt: rec.At}
	}
	return shim.StopStatus{Pid: rec.Pid, ExitStatus: 128 + int(unix.SIGKILL), ExitedAt: time.Now()}
}
