// Package clean removes what a sandbox left on the host, whoever died first.
//
// It trusts no pid that somebody remembered: processes are found by their command
// line, mounts and cgroups by the container's own paths. Every step may be
// repeated. The package owns no state.
package clean

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"s0.run/shim/internal/bundle"
	"s0.run/shim/internal/cgroup"
	"s0.run/shim/internal/runsc"
)

const (
	// killTimeout bounds the wait for killed processes to be gone; one that is
	// stuck in the kernel for longer is left for the next attempt.
	killTimeout = 5 * time.Second
	killPoll    = 5 * time.Millisecond
)

// Sandbox is what one container can leave behind.
type Sandbox struct {
	Bundle *bundle.Bundle
	Runsc  *runsc.Runsc
	Group  cgroup.Group
}

// Remove removes everything of a sandbox whose sentry and gofer have ended.
func (s Sandbox) Remove(ctx context.Context) error {
	if err := s.Runsc.Delete(ctx); err != nil {
		// runsc could not: something still runs, or its state is damaged.
		if kerr := s.Kill(ctx); kerr != nil {
			return errors.Join(err, kerr)
		}
	}
	// Of a create that was cut short runsc knows nothing, and deletes nothing.
	if err := s.Runsc.RemoveState(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return errors.Join(s.Unmount(), s.Group.Remove(ctx))
}

// Destroy kills whatever runs of the sandbox, then removes it.
func (s Sandbox) Destroy(ctx context.Context) error {
	if err := s.Kill(ctx); err != nil {
		return err
	}
	return s.Remove(ctx)
}

// Kill kills every process of the sandbox and waits until none is left.
func (s Sandbox) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	tick := time.NewTicker(killPoll)
	defer tick.Stop()
	for {
		pids, err := s.Runsc.Processes()
		if err != nil {
			return fmt.Errorf("listing processes: %w", err)
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("processes %v outlive SIGKILL: %w", pids, ctx.Err())
		}
	}
}

// Unmount unmounts the rootfs; lazily if something still holds it.
func (s Sandbox) Unmount() error {
	rootfs := s.Bundle.Rootfs()
	if mount.UnmountRecursive(rootfs, 0) == nil {
		return nil
	}
	if err := mount.UnmountRecursive(rootfs, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting rootfs: %w", err)
	}
	return nil
}
