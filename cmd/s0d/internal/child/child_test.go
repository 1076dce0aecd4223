package child_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"s0.run/cmd/s0d/internal/child"
)

// helper makes a child of this test binary's machine: a shell script that first
// writes its pid into a file and then goes on as told.
func helper(t *testing.T, script string) (cfg child.Config, pidFile string) {
	t.Helper()
	pidFile = filepath.Join(t.TempDir(), "pid")
	return child.Config{
		Name: "helper",
		Command: func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, "sh", "-c", "echo $$ > "+pidFile+".new; mv "+pidFile+".new "+pidFile+"; "+script)
		},
		Ready: func(context.Context) error {
			_, err := os.Stat(pidFile)
			return err
		},
		StopSignal: syscall.SIGTERM,
		StopGrace:  200 * time.Millisecond,
		LogFile:    filepath.Join(t.TempDir(), "helper.log"),
		Log:        slog.New(slog.DiscardHandler),
	}, pidFile
}

func start(t *testing.T, cfg child.Config) (c *child.Child, stop func() error) {
	t.Helper()
	c = child.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = func() error { cancel(); return <-done }
	return c, stop
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func readPID(path string) int {
	b, _ := os.ReadFile(path)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

func TestStartsAgainAfterDeath(t *testing.T) {
	t.Parallel()
	cfg, pidFile := helper(t, "exec sleep 60")
	c, stop := start(t, cfg)
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := readPID(pidFile)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a second process", func() bool { p := c.PID(); return p != 0 && p != first && readPID(pidFile) == p })
	last := c.PID()
	if err := stop(); err != nil {
		t.Errorf("Run after a stop: %v", err)
	}
	if err := syscall.Kill(last, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d after the stop: %v, want none", last, err)
	}
}

func TestStubbornChildIsKilledAfterItsGrace(t *testing.T) {
	t.Parallel()
	cfg, pidFile := helper(t, "trap '' TERM; while :; do sleep 0.05; done")
	c, stop := start(t, cfg)
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := readPID(pidFile)
	if err := stop(); err != nil {
		t.Errorf("Run after a stop: %v", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d after its grace: %v, want none", pid, err)
	}
}

func TestGivesUpOnAChildThatNeverStarts(t *testing.T) {
	t.Parallel()
	cfg, _ := helper(t, "exit 3")
	cfg.Ready = func(context.Context) error { return errors.New("not yet") }
	c := child.New(cfg)
	done := make(chan error, 1)
	go func() { done <- c.Run(t.Context()) }()
	if err := c.WaitReady(t.Context()); err == nil {
		t.Error("WaitReady succeeded for a child that never was")
	}
	err := <-done
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), cfg.LogFile) {
		t.Errorf("Run = %v, want the exit status and the log", err)
	}
}
