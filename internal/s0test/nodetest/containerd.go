// Package nodetest gives tests a private containerd with our shim, and a program
// to run in sandboxes.
//
// Everything of one [Containerd] is below one directory, so that a test can list
// what is on the host because of it, before and after. It is for tests that need
// root; they skip in short mode and fail where the machine lacks something.
package nodetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"s0.run/internal/s0test"
)

// containerdStartTimeout covers a start that reconnects many shims on a loaded machine.
const containerdStartTimeout = 30 * time.Second

// shimTimeout is how long a starting containerd waits for a shim: s0d's own.
const shimTimeout = 30 * time.Second

// Namespace is the namespace that tests use.
const Namespace = "s0test"

// Containerd is a private containerd with our shim, everything of it below Dir.
type Containerd struct {
	Dir          string // short, for sockets live in it
	Address      string
	Runsc        string // absolute path
	RunscRoot    string
	CgroupParent string

	bin string // where containerd finds the shims

	mu     sync.Mutex
	server *exec.Cmd
}

// NewContainerd starts a containerd for the test. When the test ends it is
// killed, and whatever then is left of it fails the test.
func NewContainerd(t testing.TB) *Containerd {
	t.Helper()
	s0test.NeedRoot(t)
	dir, err := os.MkdirTemp("", "s0c-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // gofers cross it
		t.Fatal(err)
	}
	c := &Containerd{
		Dir:          dir,
		Address:      filepath.Join(dir, "c.sock"),
		Runsc:        s0test.Binary(t, "runsc"),
		RunscRoot:    filepath.Join(dir, "runsc"),
		CgroupParent: "/" + filepath.Base(dir),
		bin:          filepath.Join(dir, "bin"),
	}
	t.Cleanup(func() { c.close(t) })
	c.configure(t)
	c.Start(t)
	return c
}

// Rootfs makes a root filesystem with the probe program at /bin/probe.
func Rootfs(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s0r-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, d := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp", "workspace"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "tmp"), fs.ModeSticky|0o777)); err != nil {
		t.Fatal(err)
	}
	Build(t, filepath.Join(dir, "bin", "probe"), "s0.run/internal/s0test/probe")
	return dir
}

// Build makes a static program from one of our packages.
func Build(t testing.TB, out, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Dir = s0test.ModuleRoot(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v: %s", pkg, err, out)
	}
}

const containerdConfig = `version = 4
root = %[1]q
state = %[2]q
imports = []
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri",
]
[plugins."io.containerd.server.v1.grpc"]
  address = %[3]q
[plugins."io.containerd.server.v1.ttrpc"]
  address = %[4]q
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %[5]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[6]q

# A shim serves many sandboxes: on a busy machine it is worth waiting for, and so is the
# end of what one that died has left.
[timeouts]
  "io.containerd.timeout.shim.load" = %[7]q
  "io.containerd.timeout.shim.cleanup" = "30s"
`

func (c *Containerd) configure(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(c.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	Build(t, filepath.Join(c.bin, "containerd-shim-s0-v1"), "s0.run/cmd/containerd-shim-s0-v1")
	c.WaitForShims(t, shimTimeout)
}

// WaitForShims sets how long the next server waits for each shim that it finds.
func (c *Containerd) WaitForShims(t testing.TB, timeout time.Duration) {
	t.Helper()
	text := fmt.Sprintf(containerdConfig, filepath.Join(c.Dir, "root"), filepath.Join(c.Dir, "state"),
		c.Address, c.Address+".ttrpc", c.sockets(), filepath.Join(c.Dir, "opt"), timeout.String())
	if err := os.WriteFile(c.config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c *Containerd) config() string  { return filepath.Join(c.Dir, "config.toml") }
func (c *Containerd) sockets() string { return filepath.Join(c.Dir, "s") }

// Start starts the server and waits until it answers.
func (c *Containerd) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(c.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c.removeRemains()
	cmd := exec.Command(s0test.Binary(t, "containerd"), "--config", c.config())
	cmd.Env = []string{"PATH=" + c.bin + ":" + filepath.Join(s0test.ModuleRoot(t), "build", "bin") + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.server = cmd
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), containerdStartTimeout)
	defer cancel()
	client := c.Client(t)
	if ok, err := client.IsServing(ctx); !ok {
		t.Fatalf("waiting for containerd: %v\n%s", err, c.Log())
	}
}

// removeRemains removes what a killed containerd has left of directories that it was
// removing, and has it look for what a reboot has left, as s0d does before each start of
// its own.
func (c *Containerd) removeRemains() {
	_ = os.MkdirAll(filepath.Join(c.Dir, "state", "io.containerd.runtime.v2.task", Namespace), 0o711)
	for _, parent := range []string{"state", "root"} {
		hidden, _ := filepath.Glob(filepath.Join(c.Dir, parent, "io.containerd.runtime.v2.task", Namespace, ".*"))
		for _, dir := range hidden {
			if _, err := os.Lstat(filepath.Join(dir, "rootfs")); errors.Is(err, fs.ErrNotExist) {
				_ = os.RemoveAll(dir)
			}
		}
	}
}

// Kill ends the server as a crash would. Shims and sandboxes go on.
func (c *Containerd) Kill() { c.Stop(syscall.SIGKILL) }

// Stop ends the server by a signal and waits for its end.
func (c *Containerd) Stop(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		_ = c.server.Process.Signal(sig)
		_ = c.server.Wait()
		c.server = nil
	}
}

// Reboot ends everything as a reboot does, and removes what is only in memory: what is left
// are the disks. Start starts the server again.
func (c *Containerd) Reboot(t testing.TB) {
	t.Helper()
	c.Kill()
	for deadline := time.Now().Add(containerdStartTimeout); len(c.processes()) > 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("they live on: %v", c.processes())
		}
		for _, p := range c.processes() {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	for _, m := range append(c.mounts(), filepath.Join(c.RunscRoot, nullNetns)) {
		for syscall.Unmount(m, syscall.MNT_DETACH) == nil { // they may be stacked
		}
	}
	for _, g := range c.cgroups() {
		_ = os.Remove(g)
	}
	for _, dir := range []string{filepath.Join(c.Dir, "state"), c.sockets(), c.RunscRoot} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// Client makes a client that is closed with the test. It waits for a server that
// is not there yet.
func (c *Containerd) Client(t testing.TB) *containerd.Client {
	t.Helper()
	client, err := containerd.New(c.Address, containerd.WithDefaultNamespace(Namespace), containerd.WithTimeout(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// Log is the end of what the server and the shims have logged.
func (c *Containerd) Log() string {
	raw, _ := os.ReadFile(filepath.Join(c.Dir, "log"))
	lines := slices.DeleteFunc(strings.SplitAfter(string(raw), "\n"), func(line string) bool {
		return strings.Contains(line, "loading plugin") || strings.Contains(line, "loading shim")
	})
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

// close removes everything, by force what should have been gone.
func (c *Containerd) close(t testing.TB) {
	left := slices.DeleteFunc(c.Present(), func(s string) bool { return strings.HasSuffix(s, "/bin/containerd") })
	c.Kill()
	if len(left) > 0 {
		t.Errorf("left on the host: %s\n%s", strings.Join(left, "\n\t"), c.Log())
	}
	for _, p := range c.processes() {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	for _, m := range append(c.mounts(), filepath.Join(c.RunscRoot, nullNetns)) {
		for syscall.Unmount(m, syscall.MNT_DETACH) == nil { // they may be stacked
		}
	}
	for _, g := range c.cgroups() {
		_ = os.Remove(g)
	}
	for _, g := range c.cgroupParents() {
		_ = os.Remove(g)
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		t.Errorf("removing the test's containerd: %v", err)
	}
}

// Present lists what containerd, its shims and sandboxes have on the host now:
// processes, mounts, cgroups, sockets, bundles and runsc's files. Sorted, so that
// two lists can be compared.
func (c *Containerd) Present() []string {
	var all []string
	for _, p := range c.processes() {
		all = append(all, "process "+p.name)
	}
	for _, m := range c.mounts() {
		all = append(all, "mount "+m)
	}
	for _, g := range c.cgroups() {
		all = append(all, "cgroup "+g)
	}
	for _, pattern := range []string{
		filepath.Join(c.sockets(), "*"),
		filepath.Join(c.Dir, "state", "io.containerd.runtime.v2.task", Namespace, "*"),
		filepath.Join(c.Dir, "root", "io.containerd.runtime.v2.task", Namespace, "*"),
		filepath.Join(c.RunscRoot, "*"),
	} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			if filepath.Base(f) != nullNetns {
				all = append(all, "file "+f)
			}
		}
	}
	slices.Sort(all)
	return all
}

// nullNetns is runsc's: one empty network namespace that all gofers of a state
// directory share for good.
const nullNetns = "null-netns"

type process struct {
	pid  int
	name string
}

// processes finds everything whose command line or environment names our directory.
func (c *Containerd) processes() []process {
	var all []process
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if bytes.Contains(cmdline, []byte(c.Dir)) || bytes.Contains(environ, []byte(c.bin)) {
			name, _, _ := strings.Cut(string(cmdline), "\x00")
			all = append(all, process{pid, name})
		}
	}
	return all
}

func (c *Containerd) mounts() []string {
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	var all []string
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], c.Dir+"/") && filepath.Base(fields[4]) != nullNetns {
			all = append(all, fields[4])
		}
	}
	slices.Reverse(all) // inner mounts first
	return all
}

func (c *Containerd) cgroupParents() []string {
	v1, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", "*", c.CgroupParent))
	v2, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", c.CgroupParent))
	return append(v1, v2...)
}

// cgroups lists the groups below the parent, deepest first.
func (c *Containerd) cgroups() []string {
	var all []string
	for _, parent := range c.cgroupParents() {
		_ = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != parent {
				all = append(all, path)
			}
			return nil
		})
	}
	slices.Reverse(all)
	return all
}
