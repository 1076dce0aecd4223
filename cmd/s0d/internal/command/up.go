package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"s0.run/cmd/s0d/internal/machine"
	"s0.run/cmd/s0d/internal/prereq"
	"s0.run/internal/daemon"
)

// backgroundEnv marks the server process that a `s0d up` started: it lets go of
// its caller's terminal once it is ready.
const backgroundEnv = "S0D_BACKGROUND"

// startingPoll is how often a second `up` looks at a server that is starting.
const startingPoll = 100 * time.Millisecond

func upCommand(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start everything on this machine",
		Long: `Start everything on this machine: API server, noded, containerd, PostgreSQL and
a local registry. It goes on in the background and returns when it serves. A
second time it says that it runs already. Sandboxes that an earlier run left
running are adopted.`,
		Args: cobra.NoArgs,
	}
	cfg := machineFlags(cmd.Flags(), version)
	foreground := cmd.Flags().Bool("foreground", false, "stay in the foreground, for service managers; SIGTERM stops and keeps the sandboxes")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *foreground {
			return runForeground(cmd.Context(), *cfg, cmd.OutOrStdout())
		}
		return runBackground(cmd.Context(), *cfg, cmd.OutOrStdout())
	}
	return withFile(cmd)
}

func runForeground(ctx context.Context, cfg machine.Config, out io.Writer) error {
	ready := func() {}
	if os.Getenv(backgroundEnv) != "" {
		os.Unsetenv(backgroundEnv)
		// Only now: the flags and their file were read with our caller's paths.
		if err := os.Chdir("/"); err != nil {
			return err
		}
		ready = func() { letGo(cfg.LogFile()) }
	}
	daemon.CollectLess()
	return machine.Run(ctx, cfg, out, ready)
}

// letGo gives up the caller's terminal: what is printed from now on, a crash's
// stack above all, goes to the log.
func letGo(logFile string) {
	to, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		to, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err != nil {
		return
	}
	defer to.Close()
	for _, fd := range []int{1, 2} {
		_ = unix.Dup3(int(to.Fd()), fd, 0) // both are valid descriptors
	}
}

func runBackground(ctx context.Context, cfg machine.Config, out io.Writer) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	running, err := cfg.Running()
	if err != nil {
		return errors.Join(err, prereq.Check(cfg.Prerequisites(true)))
	}
	if running {
		return awaitRunning(ctx, cfg, out)
	}
	fmt.Fprintln(out, "starting s0")
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:], "--foreground")...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), backgroundEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	return follow(ctx, cfg, cmd, r, out)
}

// follow shows what the server prints until it lets go of us, which means that
// it is ready, or ends.
func follow(ctx context.Context, cfg machine.Config, cmd *exec.Cmd, r io.Reader, out io.Writer) error {
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if _, err := io.Copy(out, r); err != nil {
		return err
	}
	if s, err := cfg.Ask(context.WithoutCancel(ctx)); err == nil && s.State == machine.Ready && s.PID == cmd.Process.Pid {
		return cmd.Process.Release()
	}
	if err := cmd.Wait(); err == nil || ctx.Err() != nil {
		return errors.New("the start was interrupted")
	}
	return errors.New("the server did not start")
}

// awaitRunning tells of a server that runs already, once it serves.
func awaitRunning(ctx context.Context, cfg machine.Config, out io.Writer) error {
	for {
		s, err := cfg.Ask(ctx)
		if err == nil && s.State == machine.Ready {
			fmt.Fprintf(out, "s0 is already up: %s (process %d, version %s)\n", s.API, s.PID, s.Version)
			if s.Version != cfg.Version {
				fmt.Fprintf(out, "this is version %s; to change over without losing a sandbox: s0d down --keep-sandboxes && s0d up\n", cfg.Version)
			}
			return nil
		}
		if running, err := cfg.Running(); err != nil || !running {
			return errors.Join(errors.New("the server that was running has ended; run it again"), err)
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted while another process was starting s0")
		case <-time.After(startingPoll):
		}
	}
}
