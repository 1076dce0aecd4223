// Package cgroup reads and changes the control group of one sandbox, on a v1,
// hybrid or v2 host alike.
//
// runsc makes the group and removes it; this package finds it where runsc put it,
// answers what it used, changes its limits in place, and removes what a runsc
// that was killed left. It keeps nothing in memory and starts nothing.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// busyPoll is the pause between looks at a group that is busy: no hierarchy tells
// on every kernel when it no longer is.
const busyPoll = 10 * time.Millisecond

// mountPoint is where runsc expects the hierarchies, too.
const mountPoint = "/sys/fs/cgroup"

// Group is one control group. The zero Group is that of a container without one:
// it has no limits and no usage.
type Group struct {
	root    string
	path    string
	unified bool
}

// Open names the group of a spec's cgroupsPath; it need not exist yet.
func Open(path string) Group { return open(mountPoint, path, isUnified(mountPoint)) }

func open(root, path string, unified bool) Group {
	if path == "" {
		return Group{}
	}
	return Group{root: root, path: filepath.Clean("/" + path), unified: unified}
}

// isUnified tells a pure v2 host from v1 and hybrid ones.
func isUnified(root string) bool {
	var st unix.Statfs_t
	return unix.Statfs(root, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// dir is the group's directory that has the controller's files.
func (g Group) dir(controller string) string {
	if g.unified {
		return filepath.Join(g.root, g.path)
	}
	return filepath.Join(g.root, controller, g.path)
}

// OOMKills counts the processes of the group that the kernel killed for memory.
func (g Group) OOMKills() uint64 {
	if g.path == "" {
		return 0
	}
	name := "memory.oom_control"
	if g.unified {
		name = "memory.events"
	}
	return g.keyed("memory", name)["oom_kill"]
}

// KillTogether asks the kernel to kill the whole group when it is out of memory:
// a sandbox without one of its host processes is no sandbox. v1 has no such wish.
func (g Group) KillTogether() {
	if g.unified {
		_ = g.write("memory", "memory.oom.group", "1")
	}
}

// Enter makes the group, without limits, and moves a process to it. v1 would need it in
// each hierarchy, and nobody asks for that.
func (g Group) Enter(pid int) error {
	if !g.unified {
		return errors.New("cgroup: a process is moved on hosts of version 2 alone")
	}
	if err := os.MkdirAll(g.dir(""), 0o755); err != nil {
		return fmt.Errorf("making cgroup: %w", err)
	}
	return g.write("", "cgroup.procs", strconv.Itoa(pid))
}

// Remove removes the group from every hierarchy. Its processes have been killed:
// one that still frees its memory keeps the group busy, and is waited for.
func (g Group) Remove(ctx context.Context) error {
	if g.path == "" || g.path == "/" {
		return nil
	}
	tick := time.NewTicker(busyPoll)
	defer tick.Stop()
	for {
		err := g.tryRemove()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func (g Group) tryRemove() error {
	dirs := []string{filepath.Join(g.root, g.path)}
	if !g.unified {
		var err error
		if dirs, err = filepath.Glob(filepath.Join(g.root, "*") + g.path); err != nil {
			return err
		}
	}
	var errs []error
	for _, d := range dirs {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("removing cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (g Group) write(controller, name, value string) error {
	path := filepath.Join(g.dir(controller), name)
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		return fmt.Errorf("cgroup: writing %q: %w", value, err)
	}
	return nil
}

// number reads a file with one number; a missing file and "max" are 0.
func (g Group) number(controller, name string) uint64 {
	raw, err := os.ReadFile(filepath.Join(g.dir(controller), name))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	return n
}

// keyed reads a file of "name number" lines.
func (g Group) keyed(controller, name string) map[string]uint64 {
	raw, err := os.ReadFile(filepath.Join(g.dir(controller), name))
	if err != nil {
		return nil
	}
	values := map[string]uint64{}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			values[key] = n
		}
	}
	return values
}
