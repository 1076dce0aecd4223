package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/proctest"
)

// sandbox is a gVisor sandbox whose PID 1 is procd and whose programs are this
// machine's.
type sandbox struct{ *proctest.Conn }

func startGVisor(t testing.TB) *sandbox {
	t.Helper()
	s0test.NeedRoot(t)
	runsc := s0test.Binary(t, "runsc")
	slot, node := newSlot(t)
	portal := filepath.Join(slot, filepath.Base(procapi.Portal), "v~m")
	if err := os.MkdirAll(portal, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(portal, "name"), []byte("v"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root, bundle := filepath.Join(dir, "root"), filepath.Join(dir, "bundle")
	if err := makeRootfs(filepath.Join(bundle, "rootfs")); err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(ociSpec(slot))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o644); err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprint("procd-test-", os.Getpid(), "-", time.Now().UnixNano())
	flags := []string{"--root=" + root, "--network=none", "--host-uds=open", "--overlay2=root:memory", "--platform=systrap", "--ignore-cgroups"}
	run := func(args ...string) *exec.Cmd {
		cmd := exec.Command(runsc, append(slices.Clone(flags), args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return cmd
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	start := run("run", "-detach", "-bundle", bundle, id)
	start.Stdout, start.Stderr = log, log
	if err := start.Run(); err != nil {
		b, _ := os.ReadFile(log.Name())
		t.Fatalf("runsc run: %v\n%s", err, b)
	}
	t.Cleanup(func() {
		if out, err := run("delete", "-force", id).CombinedOutput(); err != nil {
			t.Errorf("runsc delete: %v: %s", err, out)
		}
		_ = syscall.Unmount(filepath.Join(root, "null-netns"), 0) // runsc leaves it
	})
	return &sandbox{node.Accept(t)}
}

func makeRootfs(dir string) error {
	for _, d := range []string{"usr", "etc", "proc", "dev", "tmp", "run/s0", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(dir, d)); err != nil {
			return err
		}
	}
	return nil
}

func ociSpec(slot string) map[string]any {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"}
	return map[string]any{
		"ociVersion": "1.0.0",
		"process": map[string]any{
			"args": []string{procapi.Binary}, "cwd": "/", "env": []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "IMAGE=yes"},
			"user":         map[string]any{"uid": 0, "gid": 0},
			"capabilities": map[string]any{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"root":     map[string]any{"path": "rootfs"},
		"hostname": "warm",
		"mounts": []map[string]any{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/usr", "type": "bind", "source": "/usr", "options": []string{"rbind", "ro"}},
			{"destination": procapi.Dir, "type": "bind", "source": slot, "options": []string{"rbind", "ro"}},
		},
		"linux": map[string]any{"namespaces": []map[string]any{{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}}},
	}
}

func TestGVisor(t *testing.T) {
	t.Parallel()
	s := startGVisor(t)
	s.Call(t, "POST", procapi.PathInit, procapi.Init{SandboxID: "s0-x", Generation: 1, Hostname: "box", Env: map[string]string{"CLAIM": "yes"}}, nil)
	if got := stdout(t, s.Conn, "echo $(pwd) $(uname -n) $IMAGE $CLAIM $$"); !strings.HasPrefix(got, "/workspace box yes yes ") {
		t.Errorf("inside: %q", got)
	}
	for alias, c := range map[string][2]string{
		"python": {"x = 41\nprint(x + 1)", "x = 41\r\n_S0_> print(x + 1)\r\n42\r\n"},
		"bash":   {"x=41\necho $((x + 1))", "x=41\r\n_S0_> echo $((x + 1))\r\n42\r\n"},
		"node":   {"x = 41\nx + 1", "x = 41\r\n41\r\n_S0_> x + 1\r\n42\r\n"},
		"sqlite": {"select 41 + 1;", "select 41 + 1;\r\n42\r\n"},
		"perl":   {"print 41 + 1, qq(\\n)", "print 41 + 1, qq(\\n)\r\n42\r\n"},
	} {
		ctx := s.repl(t, alias)
		if got := s.exec(t, ctx, c[0]); got != c[1] {
			t.Errorf("%s: %q, want %q", alias, got, c[1])
		}
	}
	py := s.repl(t, "python")
	if got := s.exec(t, py, "len('"+strings.Repeat("x", 20_000)+"')"); !strings.HasSuffix(got, "\r\n20000\r\n") {
		t.Errorf("a long line: %q", got[max(0, len(got)-50):])
	}
	if got := s.exec(t, py, "a = input()\ngopher\na"); !strings.HasSuffix(got, "'gopher'\r\n") {
		t.Errorf("input: %q", got)
	}
	stream := s.Attach(t, py, "?offset=100000000")
	stream.Input(t, "", "import time; time.sleep(1000)\n")
	stream.Until(t, func(e *proctest.Ended, _ byte) bool { return strings.Contains(e.Out[procapi.FramePTY], "1000)\r\n") })
	s.Call(t, "POST", procapi.PathContexts+"/"+py+"/signal", procapi.SignalRequest{Signal: "INT"}, nil)
	stream.Until(t, func(e *proctest.Ended, _ byte) bool {
		return strings.Contains(e.Out[procapi.FramePTY], "KeyboardInterrupt")
	})
	s.Call(t, "DELETE", procapi.PathContexts+"/"+py, nil, nil)
	if e := stream.ToEnd(t); e.Exit != (procapi.Exit{ExitCode: 137, State: "killed"}) {
		t.Errorf("after the deletion: %+v", e.Exit)
	}
	s.filesAndProcesses(t)
	s.volumes(t)
}

// volumes mounts what is in the portal: at the place that was said or nowhere, once, and
// until nothing uses it.
func (s *sandbox) volumes(t *testing.T) {
	t.Helper()
	at := procapi.Mount{Name: "v~m", Target: `/workspace/with space\and more/data`}
	mounted := func() string {
		return stdout(t, s.Conn, `cat '`+at.Target+`/name' 2>/dev/null; grep -c 'and.*more/data ' /proc/self/mountinfo`)
	}
	for range 2 { // the second is repeated
		s.Call(t, "POST", procapi.PathMounts, at, nil)
	}
	if got := mounted(); got != "v1\n" {
		t.Errorf("mounted: %q", got)
	}
	var user procapi.Context
	s.Call(t, "POST", procapi.PathContexts, procapi.CreateContext{Type: "cmd", Cwd: at.Target, CMD: &procapi.CMDRequest{Command: []string{"sleep", "1000"}}}, &user)
	if status, e := s.Refused(t, "DELETE", procapi.PathMounts, at); status != 409 || !strings.Contains(e.Message, "processes use") {
		t.Errorf("unmounting what is in use: %d %+v", status, e)
	}
	if got := mounted(); got != "v1\n" {
		t.Errorf("in use: %q", got)
	}
	s.Call(t, "DELETE", procapi.PathContexts+"/"+user.ID, nil, nil)
	for range 2 {
		s.Call(t, "DELETE", procapi.PathMounts, at, nil)
	}
	if got := mounted(); got != "0\n" {
		t.Errorf("unmounted: %q", got)
	}
	s.placesOfSymlinks(t)
}

// placesOfSymlinks are no mount points (B04): neither such a link nor what is behind one.
func (s *sandbox) placesOfSymlinks(t *testing.T) {
	t.Helper()
	before := stdout(t, s.Conn, "mkdir /workspace/real; ln -s real /workspace/link; ln -s /nowhere /workspace/broken; ln -s /etc /workspace/real/etc; touch /workspace/file; cat /proc/self/mountinfo")
	for target, want := range map[string]string{"link": "symlink", "link/in": "symlink", "broken": "symlink", "real/etc/in": "symlink", "file": "not a directory", "file/in": "not a directory"} {
		m := procapi.Mount{Name: "v~m", Target: "/workspace/" + target}
		if status, e := s.Refused(t, "POST", procapi.PathMounts, m); status != 409 || !strings.Contains(e.Message, want) {
			t.Errorf("mounting at %s: %d %+v", target, status, e)
		}
		s.Call(t, "DELETE", procapi.PathMounts, m, nil) // nothing is there
	}
	if after := stdout(t, s.Conn, "ls /workspace/real /etc/in 2>/dev/null; cat /proc/self/mountinfo"); after != "/workspace/real:\netc\n"+before {
		t.Errorf("afterwards:\n%s\nbefore:\n%s", after, before)
	}
}

func (s *sandbox) filesAndProcesses(t *testing.T) {
	t.Helper()
	content := strings.Repeat("0123456789", 300_000)
	if status, b := s.Raw(t, "POST", procapi.PathFiles+"?path=dir/file", content); status != 200 {
		t.Fatalf("write: %d %s", status, b)
	}
	if _, b := s.Raw(t, "GET", procapi.PathFiles+"?path=/workspace/dir/file", ""); string(b) != content {
		t.Errorf("read %d bytes", len(b))
	}
	s.Call(t, "POST", procapi.PathFiles+"/move", procapi.MoveRequest{Source: "dir/file", Destination: "moved"}, nil)
	if status, e := s.Refused(t, "GET", procapi.PathFiles+"?path=/proc/self/mem", ""); status != 400 {
		t.Errorf("/proc: %d %+v", status, e)
	}
	for _, path := range []string{"/", procapi.Dir, procapi.Binary} {
		if status, e := s.Refused(t, "DELETE", procapi.PathFiles+"?path="+path, ""); status != 403 {
			t.Errorf("deleting %s: %d %+v", path, status, e)
		}
	}
	if got := stdout(t, s.Conn, "echo $(wc -c < moved); for s in TRAP SEGV INT HUP; do kill -$s 1; done; (setsid sleep 1000 &) ; sleep 1000 & echo early"); got != "3000000\nearly\n" {
		t.Errorf("stdout %q", got)
	}
	tty := command("stty size; sleep 1000 & echo early")
	tty.PTYSize = &procapi.PTYSize{Rows: 30, Cols: 90}
	var out procapi.Context
	s.Call(t, "POST", procapi.PathContexts, tty, &out)
	if *out.OutputRaw != "30 90\r\nearly\r\n" {
		t.Errorf("terminal: %q", *out.OutputRaw)
	}
	if status, e := s.Refused(t, "POST", procapi.PathContexts, procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: []string{"nope"}}}); status != 400 {
		t.Errorf("missing program: %d %+v", status, e)
	}
}

func (s *sandbox) repl(t testing.TB, alias string) (id string) {
	t.Helper()
	var c procapi.Context
	s.Call(t, "POST", procapi.PathContexts, procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: alias}}, &c)
	return c.ID
}

func (s *sandbox) exec(t testing.TB, id, code string) string {
	t.Helper()
	var res procapi.ExecResult
	s.Call(t, "POST", procapi.PathContexts+"/"+id+"/exec", procapi.ExecRequest{Data: code}, &res)
	return res.OutputRaw
}

// BenchmarkGVisor measures what a call costs inside a real sandbox.
func BenchmarkGVisor(b *testing.B) {
	s := startGVisor(b)
	b.Run("init", func(b *testing.B) {
		in := procapi.Init{SandboxID: "s0-x", Hostname: "box", Env: map[string]string{"CLAIM": "yes"}}
		percentiles(b, func() { in.Generation++; s.Call(b, "POST", procapi.PathInit, in, nil) })
	})
	b.Run("hello", func(b *testing.B) {
		percentiles(b, func() { s.Call(b, "GET", procapi.PathHello, nil, nil) })
	})
	for name, argv := range map[string][]string{"true": {"true"}, "static true": {"/usr/bin/busybox", "true"}, "sh": {"sh", "-c", "true"}} {
		req := procapi.CreateContext{Type: "cmd", WaitUntilDone: true, CMD: &procapi.CMDRequest{Command: argv}}
		b.Run(name, func(b *testing.B) {
			percentiles(b, func() { s.Call(b, "POST", procapi.PathContexts, req, nil) })
		})
	}
	for alias, code := range map[string]string{"python": "1", "bash": ":", "node": "1"} {
		id := s.repl(b, alias)
		b.Run("repl "+alias, func(b *testing.B) {
			percentiles(b, func() { s.exec(b, id, code) })
		})
	}
	b.Run("stream", func(b *testing.B) {
		const size = 256 << 20
		b.SetBytes(size)
		for b.Loop() {
			var c procapi.Context
			s.Call(b, "POST", procapi.PathContexts, procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: []string{"dd", "if=/dev/zero", "bs=64k", "status=none", fmt.Sprintf("count=%d", size>>16)}}}, &c)
			st := s.Attach(b, c.ID, "")
			st.Drain(b)
			st.Close()
		}
	})
}

func percentiles(b *testing.B, call func()) {
	b.Helper()
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		call()
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	for name, at := range map[string]int{"min-ms": 0, "p50-ms": len(took) / 2, "p99-ms": len(took) * 99 / 100} {
		b.ReportMetric(float64(took[at].Microseconds())/1000, name)
	}
}
