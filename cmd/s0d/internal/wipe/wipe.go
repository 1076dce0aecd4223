// Package wipe removes everything that a stopped instance left on its machine:
// processes of sandboxes, mounts, control groups and its directories.
//
// It works on what the kernel shows, not on anybody's records, so that it also
// helps when those are broken. It removes nothing whose name it does not know.
package wipe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	killPoll = 20 * time.Millisecond // a person waits for it
	killFor  = 10 * time.Second      // SIGKILL takes effect at once, but for a process in the kernel
)

// Config names what belongs to the instance.
type Config struct {
	Dirs         []string // roots of the instance's directories
	Entries      []string // names in them that are ours
	CgroupParent string   // the group that holds every sandbox's
}

// Run removes everything. It goes on after a failure and reports them all.
func Run(ctx context.Context, cfg Config) error {
	var errs []error
	for _, step := range []func() error{
		func() error { return killAll(ctx, cfg) },
		func() error { return unmountAll(cfg.Dirs) },
		func() error { return removeGroups(ctx, cfg.CgroupParent) },
		func() error { return removeDirs(cfg) },
	} {
		errs = append(errs, step())
	}
	return errors.Join(errs...)
}

// programs are what an instance runs; a pager on its log is not among them.
var programs = []string{"containerd", "containerd-shim-s0-v1", "runsc", "runsc-gofer", "runsc-sandbox", "postgres", "juicefs"}

func killAll(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, killFor)
	defer cancel()
	for {
		pids, err := processes(cfg.Dirs)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v do not end", pids)
		case <-time.After(killPoll):
		}
	}
}

// processes are those of our programs whose command line names one of the dirs.
func processes(dirs []string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && ours(cmdline, dirs) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func ours(cmdline []byte, dirs []string) bool {
	program, _, _ := bytes.Cut(cmdline, []byte{0})
	if !slices.Contains(programs, filepath.Base(string(program))) {
		return false
	}
	for _, d := range dirs {
		if bytes.Contains(cmdline, []byte(d+"/")) {
			return true
		}
	}
	return false
}

// unmountAll unmounts whatever is mounted below the dirs, the deepest first.
func unmountAll(dirs []string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	points := mountsBelow(string(b), dirs)
	var errs []error
	for _, p := range slices.Backward(points) { // later mounts cover earlier ones
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func mountsBelow(mountinfo string, dirs []string) []string {
	var points []string
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		point := unescape.Replace(f[4])
		if slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(point, d+"/") }) {
			points = append(points, point)
		}
	}
	return points
}

// removeGroups removes the parent group and all below it, in every hierarchy.
func removeGroups(ctx context.Context, parent string) error {
	parent = filepath.Clean("/" + parent)
	if parent == "/" {
		return nil
	}
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range append(hierarchies, "/sys/fs/cgroup") {
		errs = append(errs, removeGroup(ctx, filepath.Join(h, parent)))
	}
	return errors.Join(errs...)
}

func removeGroup(ctx context.Context, dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, d := range slices.Backward(dirs) {
		if err := removeWhenEmpty(ctx, d); err != nil {
			return err
		}
	}
	return err
}

// removeWhenEmpty waits for the last killed process to leave the group.
func removeWhenEmpty(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, killFor)
	defer cancel()
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("removing control group %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("removing control group %s: %w", dir, err)
		case <-time.After(killPoll):
		}
	}
}

// removeDirs removes the known entries, and the roots when that empties them: a
// mistyped --data-dir must cost nobody their files.
func removeDirs(cfg Config) error {
	var errs []error
	for _, root := range cfg.Dirs {
		for _, name := range cfg.Entries {
			errs = append(errs, os.RemoveAll(filepath.Join(root, name)))
		}
		if err := os.Remove(root); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
