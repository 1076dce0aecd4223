package shim_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/shimapi"
)

// diesWith kills one process of a sandbox and wants an exit, and nothing left.
func diesWith(t *testing.T, victim string) {
	h := newHost(t)
	check := h.baseline()
	c, task, exit := h.run(want{id: "a", group: "g"})
	pid := h.find(victim, "a")
	start := time.Now()
	h.killPid(pid)
	if code := h.exited(exit); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	t.Logf("exit after %v", time.Since(start))
	h.remove(c, task)
	check()
}

func TestX29_SentryKilled(t *testing.T) { diesWith(t, "runsc-sandbox") }
func TestX29_GoferKilled(t *testing.T)  { diesWith(t, "runsc-gofer") }

// A killed shim takes the sandboxes of its group with it, and nothing else.
func TestX29_ShimKilled(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	var all []containerd.Container
	var exits []<-chan containerd.ExitStatus
	for i := range 3 {
		c, _, exit := h.run(want{id: fmt.Sprintf("a%d", i), group: "g"})
		all, exits = append(all, c), append(exits, exit)
	}
	other, otherTask, otherExit := h.run(want{id: "other", group: "h"})
	victim := 0
	for _, pid := range h.shims() {
		if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(cmdline), "\x00g\x00") {
			victim = pid
		}
	}
	start := time.Now()
	h.killPid(victim)
	for i, exit := range exits {
		select {
		case <-exit: // with an error: the shim that was asked is gone
		case <-time.After(patience):
			t.Errorf("a%d: no exit within %v", i, patience)
		}
	}
	t.Logf("exits after %v", time.Since(start))
	h.eventually("containerd has forgotten the tasks", func() bool {
		for _, c := range all {
			if _, err := c.Task(h.ctx(), nil); err == nil {
				return false
			}
		}
		return true
	})
	for _, c := range all {
		h.ok(c.Delete(h.ctx()))
	}
	if out, _ := h.exec(other, "", "/bin/probe", "echo", "alive"); out != "[alive]\n" {
		t.Errorf("the other group's sandbox: %q", out)
	}
	h.ok(otherTask.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(otherExit)
	h.remove(other, otherTask)
	check()
}

// When containerd is killed and comes back, sandboxes still run and answer; what
// ended meanwhile is known to have ended, with its status.
func TestX28_ContainerdKilled(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	alive, _, _ := h.run(want{id: "alive", group: "g"})
	ended, endedTask, _ := h.run(want{id: "ended", group: "g", args: []string{"/bin/probe", "term"}})
	killed, killedTask, _ := h.run(want{id: "killed", group: "g"})
	sentry := h.find("runsc-sandbox", "killed")
	shims := fmt.Sprint(h.shims())

	h.Kill()
	h.killPid(sentry)
	h.eventually("the sentry is reaped", func() bool { return syscall.Kill(sentry, 0) != nil })
	h.Start(t)

	if now := fmt.Sprint(h.shims()); now != shims {
		t.Errorf("shims %v, want the same %v as before", now, shims)
	}
	if out, _ := h.exec(alive, "", "/bin/probe", "echo", "alive"); out != "[alive]\n" {
		t.Errorf("after the restart: %q", out)
	}
	status, err := killedTask.Status(h.ctx())
	h.ok(err)
	if status.Status != containerd.Stopped || status.ExitStatus != 137 {
		t.Errorf("status of what ended meanwhile: %+v", status)
	}
	h.remove(killed, killedTask)

	exit, err := endedTask.Wait(h.ctx())
	h.ok(err)
	h.ok(endedTask.Kill(h.ctx(), syscall.SIGTERM))
	h.exited(exit)
	h.remove(ended, endedTask)

	task, err := alive.Task(h.ctx(), nil)
	h.ok(err)
	exit, err = task.Wait(h.ctx())
	h.ok(err)
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(exit)
	h.remove(alive, task)
	check()
}

// Shim and containerd die together, as in a reboot that kept the disk, or a bad
// day: the next containerd cleans up.
func TestX28_ContainerdAndShimKilled(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	c, _, _ := h.run(want{id: "a", group: "g"})
	h.Kill()
	for _, pid := range h.shims() {
		h.killPid(pid)
	}
	h.Start(t)
	h.eventually("the task is gone", func() bool { _, err := c.Task(h.ctx(), nil); return err != nil })
	h.ok(c.Delete(h.ctx()))
	check()
}

// SIGTERM to a shim is no way to lose what it serves track of.
func TestShimTerminated(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	c, _, _ := h.run(want{id: "a", group: "g"})
	for _, pid := range h.shims() {
		h.ok(syscall.Kill(pid, syscall.SIGTERM))
	}
	h.eventually("the task is gone", func() bool { _, err := c.Task(h.ctx(), nil); return err != nil })
	h.ok(c.Delete(h.ctx()))
	check()
}

// The containers of a group share one process, which ends with the last of them;
// containers that come while it ends are served by the next.
func TestGroupSharesOneShim(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	for range 3 {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				c, task, exit := h.run(want{id: fmt.Sprintf("a%d", i), group: "g"})
				h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
				h.exited(exit)
				h.remove(c, task)
			})
		}
		wg.Wait()
	}
	check()

	first, firstTask, firstExit := h.run(want{id: "first", group: "g"})
	second, secondTask, secondExit := h.run(want{id: "second", group: "g"})
	if n := len(h.shims()); n != 1 {
		t.Errorf("%d shims for one group, want 1", n)
	}
	// The first container's bundle was the shim's cradle; it goes first.
	h.ok(firstTask.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(firstExit)
	h.remove(first, firstTask)
	if out, _ := h.exec(second, "", "/bin/probe", "echo", "x"); out != "[x]\n" {
		t.Errorf("second container after the first one's end: %q", out)
	}
	h.ok(secondTask.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(secondExit)
	h.remove(second, secondTask)
	check()
}

func TestD02_OutOfMemory(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	events, errs := h.client.Subscribe(h.ctx(), `topic=="/tasks/oom"`)
	limit := int64(128 << 20)
	c, task, exit := h.run(want{id: "a", group: "g", args: []string{"/bin/probe", "eat", "512"}, spec: func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	}})
	t.Logf("exit code %d", h.exited(exit))
	select {
	case e := <-events:
		v, err := typeurl.UnmarshalAny(e.Event)
		h.ok(err)
		if oom, ok := v.(*apievents.TaskOOM); !ok || oom.ContainerID != "a" {
			t.Errorf("event %v", v)
		}
	case err := <-errs:
		t.Error(err)
	case <-time.After(patience):
		t.Error("no OOM event")
	}
	h.remove(c, task)
	check()
}

// Whenever a shim dies while it creates a sandbox, nothing of that is left. Only
// its socket may be, when it dies before containerd has connected: the next
// founder removes it.
func TestG12_ShimKilledDuringCreate(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	for ms := 5; ms <= 150; ms += 15 {
		h.interrupted(time.Duration(ms)*time.Millisecond, func() {
			for _, pid := range h.shims() {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
			}
		})
	}
	h.found()
	check()
}

// found has another group founded, whose founder buries dead sockets.
func (h *host) found() {
	h.Helper()
	c, task, exit := h.run(want{id: "last", group: "another"})
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(exit)
	h.remove(c, task)
}

// The same for a caller that goes away, without a deadline to tell the shim.
func TestG05_CallerGoneDuringCreate(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	for ms := 5; ms <= 150; ms += 15 {
		h.interrupted(time.Duration(ms)*time.Millisecond, nil)
		h.found() // containerd kills `start` with its caller, also between a socket and its process
		check()
	}
}

// The same for containerd: what it has left half-made, the next one removes, or
// knows and can be told to remove.
func TestX28_ContainerdKilledDuringCreate(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	for ms := 5; ms <= 150; ms += 30 {
		h.interrupted(time.Duration(ms)*time.Millisecond, func() {
			h.Kill()
			h.Start(h.TB)
		})
		check()
	}
}

// interrupted creates a container, interferes after a while, and removes what
// containerd then knows of it.
func (h *host) interrupted(after time.Duration, interfere func()) {
	h.Helper()
	w := want{id: "a", group: "g", args: []string{"/bin/probe", "sleep"}}
	c, err := h.client.NewContainer(h.ctx(), w.id, containerd.WithRuntime(shimapi.Runtime, nil), containerd.WithNewSpec(h.spec(w)))
	h.ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.NewTask(ctx, cio.NullIO, containerd.WithRootFS(h.mounts()))
	}()
	<-time.After(after) // the moment is the test's parameter
	if interfere == nil {
		cancel()
	} else {
		interfere()
	}
	<-done
	h.eventually("the task is gone", func() bool {
		task, err := c.Task(h.ctx(), nil)
		if err != nil {
			return errdefs.IsNotFound(err)
		}
		_, _ = task.Delete(h.ctx(), containerd.WithProcessKill)
		return false
	})
	h.ok(c.Delete(h.ctx()))
}

// R3: a shim that hangs while containerd restarts is given up, but its sandboxes
// live: a slow answer is no death. Whoever owns them ends them by their processes;
// the shim, when it goes on, removes what is left and nobody will ask for again.
func TestX28_ShimHangsWhileContainerdRestarts(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	c, _, _ := h.run(want{id: "a", group: "g"})
	shim, sentry, gofer := h.shims()[0], h.find("runsc-sandbox", "a"), h.find("runsc-gofer", "a")
	h.Kill()
	h.ok(syscall.Kill(shim, syscall.SIGSTOP))
	h.WaitForShims(h.TB, 2*time.Second)
	h.Start(h.TB)
	h.eventually("containerd has given the task up", func() bool { _, err := c.Task(h.ctx(), nil); return err != nil })
	h.ok(syscall.Kill(shim, syscall.SIGCONT))
	if now := h.find("runsc-sandbox", "a"); now != sentry {
		t.Errorf("the sentry is %d, was %d", now, sentry)
	}
	if now := h.find("runsc-gofer", "a"); now != gofer {
		t.Errorf("the gofer is %d, was %d", now, gofer)
	}
	h.killPid(sentry)
	h.ok(c.Delete(h.ctx()))
	check()
}
