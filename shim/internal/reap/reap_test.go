package reap

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests share the process's children, so they share one reaper and do not
// run in parallel.
var shared = New()

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); shared.Run(ctx) }()
	code := m.Run()
	cancel()
	<-done
	os.Exit(code)
}

func wait(t *testing.T, ch <-chan Exit) Exit {
	t.Helper()
	select {
	case e := <-ch:
		return e
	case <-time.After(time.Minute):
		t.Fatal("no exit within a minute")
		return Exit{}
	}
}

func TestStartDeliversStatus(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -9 $$": 137} {
		var out strings.Builder
		cmd := exec.Command("/bin/sh", "-c", "echo out; "+script)
		cmd.Stdout = &out
		ch, err := shared.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if e := wait(t, ch); e.Status != want || e.Pid != cmd.Process.Pid {
			t.Errorf("%q: exit %+v, want status %d of pid %d", script, e, want, cmd.Process.Pid)
		}
		_ = cmd.Wait()
		if out.String() != "out\n" {
			t.Errorf("%q: output %q", script, out.String())
		}
	}
}

// orphan starts a grandchild whose parent ends, and returns its pid.
func orphan(t *testing.T, script string) int {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "("+script+") >/dev/null 2>&1 & echo $!")
	var out strings.Builder
	cmd.Stdout = &out
	ch, err := shared.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, ch)
	_ = cmd.Wait()
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestRecorderCatchesOrphanThatEndedFirst(t *testing.T) {
	rec := shared.Record()
	defer rec.Close()
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	pid := orphan(t, "read end <"+gate+"; exit 5") // it outlives its parent, which would reap it
	if err := os.WriteFile(gate, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for unix.Kill(pid, 0) == nil { // until it was reaped
		if time.Now().After(deadline) {
			t.Fatal("orphan was not reaped")
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	if e := wait(t, rec.Await(pid)); e.Status != 5 {
		t.Errorf("status %d, want 5", e.Status)
	}
}

func TestRecorderAwaitsLivingOrphan(t *testing.T) {
	rec := shared.Record()
	pid := orphan(t, "exec sleep 1000")
	ch := rec.Await(pid)
	rec.Close()
	if err := shared.Signal(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, ch); e.Status != 137 {
		t.Errorf("status %d, want 137", e.Status)
	}
	if err := shared.Signal(pid, unix.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to a reaped process: %v, want ErrProcessDone", err)
	}
}

func TestUnawaitedOrphanIsNoZombie(t *testing.T) {
	pid := orphan(t, "exit 0")
	deadline := time.Now().Add(time.Minute)
	for {
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/stat")
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err == nil {
			_, _ = bufio.NewReader(f).ReadString('\n')
			f.Close()
		}
		if time.Now().After(deadline) {
			t.Fatal("orphan stayed a zombie")
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
}
