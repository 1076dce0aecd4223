package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// tree makes a hierarchy of plain files.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func ptr[T any](v T) *T { return &v }

func TestV1(t *testing.T) {
	t.Parallel()
	root := tree(t, map[string]string{
		"memory/a/b/memory.oom_control":    "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
		"memory/a/b/memory.usage_in_bytes": "4096\n",
		"memory/a/b/memory.limit_in_bytes": "100\n",
		"cpuacct/a/b/cpuacct.usage":        "77\n",
		"cpu/a/b/cpu.cfs_quota_us":         "-1\n",
		"cpu/a/b/cpu.cfs_period_us":        "100000\n",
		"pids/a/b/pids.max":                "max\n",
		"pids/a/b/pids.current":            "5\n",
	})
	g := open(root, "a/b", false)
	if n := g.OOMKills(); n != 3 {
		t.Errorf("OOM kills %d, want 3", n)
	}
	m := g.Stats().(*v1.Metrics)
	if m.Memory.Usage.Usage != 4096 || m.CPU.Usage.Total != 77 || m.Pids.Current != 5 || m.Pids.Limit != 0 {
		t.Errorf("stats %v", m)
	}
	err := g.Update(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 30))},
		CPU:    &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(12))},
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"memory/a/b/memory.limit_in_bytes": "1073741824",
		"cpu/a/b/cpu.cfs_quota_us":         "50000",
		"pids/a/b/pids.max":                "12",
	} {
		if got := read(t, root, file); got != want {
			t.Errorf("%s = %q, want %q", file, got, want)
		}
	}
}

func TestV2(t *testing.T) {
	t.Parallel()
	root := tree(t, map[string]string{
		"x/memory.events":  "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n",
		"x/memory.current": "4096\n",
		"x/memory.max":     "max\n",
		"x/cpu.stat":       "usage_usec 12\nuser_usec 5\n",
		"x/pids.current":   "5\n",
	})
	g := open(root, "/x", true)
	if n := g.OOMKills(); n != 1 {
		t.Errorf("OOM kills %d, want 1", n)
	}
	m := g.Stats().(*v2.Metrics)
	if m.Memory.Usage != 4096 || m.CPU.UsageUsec != 12 || m.Pids.Current != 5 {
		t.Errorf("stats %v", m)
	}
	err := g.Update(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))},
		CPU:    &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Shares: ptr(uint64(1024))},
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"x/memory.max": "max", "x/cpu.max": "50000 100000", "x/cpu.weight": "39",
	} {
		if got := read(t, root, file); got != want {
			t.Errorf("%s = %q, want %q", file, got, want)
		}
	}
	if err := g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(1))}}); err == nil {
		t.Error("a quota without a period was accepted")
	}
}

func TestNoGroup(t *testing.T) {
	t.Parallel()
	g := Open("")
	if g.Stats() != nil || g.OOMKills() != 0 || g.Remove(t.Context()) != nil {
		t.Error("a container without a group has usage")
	}
	if g.Update(&specs.LinuxResources{}) == nil {
		t.Error("limits of no group were accepted")
	}
}

func TestEnter(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := open(root, "/s0-shims", true).Enter(77); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, "s0-shims", "cgroup.procs"); got != "77" {
		t.Errorf("moved %q", got)
	}
	if err := open(root, "/s0-shims", false).Enter(77); err == nil {
		t.Error("half a move was no error")
	}
}
