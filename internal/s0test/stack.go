package s0test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/api/client"
	"s0.run/internal/s0test/freeport"
)

const (
	stackStartTimeout = 4 * time.Minute  // the database is made, the image unpacked, the pool warmed, on a loaded machine
	stackStopTimeout  = 3 * time.Minute  // every sandbox is torn down
	settleTimeout     = 2 * time.Minute  // R4: what nobody owns is reclaimed
	exitTimeout       = 90 * time.Second // what nobody waits for ends: a shim that expects a container after 30 s
	statusPoll        = 50 * time.Millisecond
)

// Options says how a private s0 differs from the default one.
type Options struct {
	Pool         int      // warm slots of the template `default`, exactly
	MaxSandboxes int      // 0: as s0d has it
	Flags        []string // more flags of `s0d up`
	Env          []string // more environment of s0d, such as failpoints
}

// AdminPassword is the first user's, whose email is admin@example.com.
const AdminPassword = "correct horse battery staple"

// A Stack is a whole private s0, started from its binaries.
type Stack struct {
	Machine
	URL string // of the API

	t     testing.TB
	flags []string
	env   []string

	mu     sync.Mutex
	server *exec.Cmd
	exited chan struct{} // closed when server has ended
	output *os.File
}

// Start starts a stack and waits until it serves and has a warm slot. When the
// test ends the stack is stopped; what it then leaves on the machine fails the test.
func Start(t testing.TB, opt Options) *Stack {
	t.Helper()
	s := Prepare(t, opt)
	s.Up()
	return s
}

// Prepare is Start for a test that starts the server itself, through [Stack.S0D].
func Prepare(t testing.TB, opt Options) *Stack {
	t.Helper()
	NeedRoot(t)
	dir, err := os.MkdirTemp("", "s0t-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // the database's user crosses it
		t.Fatal(err)
	}
	name := "t" + strings.TrimPrefix(filepath.Base(dir), "s0t-")
	s := &Stack{
		Machine: Machine{
			Root: dir, DataDir: filepath.Join(dir, "d"), RunDir: filepath.Join(dir, "r"), Cluster: name, CgroupParent: "/s0" + name,
			NodeSocket: filepath.Join(dir, "r", "noded.sock"), ContainerdSocket: filepath.Join(dir, "r", "containerd", "containerd.sock"),
			Namespace: "s0", BinDir: Programs(t),
		},
		t: t, env: opt.Env,
	}
	listen, registry := freeAddress(t), freeAddress(t)
	s.URL = "http://" + listen
	s.flags = append([]string{
		"--data-dir=" + s.DataDir, "--run-dir=" + s.RunDir, "--listen=" + listen, "--registry-listen=" + registry,
		"--cluster=" + s.Cluster, "--cgroup-parent=" + s.CgroupParent, "--admin-password=" + AdminPassword,
		"--pool-min=" + strconv.Itoa(opt.Pool), "--pool-max=" + strconv.Itoa(opt.Pool),
		"--log-level=debug", "--rate-limit=1000000", "--rate-burst=1000000",
		"--image-dir=" + defaultImage(t, dir),
	}, opt.Flags...)
	if opt.MaxSandboxes > 0 {
		s.flags = append(s.flags, "--max-sandboxes="+strconv.Itoa(opt.MaxSandboxes))
	}
	if s.output, err = os.Create(filepath.Join(dir, "output")); err != nil {
		t.Fatal(err)
	}
	release := s.guard(dir)
	t.Cleanup(func() {
		s.finish()
		release()
	})
	return s
}

// defaultImage is the default template's image in a directory of its own: what
// else was built on this machine would be served as well, and copied.
func defaultImage(t testing.TB, dir string) string {
	t.Helper()
	alone := filepath.Join(dir, "images", "default")
	if err := os.Mkdir(filepath.Dir(alone), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(BuiltImage(t, "default"), alone); err != nil {
		t.Fatal(err)
	}
	return alone
}

// BuiltImage is the OCI layout of an image that hack/images builds.
func BuiltImage(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(ModuleRoot(t), "build", "images", name)
}

// Programs builds our programs beside containerd and runsc, and returns the
// directory of them all.
func Programs(t testing.TB) string {
	t.Helper()
	dir, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runsc"} {
		Binary(t, name)
	}
	return dir
}

var buildOnce = sync.OnceValues(func() (string, error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "s0.run").Output()
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	cmd := exec.Command("make", "--no-print-directory", "build")
	cmd.Dir = strings.TrimSpace(string(root))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w: %s", err, out)
	}
	return filepath.Join(cmd.Dir, "build", "bin"), nil
})

func freeAddress(t testing.TB) string {
	t.Helper()
	port, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// guard removes everything of the stack when the test process is gone, however
// it went, or when release is called, which waits for it.
func (s *Stack) guard(dir string) (release func()) {
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	const script = `cat >/dev/null; dir=$1; shift; "$@"; rm -rf "$dir"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "guard", dir, filepath.Join(s.BinDir, "s0d"), "reset", "--yes"}, s.flags...)...)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		w.Close()
		cmd.Wait()
	}
}

// Up starts the server again, after Down or Kill, and waits until it serves.
func (s *Stack) Up() {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.BinDir, "s0d"), append([]string{"up", "--foreground"}, s.flags...)...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = s.output, s.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	s.mu.Lock()
	s.server, s.exited = cmd, exited
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), stackStartTimeout)
	defer cancel()
	for {
		if st, err := s.Status(ctx); err == nil && st.State == "ready" && st.PID == cmd.Process.Pid {
			return
		}
		select {
		case <-exited:
			s.t.Fatalf("s0d ended while it was starting: %s", cmd.ProcessState)
		case <-ctx.Done():
			s.t.Fatalf("s0d did not get ready within %s", stackStartTimeout)
		case <-time.After(statusPoll):
		}
	}
}

// Status is what s0d says of itself on its control socket.
type Status struct {
	PID      int            `json:"pid"`
	State    string         `json:"state"`
	Children map[string]int `json:"children"`
}

// Status asks the server.
func (s *Stack) Status(ctx context.Context) (Status, error) {
	var st Status
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.RunDir, "s0d.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://s0d/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// Down stops the server in an orderly way, with or without its sandboxes.
func (s *Stack) Down(keepSandboxes bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stackStopTimeout)
	defer cancel()
	if out, err := s.s0d(ctx, "down", "--keep-sandboxes="+strconv.FormatBool(keepSandboxes)); err != nil {
		s.t.Errorf("s0d down: %v: %s", err, out)
	}
	s.awaitExit()
}

// Kill ends the server as a crash would: SIGKILL. Its children end with it, the
// sandboxes do not.
func (s *Stack) Kill() {
	s.mu.Lock()
	cmd := s.server
	s.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill()
	}
	s.awaitExit()
}

// KillChild ends one of s0d's children as a crash would, "containerd" or
// "PostgreSQL", and waits until another runs in its place.
func (s *Stack) KillChild(name string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	st, err := s.Status(ctx)
	if err != nil || st.Children[name] == 0 {
		s.t.Fatalf("finding %s: %v, %+v", name, err, st)
	}
	old := st.Children[name]
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		s.t.Fatalf("killing %s: %v", name, err)
	}
	s.Eventually("another "+name, func() error {
		st, err := s.Status(ctx)
		if now := st.Children[name]; err == nil && (now == 0 || now == old) {
			return errors.New("not yet")
		}
		return err
	})
}

// Reboot ends the server and everything of its sandboxes, and takes what a boot
// takes: processes, mounts, control groups and the run directory. Up starts again.
func (s *Stack) Reboot() {
	s.t.Helper()
	s.Kill()
	s.Eventually("the last process to end", func() error {
		left := s.processes()
		for _, p := range left {
			_ = syscall.Kill(p.pid(), syscall.SIGKILL)
		}
		if len(left) > 0 {
			return fmt.Errorf("%d are left", len(left))
		}
		return nil
	})
	for _, m := range slices.Backward(s.mounts()) {
		if err := unix.Unmount(m.Name, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // it has gone with who made it
			s.t.Errorf("unmounting %s: %v", m.Name, err)
		}
	}
	for _, g := range slices.Backward(s.cgroups()) {
		s.Eventually("control group "+g.Name+" to go", func() error { return unix.Rmdir(g.Name) })
	}
	if err := os.RemoveAll(s.RunDir); err != nil {
		s.t.Error(err)
	}
}

func (s *Stack) awaitExit() {
	s.mu.Lock()
	exited := s.exited
	s.server, s.exited = nil, nil
	s.mu.Unlock()
	if exited != nil {
		<-exited
	}
}

// s0d runs another command of s0d on this instance.
func (s *Stack) s0d(ctx context.Context, command string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.BinDir, "s0d"), append(append([]string{command}, s.flags...), args...)...)
	return cmd.CombinedOutput()
}

// S0D runs another command of s0d on this instance and returns what it printed.
func (s *Stack) S0D(command string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), stackStopTimeout)
	defer cancel()
	out, err := s.s0d(ctx, command, args...)
	return string(out), err
}

// Settled is what is left of a stopped stack when what ends by itself has had the time
// to: a shim goes after its last sandbox, and nobody waits for it.
func (s *Stack) Settled() (left []string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ; <-tick.C {
		if left = s.Leftovers(); len(left) == 0 || time.Since(begin) > exitTimeout {
			return left
		}
	}
}

// finish stops the stack and tells what it left.
func (s *Stack) finish() {
	s.Down(false)
	if left := s.Settled(); len(left) > 0 {
		s.t.Errorf("left on the machine after the stop:\n\t%s", strings.Join(left, "\n\t"))
	}
	if s.t.Failed() {
		s.t.Logf("the stack's logs end with:\n%s", s.Logs())
	}
	s.output.Close()
}

// Bin is the directory of all programs.
func (s *Stack) Bin() string { return s.BinDir }

// Key is the API key of the machine's root.
func (s *Stack) Key() string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.DataDir, "admin.key"))
	if err != nil {
		s.t.Fatalf("the admin's key: %v", err)
	}
	return strings.TrimSpace(string(b))
}

// Client is a client of the API with the admin's key.
func (s *Stack) Client() *client.Client {
	s.t.Helper()
	c, err := client.New(client.Config{BaseURL: s.URL, Token: s.Key()})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Eventually waits until ok returns nil. It is for what the server does behind
// an answer; a test's own steps need no waiting.
func (s *Stack) Eventually(what string, ok func() error) {
	s.t.Helper()
	deadline := time.Now().Add(settleTimeout)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("waited %s for %s: %v", settleTimeout, what, err)
		}
		time.Sleep(statusPoll)
	}
}

// Logs is the end of what the server and its children have logged.
func (s *Stack) Logs() string {
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(s.DataDir, "logs", "*.log"))
	for _, f := range append([]string{s.output.Name()}, files...) {
		fmt.Fprintf(&b, "== %s\n%s", filepath.Base(f), tail(f, 40))
	}
	return b.String()
}

// tail is the end of a log, without containerd's list of plugins.
func tail(path string, lines int) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 64<<10 {
		f.Seek(-64<<10, io.SeekEnd)
	}
	raw, _ := io.ReadAll(f)
	var kept [][]byte
	for line := range bytes.Lines(raw) {
		if !bytes.Contains(line, []byte("loading plugin")) {
			kept = append(kept, line)
		}
	}
	return bytes.Join(kept[max(0, len(kept)-lines):], nil)
}
