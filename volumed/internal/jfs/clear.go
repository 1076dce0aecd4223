package jfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clear ends what is mounted, or was to be, with its processes. Calls that wait for it end
// in an error, and so does whatever lies on it from now on.
func clear(ctx context.Context, cfg Config) error {
	killed, err := kill(cfg)
	defer killed.close()
	if err != nil {
		return err
	}
	if err := unmount(cfg.MountDir); err != nil {
		return err
	}
	if err := awaitEnd(ctx, killed); err != nil {
		return err
	}
	for pid := range killed {
		if err := unix.Unlink(socket(pid)); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// socket is where a keeper hands the mount to its workers. It outlives one that is killed.
func socket(pid int) string { return fmt.Sprintf("/tmp/fuse_fd_comm.%d", pid) }

// kill looks until it finds no more: a keeper may have started a worker behind the look.
func kill(cfg Config) (killed pidfds, err error) {
	killed = pidfds{}
	for range maxLooks {
		found, err := processes(cfg)
		if err != nil {
			return killed, err
		}
		more := false
		for pid, fd := range found {
			if _, known := killed[pid]; known { // it ends
				_ = unix.Close(fd)
				continue
			}
			killed[pid], more = fd, true
			if kerr := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); kerr != nil && !errors.Is(kerr, unix.ESRCH) {
				err = errors.Join(err, kerr)
			}
		}
		if !more || err != nil {
			return killed, err
		}
	}
	return killed, errors.New("there are ever more juicefs")
}

func unmount(dir string) error {
	for range maxStacked {
		err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("more than %d mounts", maxStacked)
}

// maxStacked are the mounts over each other that are taken away, maxLooks what a keeper can
// start between two looks.
const maxStacked, maxLooks = 16, 16

// pidfds are processes by their number.
type pidfds map[int]int

func (p pidfds) close() {
	for _, fd := range p {
		_ = unix.Close(fd)
	}
}

// awaitEnd waits until processes have ended, and with them their locks.
func awaitEnd(ctx context.Context, ours pidfds) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	for _, p := range ours {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}, int(lookInterval/time.Millisecond))
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			if n > 0 {
				break
			}
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("an earlier juicefs does not end: %w", err)
			}
		}
	}
	return nil
}

// processes opens those that mount at our place, as their command lines tell: they may be
// of an earlier process of ours.
func processes(cfg Config) (pidfds, error) {
	found := pidfds{}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, name := range all {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil || !mounts(cfg, name) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if !mounts(cfg, name) { // another has its number by now
			_ = unix.Close(fd)
			continue
		}
		found[pid] = fd
	}
	return found, nil
}

func mounts(cfg Config, cmdline string) bool {
	b, err := os.ReadFile(cmdline)
	if err != nil {
		return false
	}
	line := strings.ReplaceAll(string(b), "\x00", " ") // juicefs writes its own anew, with spaces
	return strings.HasPrefix(line, cfg.Binary+" mount ") && strings.Contains(line, " "+cfg.MountDir+" ")
}
