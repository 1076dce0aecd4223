package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// v1Disk is the controller of disks on v1, which v2 calls io.
const v1Disk = "blkio"

// Disk is the disk that sandboxes write to, and how often a second each may. What a sandbox
// has written to files it has not synced is the kernel's to write, when that likes; what it
// waits for counts.
type Disk struct {
	Device   string // "major:minor" of the whole disk; "": none that can be bounded
	WriteOps int    // a second; 0: any number
}

// DiskOf finds the disk that a directory's files are on. A file system that is on none, or on
// one that is not the kernel's own, can't be bounded and has no device.
func DiskOf(dir string) (device string, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("the disk of %s: %w", dir, err)
	}
	return wholeDisk("/sys/dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
}

// wholeDisk is the disk that a device is a partition of, or is.
func wholeDisk(sys, device string) (string, error) {
	at, err := filepath.EvalSymlinks(filepath.Join(sys, device))
	if os.IsNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(at, "partition")); err != nil {
		return device, nil
	}
	number, err := os.ReadFile(filepath.Join(filepath.Dir(at), "dev"))
	return strings.TrimSpace(string(number)), err
}

func (d Disk) bounded() bool { return d.Device != "" && d.WriteOps > 0 }

// settings bound the disk, unless what runs is the node's own work.
func (d Disk) settings(l Layout, hasty bool) []setting {
	switch {
	case !d.bounded(), l.Unified == "" && l.V1[v1Disk] == "":
		return nil
	case l.Unified == "" && hasty:
		return []setting{{controller: v1Disk, file: "blkio.throttle.write_iops_device", value: d.Device + " 0", optional: true}}
	case l.Unified == "":
		return []setting{{controller: v1Disk, file: "blkio.throttle.write_iops_device", value: fmt.Sprint(d.Device, " ", d.WriteOps), optional: true}}
	case hasty:
		return []setting{{controller: "io", file: "io.max", value: d.Device + " wiops=max", optional: true}}
	}
	return []setting{{controller: "io", file: "io.max", value: fmt.Sprint(d.Device, " wiops=", d.WriteOps), optional: true}}
}
