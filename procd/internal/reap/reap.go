// Package reap is the one owner of wait4 in procd.
//
// As PID 1 of a sandbox procd inherits every orphan, so something must wait for
// any child (-1); doing that beside os/exec would steal the statuses that os/exec
// waits for. Therefore every process starts through [Reaper.Start] and every exit
// arrives in [Reaper.Run], which hands it to the [Child] it belongs to and forgets
// orphans. The package owns the table of living children. It knows nothing of
// pipes, terminals or contexts and never decides when a process should end.
package reap

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Reaper starts processes and collects every child of this process.
type Reaper struct {
	// mu is held over fork and registration, over wait4 and dispatch, and over
	// kill. So a child is registered before it can be reaped, however fast it
	// ends, and a pid that a signal is sent to can't have been reused. Holding it
	// over a fork costs nothing: the Go runtime forks one child at a time anyway.
	mu       sync.Mutex
	children map[int]*Child
}

// New returns a reaper without children. Nothing is reaped before [Reaper.Run].
func New() *Reaper { return &Reaper{children: map[int]*Child{}} }

// Run reaps until ctx ends. It must run once, in one goroutine, for the life of
// the process: a second owner of wait4 would lose statuses.
func (r *Reaper) Run(ctx context.Context) {
	exits := make(chan os.Signal, 1) // one pending wake-up is enough: each collects all
	signal.Notify(exits, syscall.SIGCHLD)
	defer signal.Stop(exits)
	for {
		r.collect()
		select {
		case <-exits:
		case <-ctx.Done():
			return
		}
	}
}

// collect takes every status there is.
func (r *Reaper) collect() {
	for r.collectOne() {
	}
}

func (r *Reaper) collectOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG|syscall.WUNTRACED|syscall.WCONTINUED, nil)
	if errors.Is(err, syscall.EINTR) {
		return true
	}
	if err != nil || pid <= 0 { // ECHILD: no children; 0: none has changed
		return false
	}
	c := r.children[pid]
	if c == nil {
		return true // an orphan
	}
	switch {
	case ws.Stopped():
		c.stopped = true
	case ws.Continued():
		c.stopped = false
	default:
		delete(r.children, pid)
		c.status = ws
		close(c.done)
	}
	return true
}

// Start forks and executes path. attr.Files are inherited as 0, 1, 2…
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c := &Child{reaper: r, pid: pid, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// Child is a process that was started here.
type Child struct {
	reaper *Reaper
	pid    int
	done   chan struct{}

	// Guarded by reaper.mu; status is constant once done is closed.
	stopped bool
	status  syscall.WaitStatus
}

// Gone is a child of an earlier life of the sandbox, which has been reaped then. It has no pid.
func Gone() *Child {
	c := &Child{reaper: New(), done: make(chan struct{})}
	close(c.done)
	return c
}

// ErrDone is returned for a signal to a child that has ended.
var ErrDone = errors.New("process has ended")

// PID is the child's pid, and its process group's and session's if it was
// started with Setsid. Once the child is done it may belong to another process.
func (c *Child) PID() int { return c.pid }

// Done is closed when the child has been reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status is how the child ended. It is valid after Done.
func (c *Child) Status() syscall.WaitStatus { return c.status }

// Stopped tells whether the child was stopped by a signal and not continued.
func (c *Child) Stopped() bool {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	return c.stopped
}

// SignalGroup signals the child's process group, of which it must be the leader.
func (c *Child) SignalGroup(sig syscall.Signal) error {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if c.reaper.children[c.pid] != c {
		return ErrDone
	}
	return syscall.Kill(-c.pid, sig)
}
