package cgroup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// openReal opens groups on this host's own hierarchy, whichever it is.
func openReal(t *testing.T, disk Disk) *Groups {
	t.Helper()
	s0test.NeedRoot(t)
	layout, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	layout.Disk = disk
	parent := "/s0-test/" + strconv.Itoa(os.Getpid())
	g, err := Open(layout, parent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Close()
		for _, dir := range layout.dirs(parent) {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("left behind: %s", dir)
			}
			_ = unix.Rmdir(filepath.Dir(dir)) // shared with other runs
		}
	})
	return g
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func join(t *testing.T, g *Groups, id sandbox.ID, pid int) {
	t.Helper()
	for _, c := range g.layout.controllers() {
		if err := write(filepath.Join(g.layout.dir(c, g.Path(id)), "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLifecycleOnThisHost(t *testing.T) {
	g := openReal(t, Disk{})
	id := newID(t)
	idle := Limits{MemoryBytes: 64 << 20, CPUMillis: 500, Pids: 50, Idle: true}
	if err := g.Create(id, idle); err != nil {
		t.Fatal(err)
	}
	claimed := idle
	claimed.Idle, claimed.MemoryBytes = false, 128<<20
	if err := g.Set(id, idle, claimed); err != nil {
		t.Fatal(err)
	}
	hasLimits(t, g, id, claimed)

	// A process that ignores SIGTERM and has a child of its own goes with the group.
	cmd := exec.Command("sh", "-c", "trap '' TERM; sleep 1000 & wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	join(t, g, id, cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	// What runsc adds on v1 goes too.
	for _, dir := range g.layout.dirs(g.Path(id)) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stats, err := g.Stats(id)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Pids < 1 || stats.OOMKills != 0 {
		t.Errorf("usage %+v with a process inside", stats)
	}
	if ids, err := g.List(); err != nil || !slices.Equal(ids, []sandbox.ID{id}) {
		t.Errorf("listed %v (%v)", ids, err)
	}
	if err := g.Hurry(id); err != nil {
		t.Error(err)
	}
	hurried := claimed
	hurried.CPUMillis = 1 << 40
	hasLimits(t, g, id, hurried, "cpu.shares", "cpu.weight")
	if err := g.Calm(id); err != nil {
		t.Error(err)
	}
	hasLimits(t, g, id, idle, "cpu.shares", "cpu.weight")
	for range 2 { // idempotent
		if err := g.Remove(bounded(t), id); err != nil {
			t.Fatal(err)
		}
	}
	<-ended
	if ids, err := g.List(); err != nil || len(ids) != 0 {
		t.Errorf("listed %v (%v) after removal", ids, err)
	}
}

// hasLimits checks the control files, of these names alone if there are any.
func hasLimits(t *testing.T, g *Groups, id sandbox.ID, want Limits, only ...string) {
	t.Helper()
	for _, s := range g.layout.settings(want) {
		if len(only) > 0 && !slices.Contains(only, s.file) {
			continue
		}
		got, err := os.ReadFile(filepath.Join(g.layout.dir(s.controller, g.Path(id)), s.file))
		if err != nil && !s.optional || err == nil && strings.TrimSpace(string(got)) != s.value {
			t.Errorf("%s is %q (%v), want %q", s.file, got, err, s.value)
		}
	}
}

// D02: a bomb gets none of the host's swap, whichever way its limit is changed.
func TestD02_NoSwap(t *testing.T) {
	g := openReal(t, Disk{})
	id := newID(t)
	l := Limits{MemoryBytes: 64 << 20, CPUMillis: 500, Pids: 50}
	if err := g.Create(id, l); err != nil {
		t.Fatal(err)
	}
	for _, memory := range []int64{64 << 20, 256 << 20, 32 << 20} {
		from := l
		l.MemoryBytes = memory
		if err := g.Set(id, from, l); err != nil {
			t.Fatal(err)
		}
		hasLimits(t, g, id, l)
		if err := g.Create(id, l); err != nil { // as adoption does
			t.Fatal(err)
		}
	}
	swap := "memory.memsw.limit_in_bytes"
	if g.layout.Unified != "" {
		swap = "memory.swap.max"
	}
	if v, ok := values(g.layout.settings(l))[swap]; !ok || v == "max" {
		t.Errorf("swap is bounded by %q", v)
	}
	if err := g.Remove(bounded(t), id); err != nil {
		t.Fatal(err)
	}
}

// A process outside the group is never killed for a pid that was once inside.
func TestKillSparesOthers(t *testing.T) {
	g := openReal(t, Disk{})
	id := newID(t)
	if err := g.Create(id, Limits{MemoryBytes: 64 << 20, CPUMillis: 500, Pids: 50}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killMember(cmd.Process.Pid, g.Path(id))
	if err := g.Remove(bounded(t), id); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the neighbour is gone: %v", err)
	}
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Error("the neighbour had ended by itself")
	}
}

func TestD02_OOMIsCounted(t *testing.T) {
	g := openReal(t, Disk{})
	id := newID(t)
	if err := g.Create(id, Limits{MemoryBytes: 16 << 20, CPUMillis: 1000, Pids: 50}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read _; exec tail /dev/zero") // waits until it is inside
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	join(t, g, id, cmd.Process.Pid)
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("a memory bomb ended well")
	}
	for _, dir := range g.layout.dirs(g.Path(id)) {
		_ = os.MkdirAll(dir, 0o755)
	}
	if s, err := g.Stats(id); err != nil || s.OOMKills == 0 {
		t.Errorf("usage %+v (%v) after an OOM kill", s, err)
	}
	if err := g.Remove(bounded(t), id); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkClaimWrites(b *testing.B) {
	s0test.NeedRoot(b)
	layout, err := Detect()
	if err != nil {
		b.Fatal(err)
	}
	g, err := Open(layout, "/s0-bench")
	if err != nil {
		b.Fatal(err)
	}
	id, _ := sandbox.NewID("local")
	idle := Limits{MemoryBytes: 64 << 20, CPUMillis: 500, Pids: 50, Idle: true}
	claimed := Limits{MemoryBytes: 128 << 20, CPUMillis: 2500, Pids: 50}
	if err := g.Create(id, idle); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := g.Set(id, idle, claimed); err != nil {
			b.Fatal(err)
		}
	}
	if err := g.Remove(context.Background(), id); err != nil {
		b.Fatal(err)
	}
	for _, dir := range layout.dirs("/s0-bench") {
		_ = unix.Rmdir(dir)
	}
}
