package task

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	typestask "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"

	"s0.run/shim/internal/bundle"
	"s0.run/shim/internal/reap"
)

// execGrace is how long `runsc exec` may take to notice that its sandbox is gone.
const execGrace = 2 * time.Second

// watch waits for the sandbox's end and reports it. It runs once per container,
// from its creation until its sentry and gofer are gone.
func (c *container) watch() {
	exit := c.await()
	c.endExecs()
	// Held back while an operation runs, so that an end never overtakes the start
	// that it ends. Operations on a dead sandbox fail soon.
	unlock, _ := c.lock(context.Background())
	defer unlock()
	c.setState(typestask.Status_STOPPED)
	if err := c.bundle.WriteRecord(bundle.Record{Pid: exit.Pid, Exited: true, Status: exit.Status, At: exit.At}); err != nil {
		c.log.Warn("recording the exit", "error", err)
	}
	c.stdio.Close()
	if n := c.cgroup.OOMKills(); n > 0 {
		c.log.Warn("out of memory", "processes_killed", n)
		c.svc.publish(&events.TaskOOM{ContainerID: c.id})
	}
	c.svc.publish(&events.TaskExit{
		ContainerID: c.id, ID: c.id, Pid: uint32(exit.Pid),
		ExitStatus: uint32(exit.Status), ExitedAt: timestamp(exit.At),
	})
	c.end.set(exit)
}

// await waits for both processes of the sandbox. Neither is of use without the
// other: the one that is left is killed.
func (c *container) await() reap.Exit {
	kill := c.svc.cfg.Reaper.Signal
	select {
	case exit := <-c.sentry:
		_ = kill(c.goferPid, unix.SIGKILL)
		<-c.gofer
		return exit
	case <-c.gofer:
	}
	timer := time.NewTimer(companionGrace)
	defer timer.Stop()
	select {
	case exit := <-c.sentry:
		return exit
	case <-timer.C:
	}
	c.log.Warn("gofer has ended alone; killing the sandbox")
	_ = kill(c.pid, unix.SIGKILL)
	return <-c.sentry
}

// endExecs waits until the added processes have ended and been reported.
func (c *container) endExecs() {
	ctx, cancel := context.WithTimeout(context.Background(), execGrace)
	defer cancel()
	for _, e := range c.runningExecs() {
		if _, err := e.end.wait(ctx); err != nil {
			_ = c.svc.cfg.Reaper.Signal(e.hostPid(), unix.SIGKILL)
			_, _ = e.end.wait(context.Background())
		}
	}
}

// end is the end of a process: unknown at first, then set once.
type end struct {
	once sync.Once
	done chan struct{}
	exit reap.Exit // valid once done is closed
}

func newEnd() *end { return &end{done: make(chan struct{})} }

func (e *end) set(x reap.Exit) { e.once.Do(func() { e.exit = x; close(e.done) }) }

func (e *end) over() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

func (e *end) wait(ctx context.Context) (reap.Exit, error) {
	select {
	case <-e.done:
		return e.exit, nil
	case <-ctx.Done():
		return reap.Exit{}, ctx.Err()
	}
}
