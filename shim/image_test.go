package shim_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"s0.run/internal/shimapi"
)

// overlaid gives a container an upper layer of its own.
func (h *host) overlaid(id string) func(*specs.Spec) {
	h.Helper()
	dir := filepath.Join(h.TempDir(), id)
	h.ok(os.Mkdir(dir, 0o700))
	return func(s *specs.Spec) { s.Annotations[shimapi.OverlayDirAnnotation] = dir }
}

func (h *host) checkpoint(id string, opts *options.CheckpointOptions) error {
	h.Helper()
	o, err := typeurl.MarshalAnyToProto(opts)
	h.ok(err)
	_, err = h.client.TaskService().Checkpoint(h.ctx(), &tasksapi.CheckpointTaskRequest{ContainerID: id, Options: o})
	return err
}

// restore starts a container from an image.
func (h *host) restore(id, image string) (containerd.Container, containerd.Task) {
	h.Helper()
	c, err := h.client.NewContainer(h.ctx(), id, containerd.WithRuntime(shimapi.Runtime, nil),
		containerd.WithNewSpec(h.spec(want{id: id, args: counter, spec: h.overlaid(id)})))
	h.ok(err)
	o, err := typeurl.MarshalAnyToProto(&options.Options{CriuImagePath: image})
	h.ok(err)
	_, err = h.client.TaskService().Create(h.ctx(), &tasksapi.CreateTaskRequest{ContainerID: id, Rootfs: mount.ToProto(h.mounts()), Options: o})
	h.ok(err)
	_, err = h.client.TaskService().Start(h.ctx(), &tasksapi.StartRequest{ContainerID: id})
	h.ok(err)
	task, err := c.Task(h.ctx(), nil)
	h.ok(err)
	return c, task
}

var counter = []string{"/bin/probe", "count", "/n"}

// counted waits until the counter has counted to n.
func (h *host) counted(c containerd.Container, n int) {
	h.Helper()
	h.eventually("counting to "+strconv.Itoa(n), func() bool {
		got, _ := h.exec(c, "", "/bin/probe", "read", "/n")
		return got == strconv.Itoa(n)
	})
}

func (h *host) end(c containerd.Container, task containerd.Task) {
	h.Helper()
	exit, err := task.Wait(context.Background())
	h.ok(err)
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(exit)
	h.remove(c, task)
}

// One image of processes, memory and files starts any number of sandboxes.
func TestCheckpointAndRestore(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	image := t.TempDir()
	c, task, exit := h.run(want{id: "a", args: counter, spec: h.overlaid("first")})
	h.counted(c, 0)
	h.ok(task.Kill(h.ctx(), syscall.SIGUSR1))
	h.counted(c, 1)
	if _, code := h.exec(c, "", "/bin/probe", "write", "/f", "kept"); code != 0 {
		t.Fatalf("write ended with %d", code)
	}
	if err := h.checkpoint("a", &options.CheckpointOptions{ImagePath: t.TempDir(), Exit: true}); err == nil {
		t.Error("what runs was ended with its checkpoint")
	}
	h.ok(task.Pause(h.ctx()))
	h.ok(h.checkpoint("a", &options.CheckpointOptions{ImagePath: image, Exit: true}))
	if _, err := os.Stat(filepath.Join(image, shimapi.ImageComplete)); err != nil {
		t.Errorf("the image does not say that it is complete: %v", err)
	}
	h.exited(exit)
	h.remove(c, task)

	for _, id := range []string{"a", "b"} {
		c, task := h.restore(id, image)
		h.counted(c, 1)
		h.ok(task.Kill(h.ctx(), syscall.SIGUSR1))
		h.counted(c, 2)
		if got, _ := h.exec(c, "", "/bin/probe", "read", "/f"); got != "kept" {
			t.Errorf("%s: the file holds %q", id, got)
		}
		defer h.end(c, task)
	}
	t.Cleanup(check)
}

// What is frozen in place can be saved twice at one instant, its files and all of it,
// and runs when it is restored.
func TestCheckpointOfTheFrozen(t *testing.T) {
	h := newHost(t)
	files, image := t.TempDir(), t.TempDir()
	c, task, exit := h.run(want{id: "a", args: counter, spec: h.overlaid("first")})
	h.counted(c, 0)
	h.ok(task.Kill(h.ctx(), syscall.SIGUSR1))
	h.counted(c, 1)
	h.ok(task.Pause(h.ctx()))
	h.ok(h.checkpoint("a", &options.CheckpointOptions{ImagePath: files, EmptyNamespaces: []string{shimapi.NoProcesses}}))
	status, err := task.Status(h.ctx())
	h.ok(err)
	if status.Status != containerd.Paused {
		t.Errorf("status %v after its files were saved, want paused", status.Status)
	}
	h.ok(h.checkpoint("a", &options.CheckpointOptions{ImagePath: image, Exit: true}))
	h.exited(exit)
	h.remove(c, task)

	c, task = h.restore("b", image)
	h.ok(task.Kill(h.ctx(), syscall.SIGUSR1))
	h.counted(c, 2)
	h.end(c, task)
	c, task = h.restore("c", files)
	h.counted(c, 0)
	h.end(c, task)
}

// An image of files alone starts the first process anew.
func TestCheckpointOfFiles(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	image := t.TempDir()
	c, task, _ := h.run(want{id: "a", args: counter, spec: h.overlaid("first")})
	h.counted(c, 0)
	h.ok(task.Kill(h.ctx(), syscall.SIGUSR1))
	h.exec(c, "", "/bin/probe", "write", "/f", "kept")
	h.ok(h.checkpoint("a", &options.CheckpointOptions{ImagePath: image, EmptyNamespaces: []string{shimapi.NoProcesses}}))
	if _, code := h.exec(c, "", "/bin/probe", "write", "/f", "changed"); code != 0 {
		t.Errorf("the sandbox runs no more: write ended with %d", code)
	}
	h.end(c, task)
	if entries, err := os.ReadDir(image); err != nil || len(entries) == 0 {
		t.Fatalf("image: %v, %v", entries, err)
	}

	c, task = h.restore("b", image)
	h.counted(c, 0)
	if got, _ := h.exec(c, "", "/bin/probe", "read", "/f"); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	h.end(c, task)
	check()
}

func TestCheckpointIsRefused(t *testing.T) {
	h := newHost(t)
	c, task := h.create(want{id: "a", spec: h.overlaid("a")})
	if err := h.checkpoint("a", &options.CheckpointOptions{ImagePath: t.TempDir()}); err == nil {
		t.Error("what has not started was saved")
	}
	h.ok(task.Start(h.ctx()))
	if err := h.checkpoint("a", &options.CheckpointOptions{ImagePath: "relative"}); err == nil {
		t.Error("an image was written to a relative path")
	}
	h.end(c, task)
}

// X41: a sandbox whose image can't be written goes on.
func TestX41_ACheckpointThatFails(t *testing.T) {
	h := newHost(t)
	full := t.TempDir()
	h.ok(unix.Mount("tmpfs", full, "tmpfs", 0, "size=64k"))
	defer func() { h.ok(unix.Unmount(full, 0)) }()
	c, task, _ := h.run(want{id: "a", args: counter, spec: h.overlaid("a")})
	h.counted(c, 0)
	h.ok(task.Pause(h.ctx()))
	if err := h.checkpoint("a", &options.CheckpointOptions{ImagePath: full, Exit: true}); err == nil {
		t.Error("an image fits into nothing")
	}
	if _, err := os.Stat(filepath.Join(full, shimapi.ImageComplete)); err == nil {
		t.Error("half an image says that it is complete")
	}
	h.ok(task.Resume(h.ctx()))
	h.ok(task.Kill(h.ctx(), syscall.SIGUSR1))
	h.counted(c, 1)
	h.end(c, task)
}

// A process that Exec added, as kubectl does, holds up no checkpoint. Nobody is
// connected to it afterwards: it does not come back, and its client learns that it ended.
func TestCheckpointDuringAnExec(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	image := t.TempDir()
	c, task, exit := h.run(want{id: "a", args: counter, spec: h.overlaid("first")})
	h.counted(c, 0)
	p, err := task.Exec(h.ctx(), "live", &specs.Process{Args: []string{"/bin/probe", "count", "/exec"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		cio.NewCreator(cio.WithStreams(nil, io.Discard, io.Discard), cio.WithFIFODir(h.Dir+"/fifo")))
	h.ok(err)
	ended, err := p.Wait(h.ctx())
	h.ok(err)
	h.ok(p.Start(h.ctx()))
	h.eventually("the process that was added to run", func() bool {
		got, _ := h.exec(c, "", "/bin/probe", "read", "/exec")
		return got == "0"
	})
	h.ok(task.Pause(h.ctx()))
	h.ok(h.checkpoint("a", &options.CheckpointOptions{ImagePath: image, Exit: true}))
	if code := h.exited(ended); code == 0 {
		t.Error("what was cut off ended well")
	}
	_, err = p.Delete(h.ctx())
	h.ok(err)
	h.exited(exit)
	h.remove(c, task)

	c, task = h.restore("b", image)
	h.ok(task.Kill(h.ctx(), syscall.SIGUSR1))
	h.counted(c, 1)
	h.eventually("the process that was cut off to be gone", func() bool {
		names, _ := h.exec(c, "", "/bin/probe", "ls", "/proc")
		return len(pids.FindAllString(names, -1)) == 2 // the first one and the one that looks
	})
	h.end(c, task)
	check()
}

var pids = regexp.MustCompile(`\b[0-9]+\b`)
