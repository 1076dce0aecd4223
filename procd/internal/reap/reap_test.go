package reap

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests share one reaper: a process has one owner of wait4.
var reaper = New()

func TestMain(m *testing.M) {
	// Orphans of a test's children come to this process, as they do to PID 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); reaper.Run(ctx) }()
	code := m.Run()
	cancel()
	<-ended
	os.Exit(code)
}

func start(t *testing.T, script string) *Child {
	t.Helper()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c, err := reaper.Start("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.SignalGroup(syscall.SIGKILL) })
	return c
}

func wait(t *testing.T, c *Child) syscall.WaitStatus {
	t.Helper()
	select {
	case <-c.Done():
		return c.Status()
	case <-time.After(20 * time.Second):
		t.Fatalf("process %d was not reaped", c.PID())
		panic("unreachable")
	}
}

// eventually polls a condition that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(20 * time.Second); ; {
		if ok() {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestEveryStatusReachesItsOwner(t *testing.T) {
	t.Parallel()
	const each = 60
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for j := range each {
				code := (i*each + j) % 200
				if ws := wait(t, start(t, "exit "+strconv.Itoa(code))); ws.ExitStatus() != code {
					t.Errorf("exit %d arrived as %v", code, ws)
				}
			}
		})
	}
	wg.Wait()
}

func TestB12_OrphansAreReaped(t *testing.T) {
	t.Parallel()
	// Double forks, with and without a session of their own; the shell is gone before they end.
	wait(t, start(t, `i=0; while [ $i -lt 50 ]; do (setsid sh -c "exit 3" &) ; (sh -c "exit 4" &); i=$((i+1)); done`))
	eventually(t, "no zombie is left", func() bool { return zombies(t) == 0 })
}

func zombies(t *testing.T) (n int) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		stat, err := os.ReadFile("/proc/" + d.Name() + "/stat")
		if err != nil {
			continue // not a process, or gone
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(os.Getpid()) {
			n++
		}
	}
	return n
}

func TestSignals(t *testing.T) {
	t.Parallel()
	c := start(t, "exec sleep 1000")
	for _, step := range []struct {
		sig  syscall.Signal
		want bool
	}{{syscall.SIGSTOP, true}, {syscall.SIGCONT, false}} {
		if err := c.SignalGroup(step.sig); err != nil {
			t.Fatal(err)
		}
		eventually(t, step.sig.String(), func() bool { return c.Stopped() == step.want })
	}
	if err := c.SignalGroup(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if ws := wait(t, c); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("status %v, want killed", ws)
	}
	if err := c.SignalGroup(syscall.SIGKILL); err != ErrDone {
		t.Errorf("signal after the end: %v, want ErrDone", err)
	}
}

func TestB10_FailedExecLeavesNoChild(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/nonexistent", "/etc/passwd", "/"} {
		if _, err := reaper.Start(path, []string{path}, &syscall.ProcAttr{}); err == nil {
			t.Errorf("starting %s succeeded", path)
		}
	}
}
