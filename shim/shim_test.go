package shim_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLifecycle(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	c, task, exit := h.run(want{id: "a", args: []string{"/bin/probe", "term"}})
	if pid := h.find("runsc-sandbox", "a"); uint32(pid) != task.Pid() {
		t.Errorf("task's pid is %d, the sentry's %d", task.Pid(), pid)
	}
	status, err := task.Status(h.ctx())
	h.ok(err)
	if status.Status != containerd.Running {
		t.Errorf("status %v, want running", status.Status)
	}
	if _, err := task.Delete(h.ctx()); err == nil {
		t.Error("a running task was deleted")
	}
	pids, err := task.Pids(h.ctx())
	h.ok(err)
	if len(pids) != 1 || pids[0].Pid != task.Pid() {
		t.Errorf("pids %v, want the sentry's %d", pids, task.Pid())
	}
	h.ok(task.Kill(h.ctx(), syscall.SIGTERM))
	if code := h.exited(exit); code != 42 && code != 143 { // 143: before the handler was there
		t.Errorf("exit code %d, want the one that the handler of SIGTERM chose", code)
	}
	h.remove(c, task)
	check()
}

func TestExitStatus(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	for name, w := range map[string]struct {
		args []string
		code uint32
	}{
		"zero":    {[]string{"/bin/probe", "exit", "0"}, 0},
		"seven":   {[]string{"/bin/probe", "exit", "7"}, 7},
		"unknown": {[]string{"/bin/probe"}, 64},
	} {
		c, task, exit := h.run(want{id: name, group: "g", args: w.args})
		if code := h.exited(exit); code != w.code {
			t.Errorf("%s: exit code %d, want %d", name, code, w.code)
		}
		status, err := task.Status(h.ctx())
		h.ok(err)
		if status.Status != containerd.Stopped || status.ExitStatus != w.code || time.Since(status.ExitTime) > patience {
			t.Errorf("%s: status %+v", name, status)
		}
		h.remove(c, task)
	}
	check()
}

func TestStdioOfInit(t *testing.T) {
	h := newHost(t)
	var out bytes.Buffer
	in := newInput("through\n")
	streams := cio.NewCreator(cio.WithStreams(in, &out, io.Discard), cio.WithFIFODir(h.Dir+"/fifo"))
	c, task, exit := h.run(want{id: "a", args: []string{"/bin/probe", "cat"}, io: streams})
	<-in.drained
	h.ok(task.CloseIO(h.ctx(), containerd.WithStdinCloser))
	if code := h.exited(exit); code != 0 {
		t.Errorf("cat ended with %d", code)
	}
	task.IO().Wait()
	h.remove(c, task)
	if out.String() != "through\n" {
		t.Errorf("cat printed %q", out.String())
	}

	file := filepath.Join(h.Dir, "out")
	c, task, exit = h.run(want{id: "b", args: []string{"/bin/probe", "echo", "to a file"}, io: cio.LogFile(file)})
	h.exited(exit)
	h.remove(c, task)
	if got, _ := os.ReadFile(file); string(got) != "[to a file]\n" {
		t.Errorf("file has %q", got)
	}
}

func TestExec(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	c, task, exit := h.run(want{id: "a"})
	if out, code := h.exec(c, "", "/bin/probe", "echo", "x"); out != "[x]\n" || code != 0 {
		t.Errorf("echo: %q, %d", out, code)
	}
	if out, code := h.exec(c, "some input", "/bin/probe", "cat"); out != "some input" || code != 0 {
		t.Errorf("cat: %q, %d", out, code)
	}
	if _, code := h.exec(c, "", "/bin/probe", "exit", "9"); code != 9 {
		t.Errorf("exit: %d, want 9", code)
	}
	_, err := task.Exec(h.ctx(), "missing", &specs.Process{Args: []string{"/no/such"}, Cwd: "/"}, cio.NullIO)
	h.ok(err)
	missing, err := task.LoadProcess(h.ctx(), "missing", nil)
	h.ok(err)
	if err := missing.Start(h.ctx()); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("start of a missing program: %v", err)
	}
	_, err = missing.Delete(h.ctx())
	h.ok(err)

	// One that still runs when the sandbox ends: it ends, too.
	long, err := task.Exec(h.ctx(), "long", &specs.Process{Args: []string{"/bin/probe", "sleep"}, Cwd: "/"}, cio.NullIO)
	h.ok(err)
	longExit, err := long.Wait(h.ctx())
	h.ok(err)
	h.ok(long.Start(h.ctx()))
	pids, err := task.Pids(h.ctx())
	h.ok(err)
	if len(pids) != 2 {
		t.Errorf("pids %v, want sentry and exec", pids)
	}
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(longExit)
	h.exited(exit)
	h.remove(c, task)
	check()
}

func TestExecKillAndTerminal(t *testing.T) {
	h := newHost(t)
	c, task, exit := h.run(want{id: "a"})
	p, err := task.Exec(h.ctx(), "p", &specs.Process{Args: []string{"/bin/probe", "term"}, Cwd: "/"}, cio.NullIO)
	h.ok(err)
	pExit, err := p.Wait(h.ctx())
	h.ok(err)
	h.ok(p.Start(h.ctx()))
	h.ok(p.Kill(h.ctx(), syscall.SIGTERM))
	if code := h.exited(pExit); code != 42 && code != 143 {
		t.Errorf("exit code %d after SIGTERM", code)
	}

	var out bytes.Buffer
	tty := cio.NewCreator(cio.WithStreams(strings.NewReader(""), &out, nil), cio.WithTerminal, cio.WithFIFODir(h.Dir+"/fifo"))
	p, err = task.Exec(h.ctx(), "tty", &specs.Process{Args: []string{"/bin/probe", "tty"}, Cwd: "/", Terminal: true, ConsoleSize: &specs.Box{Height: 31, Width: 97}}, tty)
	h.ok(err)
	pExit, err = p.Wait(h.ctx())
	h.ok(err)
	h.ok(p.Start(h.ctx()))
	h.exited(pExit)
	p.IO().Wait()
	if !strings.HasPrefix(out.String(), "size ") {
		t.Errorf("no terminal: %q", out.String())
	}
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(exit)
	h.remove(c, task)
}

func TestPauseAndResume(t *testing.T) {
	h := newHost(t)
	c, task, exit := h.run(want{id: "a"})
	for range 2 {
		h.ok(task.Pause(h.ctx()))
		if s, err := task.Status(h.ctx()); err != nil || s.Status != containerd.Paused {
			t.Errorf("status %v, %v; want paused", s.Status, err)
		}
		if err := task.Pause(h.ctx()); err == nil {
			t.Error("a paused sandbox was paused")
		}
		h.ok(task.Resume(h.ctx()))
		if out, _ := h.exec(c, "", "/bin/probe", "echo", "x"); out != "[x]\n" {
			t.Errorf("after resume: %q", out)
		}
	}
	h.ok(task.Pause(h.ctx()))
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL)) // works in any state
	if code := h.exited(exit); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	h.remove(c, task)
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	for _, bad := range []func(*specs.Spec){
		func(s *specs.Spec) { s.Root.Path = "nowhere" },
		func(s *specs.Spec) { delete(s.Annotations, "run.s0.shim/runsc") },
		func(s *specs.Spec) { s.Annotations["run.s0.shim/runsc"] = "/no/such" },
		func(s *specs.Spec) { s.Annotations["run.s0.shim/overlay-dir"] = "/no/such" },
	} {
		c, err := h.client.NewContainer(h.ctx(), "bad", containerd.WithRuntime("io.containerd.s0.v1", nil),
			containerd.WithNewSpec(h.spec(want{id: "bad", args: []string{"/bin/probe"}, spec: bad})))
		h.ok(err)
		if _, err := c.NewTask(h.ctx(), cio.NullIO, containerd.WithRootFS(h.mounts())); err == nil {
			t.Error("a bad spec was accepted")
		} else {
			t.Logf("refused: %v", err)
		}
		h.ok(c.Delete(h.ctx()))
		check()
	}
}

func TestStartOfMissingProgramFails(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	c, task := h.create(want{id: "a", args: []string{"/no/such"}})
	if err := task.Start(h.ctx()); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("start: %v, want an error that names the program", err)
	}
	_, err := task.Delete(h.ctx(), containerd.WithProcessKill)
	h.ok(err)
	h.ok(c.Delete(h.ctx()))
	check()
}

// BenchmarkFreezeAndThaw is a pause in place and its end, through containerd.
func BenchmarkFreezeAndThaw(b *testing.B) {
	h := newHost(b)
	c, task, exit := h.run(want{id: "a"})
	for b.Loop() {
		h.ok(task.Pause(h.ctx()))
		h.ok(task.Resume(h.ctx()))
	}
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(exit)
	h.remove(c, task)
}
