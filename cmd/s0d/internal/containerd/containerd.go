// Package containerd says how to run a containerd of our own: its own
// directories, sockets and nothing that a sandbox node does not need.
//
// It writes the configuration and makes the command, which others run. It
// never speaks to containerd: that is noded's work.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"s0.run/internal/shimapi"
)

// Config says where containerd lives.
type Config struct {
	Binary  string // absolute
	ShimDir string // where containerd finds its shims
	Root    string // images, snapshots
	State   string // sockets and what a reboot may take
	// Namespace is whose tasks' working directories are cleaned up at a start.
	Namespace string
	Nice      int // of containerd and all that it starts, sandboxes included
	// ShimCgroup is the control group that shims live in; empty: containerd's own. They
	// need another where that one ends with containerd, as a container's does.
	ShimCgroup string
}

// A Daemon is our containerd.
type Daemon struct{ cfg Config }

// New makes a Daemon.
func New(cfg Config) *Daemon { return &Daemon{cfg: cfg} }

// Socket is where it serves.
func (d *Daemon) Socket() string { return filepath.Join(d.cfg.State, "containerd.sock") }

// StopSignal ends containerd; shims and sandboxes go on.
const StopSignal = syscall.SIGTERM

// tasks is where containerd keeps its tasks' directories, below both roots.
const tasks = "io.containerd.runtime.v2.task"

// The plugins that are off: Kubernetes' interface, which nobody asks for here,
// and the snapshotters that would probe the host at each start.
const config = `# Written by s0d at each start; changes here are lost.
version = 4
root = %[1]q
state = %[2]q
temp = %[3]q
imports = []
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs", "io.containerd.image-verifier.v1.bindir",
]

[plugins."io.containerd.server.v1.grpc"]
  address = %[4]q
[plugins."io.containerd.server.v1.ttrpc"]
  address = %[5]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[6]q
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %[7]q

# A shim serves many sandboxes: on a busy machine it is worth waiting for, and so is the
# end of what one that died has left, which takes runsc and the kernel their time.
[timeouts]
  "io.containerd.timeout.shim.load" = "30s"
  "io.containerd.timeout.shim.cleanup" = "30s"
`

// Prepare makes the directories and writes the configuration.
func (d *Daemon) Prepare() error {
	for _, dir := range []string{d.cfg.Root, d.cfg.State} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // gofers cross it to their rootfs
			return err
		}
	}
	// At its start containerd removes the working directories of tasks that are
	// gone, but only in namespaces that it finds here, and after a boot it finds none.
	if err := os.MkdirAll(filepath.Join(d.cfg.State, tasks, d.cfg.Namespace), 0o711); err != nil {
		return err
	}
	text := fmt.Sprintf(config, d.cfg.Root, d.cfg.State, filepath.Join(d.cfg.Root, "tmp"),
		d.Socket(), d.Socket()+".ttrpc", filepath.Join(d.cfg.Root, "opt"), filepath.Join(d.cfg.State, "s"))
	return os.WriteFile(d.configFile(), []byte(text), 0o600)
}

// Command runs containerd in the foreground. It is called while none runs.
func (d *Daemon) Command(ctx context.Context) *exec.Cmd {
	d.removeRemains()
	args := []string{d.cfg.Binary, "--config", d.configFile()}
	if d.cfg.Nice != 0 {
		args = append([]string{"nice", "-n", strconv.Itoa(d.cfg.Nice)}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = environ(d.cfg.ShimDir)
	if d.cfg.ShimCgroup != "" {
		cmd.Env = append(cmd.Env, shimapi.CgroupEnv+"="+d.cfg.ShimCgroup)
	}
	return cmd
}

// removeRemains removes the directories of tasks that a containerd was removing
// when it was killed: it renames them to hidden ones first, and forgets those.
// One that still has a root is left alone: a mount may be on it.
func (d *Daemon) removeRemains() {
	for _, parent := range []string{d.cfg.State, d.cfg.Root} {
		hidden, _ := filepath.Glob(filepath.Join(parent, tasks, d.cfg.Namespace, ".*"))
		for _, dir := range hidden {
			if _, err := os.Lstat(filepath.Join(dir, "rootfs")); errors.Is(err, os.ErrNotExist) {
				_ = os.RemoveAll(dir) // the next start tries again
			}
		}
	}
}

// environ is small and fixed: shims, runsc and gofers inherit it, and whoever
// starts s0 may have secrets in theirs.
func environ(shimDir string) []string {
	env := []string{"PATH=" + strings.Join([]string{shimDir, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":")}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v) // image pulls need them
		}
	}
	return env
}

// Ready succeeds once containerd listens, which it does after all its plugins
// are up.
func (d *Daemon) Ready(ctx context.Context) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", d.Socket())
	if err != nil {
		return err
	}
	return conn.Close()
}

func (d *Daemon) configFile() string { return filepath.Join(d.cfg.State, "config.toml") }
