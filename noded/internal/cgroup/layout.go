package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Layout says where a host keeps its control groups.
type Layout struct {
	// Unified is where cgroup v2 is mounted with controllers in it; empty on a
	// v1 or hybrid host.
	Unified string
	// V1 maps each v1 hierarchy, by controller or name ("systemd"), to its mount
	// point. Controllers mounted together share one. On a hybrid host the hierarchy
	// of v2, in which runc makes directories as well, is there by the name hybrid.
	V1 map[string]string
	// Disk bounds what a sandbox writes to a disk; its zero value bounds nothing.
	Disk Disk
}

// The controllers that a sandbox's limits need.
var controllers = []string{"cpu", "memory", "pids"}

// Detect reads the layout of this host.
func Detect() (Layout, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Layout{}, fmt.Errorf("detecting control groups: %w", err)
	}
	defer f.Close()
	l, err := parseMountinfo(f)
	if err != nil {
		return Layout{}, fmt.Errorf("detecting control groups: %w", err)
	}
	return l, nil
}

// parseMountinfo decides like runsc does, for both must mean the same directory:
// a v1 cpu hierarchy makes the host v1, whatever else is mounted beside it.
func parseMountinfo(r io.Reader) (Layout, error) {
	l := Layout{V1: map[string]string{}}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// ID parent major:minor root mount-point options… - type source super-options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 {
			continue
		}
		switch mount := fields[4]; tail[0] {
		case "cgroup":
			addV1(l.V1, mount, tail[2])
		case "cgroup2":
			if l.Unified == "" {
				l.Unified = mount
			}
		}
	}
	if err := lines.Err(); err != nil {
		return Layout{}, err
	}
	return l, l.settle()
}

func addV1(v1 map[string]string, mount, options string) {
	for _, o := range strings.Split(options, ",") {
		name := strings.TrimPrefix(o, "name=")
		known := slices.Contains(v1Hierarchies, o) || name != o
		if known && v1[name] == "" { // the first mount wins over later binds of it
			v1[name] = mount
		}
	}
}

// v1Hierarchies are the controllers in which runsc makes a directory, beside the named ones.
var v1Hierarchies = []string{
	"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "net_cls", "net_prio", "perf_event", "pids", "rdma",
}

// hybrid is the name of no v1 hierarchy.
const hybrid = "/hybrid"

func (l *Layout) settle() error {
	if l.V1["cpu"] == "" && l.Unified != "" {
		return nil
	}
	if l.Unified != "" {
		l.V1[hybrid] = l.Unified
	}
	l.Unified = "" // the controllers are v1's
	for _, c := range controllers {
		if l.V1[c] == "" {
			return fmt.Errorf("no %s controller: mount cgroup v2, or the v1 hierarchies cpu, memory and pids", c)
		}
	}
	return nil
}

// dir is the directory of group path for a controller.
func (l Layout) dir(controller, path string) string {
	if l.Unified != "" {
		return filepath.Join(l.Unified, path)
	}
	return filepath.Join(l.V1[controller], path)
}

// dirs is every directory of group path, once each.
func (l Layout) dirs(path string) []string {
	if l.Unified != "" {
		return []string{filepath.Join(l.Unified, path)}
	}
	var all []string
	for _, mount := range l.V1 {
		all = append(all, filepath.Join(mount, path))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// ensureParent makes the group below which sandboxes' groups will be, with the
// controllers handed down to it.
func (l Layout) ensureParent(parent string) error {
	if l.Unified == "" {
		return l.mkdir(parent)
	}
	dir := l.Unified
	for _, part := range strings.Split(strings.Trim(parent, "/"), "/") {
		if err := l.delegate(dir); err != nil {
			return err
		}
		dir = filepath.Join(dir, part)
		if err := mkdir(dir); err != nil {
			return err
		}
	}
	return l.delegate(dir)
}

// mkdir makes the group's directories for our controllers. What of it exists is
// left as it is.
func (l Layout) mkdir(path string) error {
	for _, c := range l.controllers() {
		if err := os.MkdirAll(l.dir(c, path), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// controllers are those that are used: a disk needs one more, where the host has it.
func (l Layout) controllers() []string {
	if l.Unified == "" && l.Disk.bounded() && l.V1[v1Disk] != "" {
		return append(slices.Clone(controllers), v1Disk)
	}
	return controllers
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func (l Layout) delegate(dir string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	if err := write(file, "+"+strings.Join(controllers, " +")); err != nil {
		return err
	}
	if l.Disk.bounded() {
		_ = write(file, "+io") // a host that has not got it bounds no disk
	}
	return nil
}

// write sets a control file; unlike os.WriteFile it never creates one.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
