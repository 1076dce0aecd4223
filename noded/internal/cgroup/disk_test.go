package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// D06: a disk is bounded where the host can, on both hierarchies, and the node's own work is not.
func TestD06_SettingsOfTheDisk(t *testing.T) {
	t.Parallel()
	const blkio = "37 30 0:32 / /sys/fs/cgroup/blkio rw shared:9 - cgroup cgroup rw,blkio\n"
	for name, c := range map[string]struct {
		mounts     string
		disk       Disk
		file       string
		value, own string
	}{
		"v1":            {mountsV1 + blkio, Disk{"254:0", 100}, "blkio.throttle.write_iops_device", "254:0 100", "254:0 0"},
		"v2":            {mountsV2, Disk{"254:0", 100}, "io.max", "254:0 wiops=100", "254:0 wiops=max"},
		"no controller": {mountsV1, Disk{"254:0", 100}, "blkio.throttle.write_iops_device", "", ""},
		"no disk":       {mountsV2, Disk{"", 100}, "io.max", "", ""},
		"no bound":      {mountsV2, Disk{"254:0", 0}, "io.max", "", ""},
	} {
		l := parse(t, c.mounts)
		l.Disk = c.disk
		if got := values(l.settings(Limits{}))[c.file]; got != c.value {
			t.Errorf("%s: %q, want %q", name, got, c.value)
		}
		if got := values(l.settings(Limits{Hasty: true}))[c.file]; got != c.own {
			t.Errorf("%s, hasty: %q, want %q", name, got, c.own)
		}
		if got := slices.Contains(l.controllers(), v1Disk); got != (name == "v1") {
			t.Errorf("%s: controllers %v", name, l.controllers())
		}
	}
}

func TestWholeDisk(t *testing.T) {
	t.Parallel()
	sys := t.TempDir()
	for path, content := range map[string]string{"devices/vda/dev": "254:0\n", "devices/vda/vda1/dev": "254:1\n", "devices/vda/vda1/partition": "1\n"} {
		if err := os.MkdirAll(filepath.Join(sys, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for number, to := range map[string]string{"254:0": "devices/vda", "254:1": "devices/vda/vda1"} {
		if err := os.Symlink(to, filepath.Join(sys, number)); err != nil {
			t.Fatal(err)
		}
	}
	for device, want := range map[string]string{"254:0": "254:0", "254:1": "254:0", "0:44": ""} {
		if got, err := wholeDisk(sys, device); got != want || err != nil {
			t.Errorf("%s is of %q, %v; want %q", device, got, err, want)
		}
	}
}
