// Package child keeps one child process running: it starts it, starts it again
// with growing pauses when it dies, and stops it in an orderly way.
//
// A child never outlives this process, however it ends: the kernel signals it
// (PR_SET_PDEATHSIG). What the child itself started is left alone, so the shims
// that containerd starts, and the sandboxes under them, live on. The package
// never interprets a child's output; it goes straight into a file.
package child

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	firstPause = 100 * time.Millisecond // a crash by chance costs little
	longPause  = 10 * time.Second       // a crash by cause does not fill the log
	steadyTime = 30 * time.Second       // who ran this long starts over with firstPause
	readyPoll  = 20 * time.Millisecond  // local and cheap
	maxStarts  = 3                      // deaths before it was ever ready; then it is the set-up that is broken
)

// Config describes one child.
type Config struct {
	Name string
	// Command makes the command anew for each start. Its context must be the one
	// given: when that ends, the process is sent StopSignal.
	Command func(ctx context.Context) *exec.Cmd
	// LogFile takes what the process prints; see [TrimLogs].
	LogFile string
	// Ready succeeds once the process serves. It is called again and again until then.
	Ready func(ctx context.Context) error
	// StopSignal asks for an orderly stop, and for one when this process dies.
	StopSignal syscall.Signal
	// StopGrace is how long that may take until SIGKILL.
	StopGrace time.Duration
	Log       *slog.Logger
}

// A Child is one supervised process.
type Child struct {
	cfg   Config
	ready chan struct{} // closed by WaitReady's first success
	dead  chan struct{} // closed when Run gave up
	pid   atomic.Int64
}

// New makes a child that Run starts.
func New(cfg Config) *Child {
	return &Child{cfg: cfg, ready: make(chan struct{}), dead: make(chan struct{})}
}

// PID is the process' id, 0 while there is none.
func (c *Child) PID() int { return int(c.pid.Load()) }

// Run keeps the process running until ctx ends, then stops it and returns nil.
// It returns an error only when the process kept dying before it was ever ready.
func (c *Child) Run(ctx context.Context) error {
	pause := firstPause
	for starts := 1; ; starts++ {
		began := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if starts >= maxStarts && !c.wasReady() {
			close(c.dead)
			return fmt.Errorf("%s does not start: %w; its log is %s", c.cfg.Name, err, c.cfg.LogFile)
		}
		if time.Since(began) > steadyTime {
			pause = firstPause
		}
		c.cfg.Log.Warn("child ended, starting it again", "child", c.cfg.Name, "cause", err, "pause", pause.String())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longPause)
	}
}

// once runs the process to its end. The thread that forks must live as long as
// the process: the kernel ties the death signal to it.
func (c *Child) once(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	log, err := OpenLog(c.cfg.LogFile)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := c.cfg.Command(ctx)
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = c.cfg.StopSignal
	cmd.SysProcAttr.Setpgid = true // a terminal's ^C is for us; we stop the children in order
	cmd.Cancel = func() error { return cmd.Process.Signal(c.cfg.StopSignal) }
	cmd.WaitDelay = c.cfg.StopGrace
	if err := cmd.Start(); err != nil {
		return err
	}
	c.pid.Store(int64(cmd.Process.Pid))
	defer c.pid.Store(0)
	c.cfg.Log.Info("child started", "child", c.cfg.Name, "pid", cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		return err
	}
	return errors.New("it exited by itself")
}

// WaitReady returns when the process serves, or the reason why it never will.
// It is called once, beside Run.
func (c *Child) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		err := c.cfg.Ready(ctx)
		if err == nil {
			close(c.ready)
			return nil
		}
		select {
		case <-c.dead:
			return fmt.Errorf("%s ended before it was ready", c.cfg.Name)
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (%v); its log is %s", c.cfg.Name, context.Cause(ctx), err, c.cfg.LogFile)
		case <-tick.C:
		}
	}
}

func (c *Child) wasReady() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}
