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

// clear ends what is mounted, or was to be, with its processes: the keeper first, which
// would mount it again. Calls that wait for it end in an error, and so does whatever lies
// on it from now on.
func clear(ctx context.Context, cfg Config) error {
	ours, err := processes(cfg)
	if err != nil {
		return err
	}
	for _, p := range ours {
		defer unix.Close(p)
		if err := unix.PidfdSendSignal(p, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	for range maxStacked {
		err := unix.Unmount(cfg.MountDir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return awaitEnd(ctx, ours)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("more than %d mounts", maxStacked)
}

// maxStacked are the mounts over each other that are taken away.
const maxStacked = 16

// awaitEnd waits until processes have ended, and with them their locks.
func awaitEnd(ctx context.Context, ours []int) error {
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
func processes(cfg Config) (pidfds []int, err error) {
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
		pidfds = append(pidfds, fd)
	}
	return pidfds, nil
}

func mounts(cfg Config, cmdline string) bool {
	b, err := os.ReadFile(cmdline)
	if err != nil {
		return false
	}
	line := strings.ReplaceAll(string(b), "\x00", " ") // juicefs writes its own anew, with spaces
	return strings.HasPrefix(line, cfg.Binary+" mount ") && strings.Contains(line, " "+cfg.MountDir+" ")
}
