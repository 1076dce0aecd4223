package task

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	typestask "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"s0.run/shim/internal/bundle"
	"s0.run/shim/internal/cgroup"
	"s0.run/shim/internal/reap"
	"s0.run/shim/internal/runsc"
	"s0.run/shim/internal/stdio"
)

// companionGrace is how long the sentry may take to end by itself when the gofer
// has ended: on a normal exit the gofer may be reaped first.
const companionGrace = 2 * time.Second

// container is one sandbox. All fields above mu are set before it is in the
// service's table.
type container struct {
	id      string
	svc     *Service
	bundle  *bundle.Bundle
	runsc   *runsc.Runsc
	cgroup  cgroup.Group
	log     *slog.Logger
	logFile *os.File
	image   string // whose processes Start takes up; empty: it starts the first one
	files   string // an image of the root filesystem's writable layer, or empty
	paths   stdio.Paths
	stdio   *stdio.Stdio

	pid, goferPid int
	sentry, gofer <-chan reap.Exit

	ops chan struct{} // held by the one operation that changes the sandbox
	end *end          // of the sentry, which is that of the first process

	mu    sync.Mutex
	state typestask.Status
	execs map[string]*execution
}

// lock begins an operation that changes the sandbox, one at a time.
func (c *container) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case c.ops <- struct{}{}:
		return func() { <-c.ops }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another operation on %s: %w", c.id, ctx.Err())
	}
}

// change runs an operation that takes the container from one state to another.
func (c *container) change(ctx context.Context, from, to typestask.Status, do func(context.Context) error, done any) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if got := c.getState(); got != from {
		return fmt.Errorf("container %s is %s, not %s: %w", c.id, got, from, errdefs.ErrFailedPrecondition)
	}
	if err := do(ctx); err != nil {
		return err
	}
	c.setState(to)
	c.svc.publish(done)
	return nil
}

func (c *container) start(ctx context.Context) error {
	do := c.runsc.Start
	if c.image != "" {
		do = func(ctx context.Context) error { return c.runsc.Restore(ctx, c.image) }
	}
	return c.change(ctx, typestask.Status_CREATED, typestask.Status_RUNNING, do,
		&events.TaskStart{ContainerID: c.id, Pid: uint32(c.pid)})
}

func (c *container) pause(ctx context.Context) error {
	return c.change(ctx, typestask.Status_RUNNING, typestask.Status_PAUSED, c.runsc.Pause,
		&events.TaskPaused{ContainerID: c.id})
}

func (c *container) resume(ctx context.Context) error {
	return c.change(ctx, typestask.Status_PAUSED, typestask.Status_RUNNING, c.runsc.Resume,
		&events.TaskResumed{ContainerID: c.id})
}

func (c *container) getState() typestask.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *container) setState(s typestask.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = s
}

// kill signals the first process, or all. It takes no lock: SIGKILL must work
// while another operation hangs on a stuck sandbox.
func (c *container) kill(ctx context.Context, sig unix.Signal, all bool) error {
	if sig == unix.SIGKILL {
		if err := c.svc.cfg.Reaper.Signal(c.pid, sig); err != nil {
			return fmt.Errorf("container %s: %w: %w", c.id, err, errdefs.ErrNotFound)
		}
		return nil
	}
	if c.end.over() {
		return fmt.Errorf("container %s is %w: %w", c.id, errNotRunning, errdefs.ErrNotFound)
	}
	return c.runsc.Kill(ctx, sig, 0, all)
}

// delete removes an ended container, or one that never started.
func (c *container) delete(ctx context.Context) (reap.Exit, error) {
	switch c.getState() {
	case typestask.Status_STOPPED:
	case typestask.Status_CREATED:
		_ = c.svc.cfg.Reaper.Signal(c.pid, unix.SIGKILL) // it may have just ended
	default:
		return reap.Exit{}, fmt.Errorf("container is running: %w", errdefs.ErrFailedPrecondition)
	}
	e, err := c.end.wait(ctx)
	if err != nil {
		return reap.Exit{}, err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return reap.Exit{}, err
	}
	defer unlock()
	if err := c.leftovers().Remove(ctx); err != nil {
		return reap.Exit{}, err
	}
	// containerd will ask a `shim delete` process for the same; tell it.
	if err := c.bundle.WriteRecord(bundle.Record{Pid: e.Pid, Exited: true, Status: e.Status, At: e.At, Deleted: true}); err != nil {
		c.log.Warn("recording the delete", "error", err)
	}
	c.closeLog()
	return e, nil
}

// update changes the limits; resources is an OCI LinuxResources in JSON.
func (c *container) update(resources *anypb.Any) error {
	var res specs.LinuxResources
	if err := json.Unmarshal(resources.GetValue(), &res); err != nil {
		return fmt.Errorf("resources of %s: %w: %w", c.id, err, errdefs.ErrInvalidArgument)
	}
	if err := c.cgroup.Update(&res); err != nil {
		return fmt.Errorf("limits of %s: %w", c.id, err)
	}
	return nil
}

func (c *container) closeStdin(execID string) error {
	if execID == "" {
		c.stdio.CloseStdin()
		return nil
	}
	e, err := c.exec(execID)
	if err != nil {
		return err
	}
	e.closeStdin()
	return nil
}

func (c *container) closeLog() {
	if c.logFile != nil {
		c.logFile.Close()
	}
}
