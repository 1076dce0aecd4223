package shim_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/cgroups/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// limitFiles names the files of each limit: v1 and hybrid, v2.
func (h *host) limit(id, v1, v2 string) string {
	h.Helper()
	path := filepath.Join("/sys/fs/cgroup", filepath.Dir(v1), h.CgroupParent, id, filepath.Base(v1))
	if cgroups.Mode() == cgroups.Unified {
		path = filepath.Join("/sys/fs/cgroup", h.CgroupParent, id, v2)
	}
	raw, err := os.ReadFile(path)
	h.ok(err)
	return strings.TrimSpace(string(raw))
}

func (h *host) wantLimits(id string, memory, cpu1, cpu2, pids string) {
	h.Helper()
	for _, l := range []struct{ got, want string }{
		{h.limit(id, "memory/memory.limit_in_bytes", "memory.max"), memory},
		{h.limit(id, "pids/pids.max", "pids.max"), pids},
	} {
		if l.got != l.want {
			h.Errorf("limit is %s, want %s", l.got, l.want)
		}
	}
	want := cpu1
	if cgroups.Mode() == cgroups.Unified {
		want = cpu2
	}
	if got := h.limit(id, "cpu/cpu.cfs_quota_us", "cpu.max"); got != want {
		h.Errorf("cpu limit is %s, want %s", got, want)
	}
}

func TestLimits(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	res := func(memory, quota, pids int64) *specs.LinuxResources {
		period := uint64(100000)
		return &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &memory},
			CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
			Pids:   &specs.LinuxPids{Limit: &pids},
		}
	}
	c, task, exit := h.run(want{id: "a", spec: func(s *specs.Spec) { s.Linux.Resources = res(256<<20, 50000, 300) }})
	h.wantLimits("a", "268435456", "50000", "50000 100000", "300")
	procs := h.limit("a", "memory/cgroup.procs", "cgroup.procs")
	for _, name := range []string{"runsc-sandbox", "runsc-gofer"} {
		pid := h.find(name, "a")
		if !strings.Contains("\n"+procs+"\n", "\n"+jsonString(pid)+"\n") {
			t.Errorf("%s (%d) is not in the cgroup: %q", name, pid, procs)
		}
	}
	h.ok(task.Update(h.ctx(), containerd.WithResources(res(512<<20, 150000, 400))))
	h.wantLimits("a", "536870912", "150000", "150000 100000", "400")

	metrics, err := task.Metrics(h.ctx())
	h.ok(err)
	usage, err := typeurl.UnmarshalAny(metrics.Data)
	h.ok(err)
	if raw := jsonString(usage); !strings.Contains(raw, "536870912") {
		t.Errorf("metrics lack the memory limit: %s", raw)
	}
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(exit)
	h.remove(c, task)
	check()
}

func jsonString(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw)
}

// A rootfs that is read-only on the host is writable inside: the upper layer is
// in the overlay directory, and is gone with the sandbox.
func TestOverlayDir(t *testing.T) {
	h := newHost(t)
	check := h.baseline()
	dir := t.TempDir()
	h.ok(os.Chmod(filepath.Dir(dir), 0o711))
	overlay := func(s *specs.Spec) { s.Annotations["run.s0.shim/overlay-dir"] = dir }
	c, task, exit := h.run(want{id: "a", spec: overlay})
	if out, code := h.exec(c, "", "/bin/probe", "write", "/etc/new", "content"); code != 0 {
		t.Fatalf("writing: %s", out)
	}
	if out, _ := h.exec(c, "", "/bin/probe", "read", "/etc/new"); out != "content" {
		t.Errorf("read back %q", out)
	}
	if _, err := os.Stat(filepath.Join(h.rootfs, "etc", "new")); err == nil {
		t.Error("the write went to the rootfs on the host")
	}
	h.ok(task.Kill(h.ctx(), syscall.SIGKILL))
	h.exited(exit)
	h.remove(c, task)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left in the overlay directory: %v", left)
	}
	check()
}
