package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// D06: whoever writes to the disk again and again, and waits for it, gets so many writes a
// second, and no more; lifted, as many as the disk has.
func TestD06_AStormIsBounded(t *testing.T) {
	s0test.NeedRoot(t)
	const perSecond, writes = 40, 40
	dir, err := os.MkdirTemp("/var/tmp", "s0-storm-") // on a disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	device, err := DiskOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	g := openReal(t, Disk{Device: device, WriteOps: perSecond})
	if !g.BoundsDisk() {
		t.Skipf("%s is on no disk that can be bounded: device %q, %+v", dir, device, g.layout)
	}
	id := newID(t)
	limits := Limits{MemoryBytes: 64 << 20, CPUMillis: 1000, Pids: 10}
	if err := g.Create(id, limits); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(bounded(t), id); err != nil {
			t.Error(err)
		}
	})
	storm := func() time.Duration {
		t.Helper()
		cmd := exec.Command("sh", "-c", "read go; exec dd if=/dev/zero of="+filepath.Join(dir, "f")+" bs=4096 count="+strconv.Itoa(writes)+" oflag=direct,dsync 2>&1")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		join(t, g, id, cmd.Process.Pid)
		begin := time.Now()
		if _, err := in.Write([]byte("go\n")); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return time.Since(begin)
	}
	if got := bound(t, g, id, device); !strings.Contains(got, strconv.Itoa(perSecond)) {
		t.Errorf("the group's bound is %q, want %d", got, perSecond)
	}
	if took := storm(); took < time.Second*writes/perSecond*3/4 {
		t.Errorf("%d writes took %s, want %d a second", writes, took, perSecond)
	}
	hasty := limits
	hasty.Hasty = true
	if err := g.Set(id, limits, hasty); err != nil {
		t.Fatal(err)
	}
	if got := bound(t, g, id, device); got != "" { // how fast the disk is, nobody knows
		t.Errorf("once it was lifted, the group's bound is %q", got)
	}
	t.Logf("as many without a bound took %s", storm())
}

// bound is what the kernel has of a group's writes to a device: nothing, if it has no bound.
func bound(t *testing.T, g *Groups, id sandbox.ID, device string) string {
	t.Helper()
	s := g.layout.Disk.settings(g.layout, false)[0]
	b, err := os.ReadFile(filepath.Join(g.layout.dir(s.controller, g.Path(id)), s.file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if limits, ok := strings.CutPrefix(line, device+" "); ok && !strings.Contains(limits, "wiops=max") {
			return strings.TrimSpace(limits)
		}
	}
	return ""
}
