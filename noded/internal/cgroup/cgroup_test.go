package cgroup

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"s0.run/internal/sandbox"
)

const (
	mountsV2 = `30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
31 23 0:27 / /proc rw shared:5 - proc proc rw
`
	mountsV1 = `30 23 0:26 / /sys/fs/cgroup ro shared:4 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw shared:6 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw shared:7 - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/systemd rw shared:8 - cgroup cgroup rw,xattr,name=systemd
35 23 0:27 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct
`
	mountHybrid = `36 30 0:31 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
`
)

func parse(t *testing.T, mounts string) Layout {
	t.Helper()
	l, err := parseMountinfo(strings.NewReader(mounts))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayouts(t *testing.T) {
	t.Parallel()
	const group = "/s0/x"
	v1Dirs := []string{"/sys/fs/cgroup/cpu,cpuacct/s0/x", "/sys/fs/cgroup/memory/s0/x", "/sys/fs/cgroup/pids/s0/x", "/sys/fs/cgroup/systemd/s0/x"}
	for name, c := range map[string]struct {
		mounts, cpu string
		dirs        []string
	}{
		"v2":     {mountsV2, "/sys/fs/cgroup/s0/x", []string{"/sys/fs/cgroup/s0/x"}},
		"v1":     {mountsV1, "/sys/fs/cgroup/cpu,cpuacct/s0/x", v1Dirs},
		"hybrid": {mountsV1 + mountHybrid, "/sys/fs/cgroup/cpu,cpuacct/s0/x", append(slices.Clone(v1Dirs), "/sys/fs/cgroup/unified/s0/x")},
	} {
		l := parse(t, c.mounts)
		if got := l.dir("cpu", group); got != c.cpu {
			t.Errorf("%s: cpu in %s, want %s", name, got, c.cpu)
		}
		if got := l.dirs(group); !slices.Equal(got, c.dirs) {
			t.Errorf("%s: directories %v, want %v", name, got, c.dirs)
		}
	}
	for _, mounts := range []string{"", strings.ReplaceAll(mountsV1, "rw,pids", "rw,other"), "garbage\n"} {
		if l, err := parseMountinfo(strings.NewReader(mounts)); err == nil {
			t.Errorf("layout %+v from %q", l, mounts)
		}
	}
}

func values(settings []setting) map[string]string {
	m := map[string]string{}
	for _, s := range settings {
		m[s.file] = s.value
	}
	return m
}

func TestSettings(t *testing.T) {
	t.Parallel()
	v1, v2 := parse(t, mountsV1), parse(t, mountsV2)
	for _, c := range []struct {
		limits                       Limits
		shares, quota, weight, cpumx string
	}{
		{Limits{CPUMillis: 2000}, "2048", "200000", "79", "200000 100000"},
		{Limits{CPUMillis: 125}, "128", "100000", "5", "100000 100000"}, // a small share bursts to one core
		{Limits{CPUMillis: 2000, Idle: true}, "2", "200000", "1", "200000 100000"},
		{Limits{CPUMillis: 2000, Hasty: true}, "2048", "-1", "79", "max 100000"},
		{Limits{CPUMillis: 1}, "2", "100000", "1", "100000 100000"},
		{Limits{CPUMillis: 1 << 40}, "262144", "109951162777600", "10000", "109951162777600 100000"},
	} {
		got1, got2 := values(v1.settings(c.limits)), values(v2.settings(c.limits))
		if got1["cpu.shares"] != c.shares || got1["cpu.cfs_quota_us"] != c.quota {
			t.Errorf("%+v on v1: %v", c.limits, got1)
		}
		if got2["cpu.weight"] != c.weight || got2["cpu.max"] != c.cpumx {
			t.Errorf("%+v on v2: %v", c.limits, got2)
		}
	}
	m := values(v2.settings(Limits{MemoryBytes: 1 << 28, Pids: 100}))
	if m["memory.max"] != "268435456" || m["memory.swap.max"] != "0" || m["memory.oom.group"] != "1" || m["pids.max"] != "100" {
		t.Errorf("v2: %v", m)
	}
}

// A claim that asks for what the slot already has costs one write, the CPU share.
func TestSetWritesOnlyChanges(t *testing.T) {
	t.Parallel()
	l := parse(t, mountsV2)
	idle := Limits{MemoryBytes: 1 << 28, CPUMillis: 500, Pids: 100, Idle: true}
	claimed := idle
	claimed.Idle = false
	if got := changed(l.settings(idle), l.settings(claimed)); len(got) != 1 || got[0].file != "cpu.weight" {
		t.Errorf("an equal claim writes %v", got)
	}
	claimed.MemoryBytes *= 2
	if got := changed(l.settings(idle), l.settings(claimed)); len(got) != 2 || got[1].file != "memory.max" {
		t.Errorf("a bigger claim writes %v", got)
	}
}

func newID(t *testing.T) sandbox.ID {
	t.Helper()
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// fakeV2 is a directory with the control files of a v2 group, which a kernel would make.
func fakeV2(t *testing.T, id sandbox.ID, files map[string]string) *Groups {
	t.Helper()
	root := t.TempDir()
	g := &Groups{layout: Layout{Unified: root}, parent: "/s0/t"}
	dir := filepath.Join(root, g.Path(id))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func TestV2Files(t *testing.T) {
	t.Parallel()
	id := newID(t)
	g := fakeV2(t, id, map[string]string{
		"cpu.weight": "100", "cpu.max": "max 100000", "memory.max": "max", "pids.max": "max",
		"cpu.stat": "usage_usec 1500\nuser_usec 1000\nthrottled_usec 30\n", "memory.current": "4096\n", "memory.stat": "file 2000\ninactive_file 1000\n", "pids.current": "7\n", "memory.events": "oom 2\noom_kill 1\n",
	})
	if err := g.Create(id, Limits{MemoryBytes: 1 << 20, CPUMillis: 1000, Pids: 9}); err != nil { // without the optional files
		t.Fatal(err)
	}
	weight, err := os.ReadFile(filepath.Join(g.layout.dir("cpu", g.Path(id)), "cpu.weight"))
	if err != nil || !strings.HasPrefix(string(weight), "39") { // a plain file keeps the tail of what it held
		t.Errorf("cpu.weight %q (%v)", weight, err)
	}
	s, err := g.Stats(id)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Stats{CPU: 1500 * time.Microsecond, Throttled: 30 * time.Microsecond, MemoryBytes: 4096, WorkingSet: 3096, Pids: 7, OOMKills: 1}); s != want {
		t.Errorf("usage %+v, want %+v", s, want)
	}
	if ids, err := g.List(); err != nil || !slices.Equal(ids, []sandbox.ID{id}) {
		t.Errorf("listed %v (%v)", ids, err)
	}
}

// What is to end has the greatest share and the quota that it had, what could not be ended the
// least; what is gone is no error.
func TestHurryAndCalm(t *testing.T) {
	t.Parallel()
	v1, v2, id := t.TempDir(), t.TempDir(), newID(t)
	for file, g := range map[string]*Groups{
		filepath.Join(v1, "s0/t", string(id), "cpu.shares"): {layout: Layout{V1: map[string]string{"cpu": v1}}, parent: "/s0/t"},
		filepath.Join(v2, "s0/t", string(id), "cpu.weight"): {layout: Layout{Unified: v2}, parent: "/s0/t"},
	} {
		if err := errors.Join(g.Hurry(id), g.Calm(id)); err != nil {
			t.Errorf("without a group: %v", err)
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			set  func(sandbox.ID) error
			want map[string]string
		}{
			{g.Hurry, map[string]string{"cpu.shares": "262144", "cpu.weight": "10000"}},
			{g.Calm, map[string]string{"cpu.shares": "2", "cpu.weight": "1"}},
		} {
			if err := os.WriteFile(file, nil, 0o644); err != nil { // a plain file keeps the tail of what it held
				t.Fatal(err)
			}
			if err := c.set(id); err != nil {
				t.Errorf("%s: %v", filepath.Base(file), err)
			}
			if got, err := os.ReadFile(file); err != nil || string(got) != c.want[filepath.Base(file)] {
				t.Errorf("%s is %q (%v), want %v", filepath.Base(file), got, err, c.want)
			}
		}
		if files, err := os.ReadDir(filepath.Dir(file)); err != nil || len(files) != 1 {
			t.Errorf("%v (%v), want one file", files, err)
		}
	}
}

// A v1 host keeps each controller's files apart. What some kernels do not count is
// 0; what all of them do must be there.
func TestV1Counters(t *testing.T) {
	t.Parallel()
	id := newID(t)
	root := t.TempDir()
	g := &Groups{layout: Layout{V1: map[string]string{}}, parent: "/s0/t"}
	files := map[string]string{
		"cpuacct/cpuacct.usage": "1500000\n", "memory/memory.usage_in_bytes": "4096\n", "pids/pids.current": "7\n",
		"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
	}
	put := func(name, content string) {
		controller, file := filepath.Split(name)
		g.layout.V1[filepath.Clean(controller)] = filepath.Join(root, controller)
		dir := filepath.Join(root, controller, g.Path(id))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		put(name, content)
	}
	want := Stats{CPU: 1500 * time.Microsecond, MemoryBytes: 4096, WorkingSet: 4096, Pids: 7, OOMKills: 1}
	if s, err := g.Stats(id); err != nil || s != want {
		t.Errorf("usage %+v (%v), want %+v", s, err, want)
	}
	put("cpu/cpu.stat", "nr_throttled 3\nthrottled_time 18446744073709551615\n")
	put("memory/memory.stat", "inactive_file 1\ntotal_inactive_file_x 2\ntotal_inactive_file 5000\n")
	want.Throttled, want.WorkingSet = math.MaxInt64, 0
	if s, err := g.Stats(id); err != nil || s != want {
		t.Errorf("usage %+v (%v), want %+v", s, err, want)
	}
	for _, broken := range []string{"", "many\n", "-1\n"} {
		put("pids/pids.current", broken)
		if s, err := g.Stats(id); err == nil {
			t.Errorf("%+v from %q", s, broken)
		}
	}
}

func TestParentMustBeBelowTheRoot(t *testing.T) {
	t.Parallel()
	for _, parent := range []string{"", "/", "..", "/../"} {
		if _, err := Open(Layout{Unified: t.TempDir()}, parent); err == nil {
			t.Errorf("parent %q accepted", parent)
		}
	}
}
