package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/proctest"
)

// initArg makes this test binary the first process of a sandbox of its own
// namespaces: it mounts what a runtime would, and becomes procd.
const initArg = "be-init"

func beInit(args []string) {
	slot, root := args[0], args[1]
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{root, root, "", unix.MS_BIND | unix.MS_REC},
		{"proc", root + "/proc", "proc", 0},
		{"/dev", root + "/dev", "", unix.MS_BIND | unix.MS_REC},
		{"/usr", root + "/usr", "", unix.MS_BIND | unix.MS_REC},
		{slot, root + procapi.Dir, "", unix.MS_BIND},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			fatal(err)
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			fatal(fmt.Errorf("mounting %s: %w", m.target, err))
		}
	}
	for _, dir := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+dir, root+"/"+dir); err != nil {
			fatal(err)
		}
	}
	must(unix.Chroot(root))
	must(os.Chdir("/"))
	must(os.Mkdir("/etc", 0o755))
	must(syscall.Exec(procapi.Binary, []string{"procd"}, []string{"IMAGE=yes"}))
}

func must(err error) {
	if err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "init:", err)
	os.Exit(1)
}

// newSlot is a slot's directory as noded makes it.
func newSlot(t testing.TB) (dir string, node *proctest.Node) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(build(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "procd"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, proctest.Listen(t, filepath.Join(dir, filepath.Base(procapi.Socket)))
}

// startPID1 runs the real binary as PID 1 of new namespaces.
func startPID1(t *testing.T) (*exec.Cmd, *proctest.Node, *proctest.Conn) {
	t.Helper()
	s0test.NeedRoot(t)
	slot, node := newSlot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, initArg, slot, t.TempDir())
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // the namespace goes with it
		_ = cmd.Wait()
	})
	return cmd, node, node.Accept(t)
}

func command(script string) procapi.CreateContext {
	return procapi.CreateContext{Type: "cmd", WaitUntilDone: true, CMD: &procapi.CMDRequest{Command: []string{"sh", "-c", script}}}
}

func stdout(t testing.TB, c *proctest.Conn, script string) string {
	t.Helper()
	var out procapi.Context
	c.Call(t, "POST", procapi.PathContexts, command(script), &out)
	return *out.Stdout
}

func TestPID1(t *testing.T) {
	t.Parallel()
	_, _, c := startPID1(t)
	var hello procapi.Hello
	c.Call(t, "GET", procapi.PathHello, nil, &hello)
	if hello.Version != "test" {
		t.Errorf("hello %+v", hello)
	}
	c.Call(t, "POST", procapi.PathInit, procapi.Init{SandboxID: "s0-x", Generation: 1, Hostname: "box", Env: map[string]string{"CLAIM": "yes"}}, nil)
	if got := stdout(t, c, "echo $(pwd) $(uname -n) $IMAGE $CLAIM $HOME"); got != "/workspace box yes yes /root\n" {
		t.Errorf("inside: %q", got)
	}
	if got := stdout(t, c, "until test -s /etc/hosts; do sleep 0.01; done; tail -1 /etc/hosts; cat /etc/hostname"); got != "127.0.1.1 box\nbox\n" {
		t.Errorf("names: %q", got)
	}
	// Nothing that procd has, nor what it inherited itself, reaches a process.
	if got := stdout(t, c, "ls /proc/self/fd | tr '\n' ' '; cat /proc/1/cmdline | tr '\\0' ' '"); got != "0 1 2 3 procd " { // 3 is the listing itself
		t.Errorf("descriptors and command line: %q", got)
	}
}

func TestB12_ZombieStorm(t *testing.T) {
	t.Parallel()
	_, _, c := startPID1(t)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			stdout(t, c, `i=0; while [ $i -lt 100 ]; do (setsid sh -c "exit 3" &); (sh -c "sleep 0.01" &); i=$((i+1)); done`)
		})
	}
	wg.Wait()
	const zombies = `grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l`
	deadline := time.After(proctest.Patience)
	for tick := time.Tick(20 * time.Millisecond); stdout(t, c, zombies) != "0\n"; {
		select {
		case <-tick:
		case <-deadline:
			t.Fatal("zombies are left")
		}
	}
}

func TestB11_SignalsToPID1(t *testing.T) {
	t.Parallel()
	_, _, c := startPID1(t)
	if got := stdout(t, c, `for s in HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM STOP TSTP TTIN TTOU XCPU PWR SYS KILL; do kill -$s 1 || echo $s failed; done; echo sent`); got != "sent\n" {
		t.Errorf("signals: %q", got)
	}
	if got := stdout(t, c, "echo alive"); got != "alive\n" {
		t.Errorf("afterwards: %q", got)
	}
	// Processes get signals as they always did: nothing is ignored or blocked, unless
	// this test itself was started like that.
	const masks = `grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f2`
	want, err := exec.Command("sh", "-c", masks).Output()
	if err != nil {
		t.Fatal(err)
	}
	const none = "0000000000000000\n0000000000000000\n"
	if got := stdout(t, c, masks); got != none && got != string(want) {
		t.Errorf("blocked and ignored signals: %q, want %q", got, want)
	}
}

func TestSIGTERMEndsTheSandbox(t *testing.T) {
	t.Parallel()
	cmd, _, c := startPID1(t)
	var out procapi.Context
	req := command("trap '' TERM HUP; (setsid sleep 1000 &); sleep 1000")
	req.WaitUntilDone = false
	c.Call(t, "POST", procapi.PathContexts, req, &out)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("procd ended with %v", err)
		}
	case <-time.After(proctest.Patience):
		t.Fatal("procd did not end")
	}
}

func TestContextsOutliveTheNode(t *testing.T) {
	t.Parallel()
	_, node, c := startPID1(t)
	var repl procapi.Context
	c.Call(t, "POST", procapi.PathContexts, procapi.CreateContext{Type: "repl", WaitUntilDone: true, REPL: &procapi.REPLRequest{Alias: "python", Input: "x = 41"}}, &repl)
	for range 3 {
		c.Close()
		c = node.Accept(t)
		var res procapi.ExecResult
		c.Call(t, "POST", procapi.PathContexts+"/"+repl.ID+"/exec", procapi.ExecRequest{Data: "print(x + 1)"}, &res)
		if !strings.HasSuffix(res.OutputRaw, "\r\n42\r\n") {
			t.Errorf("exec: %+v", res)
		}
	}
}
