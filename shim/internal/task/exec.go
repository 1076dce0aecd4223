package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	typestask "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"s0.run/shim/internal/reap"
	"s0.run/shim/internal/runsc"
	"s0.run/shim/internal/stdio"
)

const (
	// execTimeout bounds the start of an added process.
	execTimeout = 30 * time.Second
	execPoll    = 2 * time.Millisecond
)

// execution is a process that was added to a container. A `runsc exec` process
// stands for it on the host and ends with it.
type execution struct {
	id    string
	c     *container
	spec  []byte // its OCI process, JSON
	paths stdio.Paths
	end   *end

	mu       sync.Mutex
	state    typestask.Status
	pid      int // of runsc exec
	internal int // inside the sandbox
	stdio    *stdio.Stdio
}

func (c *container) addExec(r *taskapi.ExecProcessRequest) error {
	e := &execution{
		id:    r.ExecID,
		c:     c,
		spec:  r.Spec.GetValue(),
		paths: stdio.Paths{In: r.Stdin, Out: r.Stdout, Err: r.Stderr, Terminal: r.Terminal},
		end:   newEnd(),
		state: typestask.Status_CREATED,
	}
	if err := c.insertExec(e); err != nil {
		return err
	}
	c.svc.publish(&events.TaskExecAdded{ContainerID: c.id, ExecID: e.id})
	return nil
}

func (c *container) insertExec(e *execution) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != typestask.Status_RUNNING {
		return fmt.Errorf("container %s is %s: %w", c.id, c.state, errdefs.ErrFailedPrecondition)
	}
	if _, ok := c.execs[e.id]; ok {
		return fmt.Errorf("process %s of %s: %w", e.id, c.id, errdefs.ErrAlreadyExists)
	}
	c.execs[e.id] = e
	return nil
}

func (c *container) exec(id string) (*execution, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.execs[id]; ok {
		return e, nil
	}
	return nil, fmt.Errorf("process %s of %s: %w", id, c.id, errdefs.ErrNotFound)
}

func (c *container) runningExecs() []*execution {
	c.mu.Lock()
	defer c.mu.Unlock()
	var running []*execution
	for _, e := range c.execs {
		if e.hostPid() != 0 && !e.end.over() {
			running = append(running, e)
		}
	}
	return running
}

func (c *container) startExec(ctx context.Context, id string) (int, error) {
	e, err := c.exec(id)
	if err != nil {
		return 0, err
	}
	if err := e.claim(); err != nil {
		return 0, err
	}
	ended, err := e.start(ctx)
	if err != nil {
		e.setState(typestask.Status_STOPPED)
		e.end.set(reap.Exit{Status: 128, At: time.Now()})
		return 0, fmt.Errorf("starting process %s of %s: %w", id, c.id, err)
	}
	c.svc.publish(&events.TaskExecStarted{ContainerID: c.id, ExecID: id, Pid: uint32(e.hostPid())})
	go e.watch(ended) // ends with the process
	return e.hostPid(), nil
}

// claim makes sure that the process is started once.
func (e *execution) claim() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state != typestask.Status_CREATED {
		return fmt.Errorf("process %s of %s is %s: %w", e.id, e.c.id, e.state, errdefs.ErrFailedPrecondition)
	}
	e.state = typestask.Status_RUNNING
	return nil
}

// started is a `runsc exec` process and how it ends.
type started struct {
	cmd  *exec.Cmd
	exit <-chan reap.Exit
}

func (e *execution) start(ctx context.Context) (started, error) {
	dir, err := os.MkdirTemp(e.c.bundle.Dir, "exec-")
	if err != nil {
		return started{}, err
	}
	defer os.RemoveAll(dir) // runsc has read and written all by the end
	spec, pidFile, log := filepath.Join(dir, "process.json"), filepath.Join(dir, "pid"), filepath.Join(dir, "log")
	if err := os.WriteFile(spec, e.spec, 0o600); err != nil {
		return started{}, err
	}
	io, err := stdio.Open(e.paths)
	if err != nil {
		return started{}, err
	}
	cmd, exit, err := e.c.runsc.Exec(spec, pidFile, log, runsc.Stdio{In: io.In, Out: io.Out, Err: io.Err}, e.paths.Terminal)
	if err != nil {
		io.Close()
		return started{}, err
	}
	io.Started()
	run := started{cmd: cmd, exit: exit}
	internal, err := run.pid(ctx, pidFile)
	if err != nil {
		_ = e.c.svc.cfg.Reaper.Signal(cmd.Process.Pid, unix.SIGKILL)
		io.Close()
		_ = cmd.Wait()
		if why := runsc.Errors(log); why != "" {
			err = errors.New(why)
		}
		return started{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pid, e.internal, e.stdio = cmd.Process.Pid, internal, io
	return run, nil
}

// pid waits until the process runs: runsc writes its internal pid then.
func (r *started) pid(ctx context.Context, file string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	tick := time.NewTicker(execPoll)
	defer tick.Stop()
	for {
		if pid, err := readPid(file); err == nil {
			return pid, nil
		}
		select {
		case x := <-r.exit:
			again := make(chan reap.Exit, 1)
			again <- x
			r.exit = again
			if pid, err := readPid(file); err == nil {
				return pid, nil // it ran and has ended
			}
			return 0, fmt.Errorf("runsc exec ended with status %d", x.Status)
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// watch waits for the process's end and reports it.
func (e *execution) watch(run started) {
	exit := <-run.exit
	_ = run.cmd.Wait() // reaped already; it frees what cmd holds
	e.stdio.Close()
	e.setState(typestask.Status_STOPPED)
	e.c.svc.publish(&events.TaskExit{
		ContainerID: e.c.id, ID: e.id, Pid: uint32(exit.Pid),
		ExitStatus: uint32(exit.Status), ExitedAt: timestamp(exit.At),
	})
	e.end.set(exit)
}

func (c *container) killExec(ctx context.Context, id string, sig unix.Signal) error {
	e, err := c.exec(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	internal := e.internal
	e.mu.Unlock()
	if internal == 0 || e.end.over() {
		return fmt.Errorf("process %s of %s is %w: %w", id, c.id, errNotRunning, errdefs.ErrNotFound)
	}
	return c.runsc.Kill(ctx, sig, internal, false)
}

func (c *container) deleteExec(id string) (reap.Exit, error) {
	e, err := c.exec(id)
	if err != nil {
		return reap.Exit{}, err
	}
	if e.getState() == typestask.Status_RUNNING {
		return reap.Exit{}, fmt.Errorf("process %s of %s is running: %w", id, c.id, errdefs.ErrFailedPrecondition)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, id)
	if !e.end.over() {
		return reap.Exit{At: time.Now()}, nil // it was never started
	}
	return e.end.exit, nil
}

func (e *execution) closeStdin() {
	e.mu.Lock()
	io := e.stdio
	e.mu.Unlock()
	if io != nil {
		io.CloseStdin()
	}
}

func (e *execution) resize(rows, cols uint16) error {
	e.mu.Lock()
	io := e.stdio
	e.mu.Unlock()
	if io == nil {
		return fmt.Errorf("process %s of %s is %w: %w", e.id, e.c.id, errNotRunning, errdefs.ErrFailedPrecondition)
	}
	return io.Resize(rows, cols)
}

func (e *execution) hostPid() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pid
}

func (e *execution) getState() typestask.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

func (e *execution) setState(s typestask.Status) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state = s
}
