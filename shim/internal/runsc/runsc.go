// Package runsc drives the runsc binary: one method per command, each a process
// that ends before the method returns, but for [Runsc.Exec]; and the sentry itself
// where a sandbox stands still: [Runsc.Pause], [Runsc.Resume], [Runsc.Checkpoint]
// and [Runsc.CheckpointFiles].
//
// gVisor's packages do not build beside containerd's, so the command line and the
// words of the sentry's socket are the interface. The package owns no state but the answer to a resume that nobody has heard
// yet; what a sandbox leaves on the host is in runsc's own state directory, and
// [Runsc.Processes] finds what runs for it.
package runsc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/shim/internal/bundle"
	"s0.run/shim/internal/reap"
)

// Bounds of one command. Creating and starting compete for CPU with a whole
// pool's refill; the others only talk to a living sentry.
const (
	startTimeout   = 60 * time.Second
	commandTimeout = 20 * time.Second
	// Writing or reading an image takes as long as its bytes do: 32 GiB on a slow disk.
	imageTimeout = 15 * time.Minute
	// After a command's end or kill, how long its pipes may stay open: a child
	// that it left behind must not hold the caller.
	pipeDelay = time.Second
)

// maxOutput bounds what is kept of a command's output: its last error.
const maxOutput = 16 << 10

// ErrNotFound is returned when runsc does not know the container.
var ErrNotFound = errors.New("runsc does not know the container")

// Config says how to call runsc for one container.
type Config struct {
	Binary     string // absolute path
	Root       string // runsc's state directory
	ErrorLog   string // a file where runsc says why it failed
	OverlayDir string // where the rootfs' upper layer goes; empty: writes go to the rootfs itself
	// OverlaySize limits the upper layer, in bytes; empty: no limit.
	OverlaySize string
}

// Runsc calls runsc for one container. Its methods are safe for concurrent use.
type Runsc struct {
	cfg    Config
	id     string
	reaper *reap.Reaper

	mu       sync.Mutex
	resuming *resumption // nil: the sentry may be asked
}

// New makes a Runsc whose processes the reaper waits for.
func New(cfg Config, id string, reaper *reap.Reaper) *Runsc {
	return &Runsc{cfg: cfg, id: id, reaper: reaper}
}

// ForBundle makes the Runsc of a bundle's container.
func ForBundle(b *bundle.Bundle, id string, reaper *reap.Reaper) *Runsc {
	return New(Config{
		Binary:      b.Spec.Runsc,
		Root:        b.Spec.Root,
		ErrorLog:    b.ErrorLog(),
		OverlayDir:  b.Spec.OverlayDir,
		OverlaySize: b.Spec.OverlaySize,
	}, id, reaper)
}

// flags are, but for the log, the same for every command of a container: runsc
// keeps some of them in its state and reads others anew.
func (r *Runsc) flags(errorLog string) []string {
	overlay := "none"
	if r.cfg.OverlayDir != "" {
		overlay = "root:dir=" + r.cfg.OverlayDir
		if r.cfg.OverlaySize != "" {
			overlay += ",size=" + r.cfg.OverlaySize
		}
	}
	return []string{
		"--root=" + r.cfg.Root,
		"--platform=systrap",
		"--network=sandbox",
		"--overlay2=" + overlay,
		"--host-uds=open", // procd dials noded's socket
		"--log=" + errorLog,
		"--log-format=json",
	}
}

// command makes a command that says on its standard error why it failed.
func (r *Runsc) command(ctx context.Context, verb string, args ...string) *exec.Cmd {
	return r.loggedCommand(ctx, os.DevNull, verb, args...)
}

// loggedCommand makes a command that says so in a log, for its standard error is
// the sandbox's.
func (r *Runsc) loggedCommand(ctx context.Context, errorLog, verb string, args ...string) *exec.Cmd {
	argv := append(append(r.flags(errorLog), verb), args...)
	cmd := exec.CommandContext(ctx, r.cfg.Binary, append(argv, r.id)...)
	cmd.WaitDelay = pipeDelay
	return cmd
}

// Stdio is what a process in the sandbox gets as its standard files. A nil file
// is /dev/null.
type Stdio struct{ In, Out, Err *os.File }

func (s Stdio) set(cmd *exec.Cmd) {
	// A nil *os.File in an interface is not nil: assign only what is there.
	if s.In != nil {
		cmd.Stdin = s.In
	}
	if s.Out != nil {
		cmd.Stdout = s.Out
	}
	if s.Err != nil {
		cmd.Stderr = s.Err
	}
}

// Create makes the sandbox and stops before its first process. The sentry's pid
// is in pidFile afterwards; sentry and gofer have become children of the
// subreaper above this process. The root filesystem's writable layer is that of
// the files image, unless that is empty.
func (r *Runsc) Create(ctx context.Context, bundle, pidFile, files string, io Stdio) error {
	args := []string{"--bundle", bundle, "--pid-file", pidFile}
	timeout := startTimeout
	if files != "" {
		args = append(args, "--fs-restore-image-path", files)
		timeout = imageTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := r.loggedCommand(ctx, r.cfg.ErrorLog, "create", args...)
	io.set(cmd)
	status, err := r.run(cmd)
	return r.failure("create", status, err, Errors(r.cfg.ErrorLog))
}

// Start lets the first process run.
func (r *Runsc) Start(ctx context.Context) error { return r.call(ctx, startTimeout, "start") }

// Restore takes up the processes of an image instead of starting the first one.
// What is in memory is read on demand and in the background, from files that are open
// by then: the image must not be changed until the sandbox has ended, but its names may
// be removed.
func (r *Runsc) Restore(ctx context.Context, image string) error {
	return r.call(ctx, imageTimeout, "restore", "--detach", "--background", "--image-path", image)
}

// Delete kills the sandbox if it still runs and removes runsc's state of it and
// the cgroup that runsc made. Deleting what is gone succeeds.
func (r *Runsc) Delete(ctx context.Context) error {
	err := r.call(ctx, commandTimeout, "delete", "--force")
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Kill sends a signal inside the sandbox: to the process with the internal pid,
// to the first process when pid is 0, or to all.
func (r *Runsc) Kill(ctx context.Context, sig unix.Signal, pid int, all bool) error {
	var args []string
	if all {
		args = append(args, "--all")
	}
	if pid != 0 {
		args = append(args, "--pid", strconv.Itoa(pid))
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	// The signal comes after the id.
	cmd := r.command(ctx, "kill", args...)
	cmd.Args = append(cmd.Args, strconv.Itoa(int(sig)))
	return r.output(cmd, "kill")
}

// Exec starts a process in the sandbox; process is a file with its OCI process.
// The returned command's process ends with it and has its exit status.
func (r *Runsc) Exec(process, internalPidFile, errorLog string, io Stdio, tty bool) (*exec.Cmd, <-chan reap.Exit, error) {
	cmd := r.loggedCommand(context.Background(), errorLog, "exec", "--process", process, "--internal-pid-file", internalPidFile)
	io.set(cmd)
	if tty {
		cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	}
	ch, err := r.reaper.Start(cmd)
	return cmd, ch, err
}

func (r *Runsc) call(ctx context.Context, timeout time.Duration, verb string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return r.output(r.command(ctx, verb, args...), verb)
}

func (r *Runsc) output(cmd *exec.Cmd, verb string) error {
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	status, err := r.run(cmd)
	if err == nil && status != 0 && !r.known() {
		err = ErrNotFound
	}
	return r.failure(verb, status, err, strings.TrimSpace(out.String()))
}

func (r *Runsc) run(cmd *exec.Cmd) (int, error) {
	ch, err := r.reaper.Start(cmd)
	if err != nil {
		return 0, err
	}
	e := <-ch
	_ = cmd.Wait() // for its pipes; the process is reaped already
	return e.Status, nil
}

func (r *Runsc) failure(verb string, status int, err error, output string) error {
	switch {
	case err != nil:
		return fmt.Errorf("runsc %s %s: %w", verb, r.id, err)
	case status != 0:
		return fmt.Errorf("runsc %s %s: status %d: %s", verb, r.id, status, output)
	}
	return nil
}

// Errors reads the errors from a runsc log, the cause first: what create and exec,
// whose standard files belong to the sandbox, and the processes that they start
// have to say.
func Errors(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	var all []string
	dec := json.NewDecoder(io.LimitReader(f, maxOutput))
	for {
		var line struct{ Level, Msg string }
		if dec.Decode(&line) != nil {
			return strings.Join(all, "; ")
		}
		if line.Level == "error" {
			all = append(all, line.Msg)
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if n > maxOutput {
		p = p[n-maxOutput:]
	}
	if over := t.Len() + len(p) - maxOutput; over > 0 {
		t.Next(over)
	}
	_, err := t.Buffer.Write(p)
	return n, err
}
