package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"s0.run/internal/s0test/nodetest"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/images"
)

const patience = 60 * time.Second

// node is a runtime on a private containerd, with an image whose containers' PID
// 1 is the probe's agent.
type node struct {
	testing.TB
	ctd   *nodetest.Containerd
	rt    *Runtime
	image images.Image
	bin   string
}

func newNode(t testing.TB) *node {
	t.Helper()
	ctd := nodetest.NewContainerd(t)
	n := &node{TB: t, ctd: ctd, bin: dir(t)}
	n.rt = n.newRuntime()
	rootfs := nodetest.Rootfs(t)
	n.ok(os.Link(filepath.Join(rootfs, "bin", "probe"), filepath.Join(n.bin, "procd")))
	n.ok(os.WriteFile(filepath.Join(rootfs, "etc", "from-image"), []byte("yes"), 0o644))
	reg := nodetest.NewRegistry(t)
	ref := reg.Push(t, "test/probe:1", rootfs, v1.Config{
		Env:     []string{"PATH=/bin", "FROM_IMAGE=1", "BOTH=image"},
		Volumes: map[string]struct{}{"/workspace": {}},
		Labels:  map[string]string{"io.containerd.s0.evil": "1"},
		User:    "nobody",
	})
	im := images.New(images.Config{Client: n.rt.Client(), Snapshotter: "overlayfs", PlainHTTPHosts: []string{reg.Host}, Room: func() error { return nil }, Log: slog.New(slog.DiscardHandler)})
	var err error
	n.image, err = im.Ensure(n.ctx(), ref)
	n.ok(err)
	return n
}

// newRuntime makes a Runtime that runs until the test ends.
func (n *node) newRuntime() *Runtime {
	n.Helper()
	rt, err := New(Config{
		Socket: n.ctd.Address, Namespace: nodetest.Namespace, Snapshotter: "overlayfs",
		Runsc: n.ctd.Runsc, RunscRoot: n.ctd.RunscRoot, AllowRunc: true, Log: slog.New(slog.DiscardHandler),
	})
	n.ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rt.Run(ctx) }()
	n.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, rt.Close()); err != nil {
			n.Errorf("Run: %v", err)
		}
	})
	return rt
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	n.Cleanup(cancel)
	return ctx
}

func (n *node) ok(err error) {
	n.Helper()
	if err != nil {
		n.Fatalf("%v\n%s", err, n.ctd.Log())
	}
}

// dir is a directory that gofers can reach, short enough for sockets.
func dir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "s0d-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// box is a sandbox as its host sees it.
type box struct {
	*node
	c  Container
	ln net.Listener
}

// newBox prepares what a container needs, but starts nothing.
func (n *node) newBox(class sandbox.RuntimeClass) *box {
	n.Helper()
	id, err := sandbox.NewID("test")
	n.ok(err)
	slot := dir(n.TB)
	n.ok(os.Mkdir(filepath.Join(slot, "bin"), 0o755))
	ln, err := net.Listen("unix", filepath.Join(slot, "node.sock"))
	n.ok(err)
	n.Cleanup(func() { ln.Close() })
	netns := "s0t" + string(id[len(id)-12:])
	n.ok(exec.Command("ip", "netns", "add", netns).Run())
	n.Cleanup(func() { _ = exec.Command("ip", "netns", "del", netns).Run() })
	return &box{node: n, ln: ln, c: Container{
		ID:    id,
		Image: n.image.Ref,
		Spec: sandbox.Spec{
			MemoryBytes: 256 << 20, CPUMillis: 1000, RuntimeClass: class,
			Env: map[string]string{"BOTH": "template", "FROM_TEMPLATE": "2"},
		},
		SlotDir: slot, BinDir: n.bin, OverlayDir: dir(n.TB),
		NetNS:      "/run/netns/" + netns,
		CgroupPath: n.ctd.CgroupParent + "/" + string(id),
		Group:      "g",
		Labels:     map[string]string{"s0.run/pool": "p", "s0.run/generation": "1"},
		Hostname:   "box",
	}}
}

// start runs the box and removes it when the test ends, if that has not.
func (n *node) start(class sandbox.RuntimeClass) *box {
	n.Helper()
	b := n.newBox(class)
	n.ok(n.rt.Start(n.ctx(), b.c))
	rt := n.rt
	n.Cleanup(func() {
		if err := rt.Remove(context.Background(), b.c.ID); err != nil && !n.Failed() {
			n.Error(err)
		}
	})
	return b
}

// agent is a connection that the sandbox's PID 1 has dialled.
type agent struct {
	*box
	conn net.Conn
}

// accept waits for the agent's call.
func (b *box) accept() *agent {
	b.Helper()
	b.ok(b.ln.(*net.UnixListener).SetDeadline(time.Now().Add(patience)))
	conn, err := b.ln.Accept()
	b.ok(err)
	b.Cleanup(func() { conn.Close() })
	return &agent{box: b, conn: conn}
}

// do has a word of the probe said inside.
func (a *agent) do(args ...string) (string, int) {
	a.Helper()
	out, code, err := a.try(args...)
	a.ok(err)
	return out, code
}

// try is do for a sandbox that may not survive it.
func (a *agent) try(args ...string) (string, int, error) {
	a.Helper()
	a.ok(a.conn.SetDeadline(time.Now().Add(patience)))
	var answer struct {
		Out  string
		Code int
	}
	err := json.NewEncoder(a.conn).Encode(args)
	if err == nil {
		err = json.NewDecoder(a.conn).Decode(&answer)
	}
	return answer.Out, answer.Code, err
}

func (a *agent) wantOut(want string, args ...string) {
	a.Helper()
	if out, code := a.do(args...); code != 0 || strings.TrimSpace(out) != want {
		a.Errorf("%q: %q, status %d; want %q", args, out, code, want)
	}
}

func (n *node) nextExit() Exit {
	n.Helper()
	select {
	case e := <-n.rt.Exits():
		return e
	case <-time.After(patience):
		n.Fatalf("no exit\n%s", n.ctd.Log())
		return Exit{}
	}
}

// list is what List finds, by id.
func (n *node) list() map[sandbox.ID]Status {
	n.Helper()
	all, err := n.rt.List(n.ctx())
	n.ok(err)
	found := map[sandbox.ID]Status{}
	for _, s := range all {
		found[s.ID] = s
	}
	return found
}

// wantNothing checks that neither containerd nor the host has anything more.
func (n *node) wantNothing() {
	n.Helper()
	if left := n.list(); len(left) > 0 {
		n.Errorf("containerd has %v", left)
	}
	deadline := time.Now().Add(patience)
	for {
		left := slices.DeleteFunc(n.ctd.Present(), func(s string) bool { return strings.HasSuffix(s, "/bin/containerd") })
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("left on the host: %v", left)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// sentry is the pid of a sandbox, when its shim says it: containerd lists no task whose shim
// has not answered within two seconds.
func (n *node) sentry(id sandbox.ID) int {
	n.Helper()
	for deadline := time.Now().Add(patience); ; {
		if pid := n.list()[id].PID; pid != 0 {
			return pid
		}
		if time.Now().After(deadline) {
			n.Fatal(fmt.Errorf("%s has no pid", id))
		}
	}
}

// shim is the pid of the node's one shim.
func (n *node) shim() int {
	n.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		raw, _ := os.ReadFile(f)
		program, _, _ := strings.Cut(string(raw), "\x00")
		if strings.HasPrefix(program, n.ctd.Dir) && filepath.Base(program) == "containerd-shim-s0-v1" {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			n.ok(err)
			return pid
		}
	}
	n.Fatal("no shim")
	return 0
}
