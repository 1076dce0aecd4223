// Package cgroup limits and measures what each sandbox takes from its host, on
// cgroup v1, hybrid and v2 alike.
//
// It owns every group below its parent, one a sandbox, named by the id. A group
// is made with its limits before anything of the sandbox runs, so that warming
// is bounded from its first instruction; runsc joins a group that it finds and
// leaves its limits alone. On v1 runsc adds directories in hierarchies that we
// do not use; Remove takes those too. The package keeps no state in memory and
// never touches a group that is not below its parent.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/sandbox"
)

// removeInterval is the pause between looks at a group whose last processes are
// on their way out; neither hierarchy tells v1 and v2 callers alike.
const removeInterval = 10 * time.Millisecond

// Groups is safe for concurrent use on different sandboxes.
type Groups struct {
	layout Layout
	parent string
}

// Open makes sure of the parent, an absolute path below the hierarchies' roots.
func Open(layout Layout, parent string) (*Groups, error) {
	parent = path.Clean("/" + parent)
	if parent == "/" {
		return nil, errors.New("control groups: want a parent below the root")
	}
	if err := layout.ensureParent(parent); err != nil {
		return nil, fmt.Errorf("control group %s: %w", parent, err)
	}
	for _, s := range layout.Disk.settings(layout, true) { // what can't be lifted here can't be bound below
		if write(filepath.Join(layout.dir(s.controller, parent), s.file), s.value) != nil {
			layout.Disk = Disk{}
		}
	}
	return &Groups{layout: layout, parent: parent}, nil
}

// BoundsDisk tells whether what a sandbox writes to the disk is bounded, where it is to be.
func (g *Groups) BoundsDisk() bool { return len(g.layout.Disk.settings(g.layout, false)) > 0 }

// Close removes the parent if nothing is left in it.
func (g *Groups) Close() {
	for _, dir := range g.layout.dirs(g.parent) {
		_ = unix.Rmdir(dir) // busy: sandboxes live on without us
	}
}

// Path is the group's path for an OCI spec.
func (g *Groups) Path(id sandbox.ID) string { return path.Join(g.parent, string(id)) }

// Create makes the group with its limits. One that exists gets them, too.
func (g *Groups) Create(id sandbox.ID, want Limits) error {
	if err := g.layout.mkdir(g.Path(id)); err != nil {
		return fmt.Errorf("control group of %s: %w", id, err)
	}
	return g.apply(id, g.layout.settings(want))
}

// Set changes the limits that differ from those that the group is known to have:
// a claim then costs one write, the CPU share.
func (g *Groups) Set(id sandbox.ID, from, to Limits) error {
	return g.apply(id, changed(g.layout.settings(from), g.layout.settings(to)))
}

// Hurry gives the group the greatest CPU share there is, under its quota as before: what is
// killed has to run to come to its end, and with the share of a slot that nobody has claimed
// a busy node lets it wait for seconds. A group that is gone is in no hurry.
func (g *Groups) Hurry(id sandbox.ID) error { return g.setShare(id, maxShares) }

// Calm gives the group the least CPU share there is, for what could not be killed after all
// and may work on at others' expense.
func (g *Groups) Calm(id sandbox.ID) error { return g.setShare(id, minShares) }

func (g *Groups) setShare(id sandbox.ID, shares int64) error {
	s := g.layout.share(shares)
	s.optional = true
	return g.write(id, s)
}

// apply writes the settings. What the kernel calls invalid is written again after
// the others: v1's memory limit is never above the one that counts swap, so that
// one order grows the two and the other shrinks them.
func (g *Groups) apply(id sandbox.ID, settings []setting) error {
	var refused []setting
	for _, s := range settings {
		err := g.write(id, s)
		if errors.Is(err, unix.EINVAL) {
			refused = append(refused, s)
			continue
		}
		if err != nil {
			return err
		}
	}
	for _, s := range refused {
		if err := g.write(id, s); err != nil {
			return err
		}
	}
	return nil
}

func (g *Groups) write(id sandbox.ID, s setting) error {
	err := write(filepath.Join(g.layout.dir(s.controller, g.Path(id)), s.file), s.value)
	if err == nil || s.optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("control group of %s: %w", id, err)
}

// Remove kills whatever still runs in the group and removes it everywhere.
func (g *Groups) Remove(ctx context.Context, id sandbox.ID) error {
	for {
		err := g.tryRemove(id)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(removeInterval):
		}
	}
}

func (g *Groups) tryRemove(id sandbox.ID) error {
	var all []error
	for _, dir := range g.layout.dirs(g.Path(id)) {
		err := unix.Rmdir(dir)
		if errors.Is(err, unix.EBUSY) {
			killAll(dir, g.Path(id))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, fmt.Errorf("removing control group of %s: %s: %w", id, dir, err))
		}
	}
	return errors.Join(all...)
}

// killAll kills what runs in the group's directory. What it misses is there at the next look.
func killAll(dir, group string) {
	pids, err := members(dir)
	if err != nil {
		return
	}
	for _, pid := range pids {
		if pid > 1 {
			killMember(pid, group)
		}
	}
}

// members lists the processes in a group's directory.
func members(dir string) ([]int, error) {
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, field := range strings.Fields(string(procs)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 { // 0: of a namespace that we can't see
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// killMember kills the process if it is in the group. The pid may have become
// somebody else's since it was read: the descriptor pins the process, then its
// membership is looked up, then it is killed.
func killMember(pid int, group string) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(groups)) {
		if strings.HasSuffix(strings.TrimSpace(line), group) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			return
		}
	}
}

// List finds every group below the parent whose name is an id, in any hierarchy.
func (g *Groups) List() ([]sandbox.ID, error) {
	seen := map[sandbox.ID]bool{}
	var all []sandbox.ID
	for _, dir := range g.layout.dirs(g.parent) {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) { // a hierarchy that nothing has used yet
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing control groups: %w", err)
		}
		for _, e := range entries {
			if id, err := sandbox.ParseID(e.Name()); err == nil && e.IsDir() && !seen[id] {
				seen[id] = true
				all = append(all, id)
			}
		}
	}
	return all, nil
}
