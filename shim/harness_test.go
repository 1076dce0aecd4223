package shim_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/s0test/nodetest"
	"s0.run/internal/shimapi"
)

// patience bounds every wait of these tests: a loaded machine is slow.
const patience = 60 * time.Second

// host is a containerd with the shim, and a rootfs for sandboxes.
type host struct {
	testing.TB
	*nodetest.Containerd
	client *containerd.Client
	rootfs string
}

func newHost(t testing.TB) *host {
	t.Helper()
	c := nodetest.NewContainerd(t)
	return &host{TB: t, Containerd: c, client: c.Client(t), rootfs: nodetest.Rootfs(t)}
}

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	h.Cleanup(cancel)
	return ctx
}

func (h *host) ok(err error) {
	h.Helper()
	if err != nil {
		h.Fatalf("%v\n%s", err, h.Containerd.Log())
	}
}

// want is a container to make. The zero value but for id sleeps.
type want struct {
	id    string
	group string
	args  []string
	io    cio.Creator
	spec  func(*specs.Spec)
}

func (h *host) spec(w want) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		*s = oci.Spec{
			Version: specs.Version,
			Root:    &specs.Root{Path: "rootfs"},
			Process: &specs.Process{Args: w.args, Cwd: "/", Env: []string{"PATH=/bin"}},
			Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
			Annotations: map[string]string{
				shimapi.RunscAnnotation: h.Runsc,
				shimapi.RootAnnotation:  h.RunscRoot,
				shimapi.GroupAnnotation: w.group,
			},
			Linux: &specs.Linux{
				CgroupsPath: h.CgroupParent + "/" + w.id,
				Namespaces: []specs.LinuxNamespace{
					{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
					{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
				},
			},
		}
		if w.spec != nil {
			w.spec(s)
		}
		return nil
	}
}

func (h *host) mounts() []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: h.rootfs, Options: []string{"rbind"}}}
}

// create makes container and task, not started.
func (h *host) create(w want) (containerd.Container, containerd.Task) {
	h.Helper()
	if w.args == nil {
		w.args = []string{"/bin/probe", "sleep"}
	}
	if w.io == nil {
		w.io = cio.NullIO
	}
	c, err := h.client.NewContainer(h.ctx(), w.id, containerd.WithRuntime(shimapi.Runtime, nil), containerd.WithNewSpec(h.spec(w)))
	h.ok(err)
	task, err := c.NewTask(h.ctx(), w.io, containerd.WithRootFS(h.mounts()))
	h.ok(err)
	return c, task
}

// run makes and starts a container. The exit arrives on the channel.
func (h *host) run(w want) (containerd.Container, containerd.Task, <-chan containerd.ExitStatus) {
	h.Helper()
	c, task := h.create(w)
	exit, err := task.Wait(context.Background())
	h.ok(err)
	h.ok(task.Start(h.ctx()))
	return c, task, exit
}

func (h *host) exited(ch <-chan containerd.ExitStatus) uint32 {
	h.Helper()
	select {
	case e := <-ch:
		h.ok(e.Error())
		return e.ExitCode()
	case <-time.After(patience):
		h.Fatalf("no exit\n%s", h.Containerd.Log())
		return 0
	}
}

func (h *host) remove(c containerd.Container, task containerd.Task) {
	h.Helper()
	_, err := task.Delete(h.ctx())
	h.ok(err)
	h.ok(c.Delete(h.ctx()))
}

// eventually waits for a condition.
func (h *host) eventually(what string, cond func() bool) {
	h.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			h.Fatalf("not within %v: %s\n%s", patience, what, h.Containerd.Log())
		}
		<-tick.C
	}
}

// baseline is what is there without containers. Check compares with it.
func (h *host) baseline() (check func()) {
	before := h.Present()
	return func() {
		h.Helper()
		var now []string
		deadline := time.Now().Add(patience)
		for {
			if now = h.Present(); slices.Equal(before, now) {
				return
			}
			if time.Now().After(deadline) {
				h.Fatalf("left behind: %v\nwant only: %v\n%s", now, before, h.Containerd.Log())
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-h.Context().Done():
			}
		}
	}
}

// shims lists the pids of serving shims.
func (h *host) shims() []int {
	var pids []int
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range found {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		args := strings.Split(string(cmdline), "\x00")
		if strings.HasPrefix(args[0], h.Dir) && slices.Contains(args, "-id") && !slices.Contains(args, "delete") && !slices.Contains(args, "start") {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// find finds the one process of a sandbox by its name.
func (h *host) find(name, id string) int {
	h.Helper()
	out, _ := exec.Command("pgrep", "-f", "^"+name+" .*--root="+h.RunscRoot+".* "+id+"$").Output()
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		h.Fatalf("no single %s of %s: %q", name, id, out)
	}
	return pid
}

func (h *host) killPid(pid int) {
	h.Helper()
	h.ok(syscall.Kill(pid, syscall.SIGKILL))
}

// input is a standard input that tells when all of it was read, and so written to
// the FIFO: closing the shim's end earlier would cut it short.
type input struct {
	io.Reader
	drained chan struct{}
}

func newInput(text string) *input {
	return &input{strings.NewReader(text), make(chan struct{})}
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.Reader.Read(p)
	if err == io.EOF {
		close(i.drained)
	}
	return n, err
}

// exec runs a process in a container and answers its output and status.
func (h *host) exec(c containerd.Container, stdin string, args ...string) (string, uint32) {
	h.Helper()
	var out strings.Builder
	var in io.Reader
	source := newInput(stdin)
	if stdin != "" {
		in = source
	}
	task, err := c.Task(h.ctx(), nil)
	h.ok(err)
	p, err := task.Exec(h.ctx(), fmt.Sprintf("e%d", time.Now().UnixNano()),
		&specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}},
		cio.NewCreator(cio.WithStreams(in, &out, io.Discard), cio.WithFIFODir(h.Dir+"/fifo")))
	h.ok(err)
	exit, err := p.Wait(h.ctx())
	h.ok(err)
	h.ok(p.Start(h.ctx()))
	if in != nil {
		<-source.drained
		h.ok(p.CloseIO(h.ctx(), containerd.WithStdinCloser))
	}
	code := h.exited(exit)
	p.IO().Wait()
	_, err = p.Delete(h.ctx())
	h.ok(err)
	return out.String(), code
}
