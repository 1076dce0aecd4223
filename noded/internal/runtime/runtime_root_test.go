package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/snapshots"

	"s0.run/internal/sandbox"
	saved "s0.run/noded/internal/snapshots"
)

func TestStartAndRemove(t *testing.T) {
	for _, class := range []sandbox.RuntimeClass{sandbox.GVisor, sandbox.Runc} {
		t.Run(string(class), func(t *testing.T) {
			n := newNode(t)
			b := n.start(class)
			a := b.accept()
			a.wantOut("yes", "read", "/etc/from-image")
			env, _ := a.do("env")
			for _, want := range []string{"PATH=/bin\n", "FROM_IMAGE=1\n", "FROM_TEMPLATE=2\n", "BOTH=template\n"} {
				if !strings.Contains(env, want) {
					t.Errorf("environment %q lacks %q", env, want)
				}
			}
			a.wantOut("box", "read", "/proc/sys/kernel/hostname")

			for _, path := range []string{"/etc/new", "/tmp/new", "/workspace/new"} {
				if out, code := a.do("write", path, "x"); code != 0 {
					t.Errorf("writing %s: %s", path, out)
				}
			}
			for _, path := range []string{"/run/s0/new", "/run/s0/bin/new", "/run/s0/bin/procd", "/sys/new"} {
				if out, code := a.do("write", path, "x"); code == 0 {
					t.Errorf("%s could be written: %s", path, out)
				}
			}

			s := n.list()[b.c.ID]
			if s.Ended || s.PID == 0 || s.Labels["s0.run/pool"] != "p" || s.Labels["s0.run/generation"] != "1" {
				t.Errorf("listed as %+v", s)
			}
			for range 2 { // idempotent
				n.ok(n.rt.Remove(n.ctx(), b.c.ID))
			}
			n.wantNothing()
			select {
			case e := <-n.rt.Exits():
				t.Errorf("exit %+v of a container that was removed", e)
			default:
			}
		})
	}
}

// /tmp is part of the root filesystem: what is written there goes the way of all
// files, also in gVisor, which would put a tmpfs there.
func TestTmpIsKept(t *testing.T) {
	n := newNode(t)
	a := n.start(sandbox.GVisor).accept()
	mounts, _ := a.do("read", "/proc/mounts")
	t.Logf("mounts inside:\n%s", mounts)
	for line := range strings.Lines(mounts) {
		if strings.Fields(line)[1] == "/tmp" {
			t.Errorf("something is mounted on /tmp: %s", line)
		}
	}
	out, code := a.do("stat", "/tmp")
	if code != 0 || !strings.HasPrefix(out, "dtrwxrwxrwx") {
		t.Errorf("mode of /tmp: %s", out)
	}
}

// PID 1 of a gVisor sandbox can bind-mount, for volumes.
func TestBindMountInside(t *testing.T) {
	n := newNode(t)
	a := n.start(sandbox.GVisor).accept()
	a.do("write", "/etc/file", "content")
	if out, code := a.do("bind", "/etc", "/workspace"); code != 0 {
		t.Fatal(out)
	}
	a.wantOut("content", "read", "/workspace/file")
}

func TestD04_DiskLimit(t *testing.T) {
	n := newNode(t)
	b := n.newBox(sandbox.GVisor)
	b.c.Spec.DiskBytes = 8 << 20
	err := n.rt.Start(n.ctx(), b.c)
	n.ok(err)
	a := b.accept()
	if out, code := a.do("fill", "/etc/small", "1"); code != 0 {
		t.Error(out)
	}
	if out, code := a.do("fill", "/etc/big", "20"); code == 0 || !strings.Contains(out, "no space") {
		t.Errorf("writing beyond the limit: %q, status %d", out, code)
	}
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	n.wantNothing()
}

func TestX29_ExitIsReported(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	b.accept()
	n.ok(syscall.Kill(n.sentry(b.c.ID), syscall.SIGKILL))
	if e := n.nextExit(); e.ID != b.c.ID || e.Status != 137 || e.Reason != exited {
		t.Errorf("exit %+v", e)
	}
	if s, ok := n.list()[b.c.ID]; !ok || !s.Ended {
		t.Errorf("listed as %+v, want a container that has ended", s)
	}
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	n.wantNothing()
}

// X19: a sandbox is saved whole, or it goes on.
func TestX19_Checkpoint(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	a := b.accept()
	image := dir(t)
	n.ok(os.Mkdir(filepath.Join(image, saved.MemoryPart), 0o700)) // somebody's half image is in the way
	if err := n.rt.Checkpoint(n.ctx(), b.c.ID, image); err == nil {
		t.Fatal("an image was written over another")
	}
	n.ok(n.rt.Thaw(n.ctx(), b.c.ID))
	a.wantOut("box", "read", "/proc/sys/kernel/hostname")
	if saved, err := n.rt.Saved(image); saved || err != nil {
		t.Errorf("half an image counts as one: %v, %v", saved, err)
	}
	a.conn.Close()
	image = dir(t)
	n.ok(n.rt.Checkpoint(n.ctx(), b.c.ID, image))
	if saved, err := n.rt.Saved(image); !saved || err != nil {
		t.Errorf("saved: %v, %v", saved, err)
	}
}

// Files are kept while the sandbox goes on with its connection, and another begins with
// them; saved alone they end it, and it begins with them again.
func TestX21_FilesAlone(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	a := b.accept()
	a.do("write", "/etc/file", "kept")
	a.do("write", "/tmp/file", "kept, too")
	image := dir(t)
	n.ok(n.rt.SaveFiles(n.ctx(), b.c.ID, image))
	a.wantOut("kept", "read", "/etc/file") // over the same connection
	a.do("write", "/etc/file", "changed")
	if err := n.rt.SaveFiles(n.ctx(), b.c.ID, image); err == nil {
		t.Error("an image was written over another")
	}
	if saved, err := n.rt.Saved(image); !saved || err != nil {
		t.Errorf("saved: %v, %v", saved, err)
	}
	begun := func(image, etc string) {
		t.Helper()
		c := n.newBox(sandbox.GVisor)
		c.c.Checkpoint = image
		n.ok(n.rt.Start(n.ctx(), c.c))
		defer func() { n.ok(n.rt.Remove(n.ctx(), c.c.ID)) }()
		n.ok(os.RemoveAll(image)) // it is the sandbox's own by now
		other := c.accept()
		other.wantOut(etc, "read", "/etc/file")
		other.wantOut("kept, too", "read", "/tmp/file")
		other.wantOut("yes", "read", "/etc/from-image")
	}
	begun(image, "kept")
	a.conn.Close()
	image = dir(t)
	n.ok(n.rt.CheckpointFiles(n.ctx(), b.c.ID, image))
	if saved, err := n.rt.Saved(image); !saved || err != nil {
		t.Errorf("saved: %v, %v", saved, err)
	}
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	begun(image, "changed")
}

// X20: what a checkpoint left frozen goes on, and nothing else is changed by it; the end
// of one that died meanwhile is told.
func TestX20_Thaw(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	a := b.accept()
	tasks := n.rt.Client().TaskService()
	for range 2 {
		_, err := tasks.Pause(n.ctx(), &tasksapi.PauseTaskRequest{ContainerID: string(b.c.ID)})
		n.ok(err)
		n.ok(n.rt.Thaw(n.ctx(), b.c.ID))
		n.ok(n.rt.Thaw(n.ctx(), b.c.ID)) // it runs already
		a.wantOut("box", "read", "/proc/sys/kernel/hostname")
	}
	_, err := tasks.Pause(n.ctx(), &tasksapi.PauseTaskRequest{ContainerID: string(b.c.ID)})
	n.ok(err)
	n.rt.seen.end(b.c.ID) // as a checkpoint does
	n.ok(syscall.Kill(n.sentry(b.c.ID), syscall.SIGKILL))
	end := n.ctx()
	for n.rt.Thaw(end, b.c.ID) != nil { // until the end has been noticed
		n.ok(end.Err())
	}
	if e := n.nextExit(); e.ID != b.c.ID || e.Reason != exited {
		t.Errorf("exit %+v", e)
	}
}

func TestD02_OutOfMemoryIsTheReason(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	a := b.accept()
	go a.conn.Write([]byte(`["eat","1024"]`)) // there is no answer
	if e := n.nextExit(); e.ID != b.c.ID || e.Reason != outOfMemory {
		t.Errorf("exit %+v, want reason oom", e)
	}
}

// What ends while containerd is away is reported when it is back; what lives is
// not, and answers all the time.
func TestX28_ExitWhileContainerdIsAway(t *testing.T) {
	n := newNode(t)
	ends, lives := n.start(sandbox.GVisor), n.start(sandbox.GVisor)
	ends.accept()
	a := lives.accept()
	sentry := n.sentry(ends.c.ID)
	n.ctd.Kill()
	if err := n.rt.Ready(n.ctx()); err == nil {
		t.Error("ready without containerd")
	}
	n.ok(syscall.Kill(sentry, syscall.SIGKILL))
	a.wantOut("yes", "read", "/etc/from-image")
	n.ctd.Start(t)
	if e := n.nextExit(); e.ID != ends.c.ID || e.Status != 137 {
		t.Errorf("exit %+v, want that of %s", e, ends.c.ID)
	}
	n.ok(n.rt.Ready(n.ctx()))
	a.wantOut("yes", "read", "/etc/from-image")
	late := n.start(sandbox.GVisor)
	late.accept()
	for _, b := range []*box{ends, lives, late} {
		n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	}
	n.wantNothing()
	select {
	case e := <-n.rt.Exits():
		t.Errorf("another exit: %+v", e)
	default:
	}
}

// R3: a shim that does not answer says nothing about its sandbox. containerd then
// lists no task; the sandbox works on, and nobody may call it ended.
func TestX29_SilentShimIsNoEnd(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	a := b.accept()
	shim := n.shim()
	n.ok(syscall.Kill(shim, syscall.SIGSTOP))
	defer syscall.Kill(shim, syscall.SIGCONT)
	if s, ok := n.list()[b.c.ID]; !ok || s.Ended {
		t.Errorf("with a silent shim it is listed as %+v (%v)", s, ok)
	}
	n.rt = n.newRuntime() // a noded that starts anew is told that nobody knows
	if e := n.nextExit(); e.ID != b.c.ID || e.Reason != lost {
		t.Errorf("exit %+v, want one that is concluded", e)
	}
	a.wantOut("yes", "read", "/etc/from-image")
	n.ok(syscall.Kill(shim, syscall.SIGCONT))
	n.sentry(b.c.ID) // it answers again
	if s := n.list()[b.c.ID]; s.Ended {
		t.Errorf("when the shim answers again it is listed as %+v", s)
	}
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	n.wantNothing()
}

// A noded that starts anew is told what ended while there was none.
func TestExitWhileNodedIsAway(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	b.accept()
	n.ok(syscall.Kill(n.sentry(b.c.ID), syscall.SIGKILL))
	n.nextExit()
	n.rt = n.newRuntime()
	if e := n.nextExit(); e.ID != b.c.ID || e.Status != 137 || e.Reason != exited {
		t.Errorf("exit %+v", e)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	n := newNode(t)
	for name, spoil := range map[string]func(*Container){
		"network": func(c *Container) { c.NetNS = "/run/netns/none" },
		"slot":    func(c *Container) { c.SlotDir = "/no/such" },
		"overlay": func(c *Container) { c.OverlayDir = "/no/such" },
		"procd":   func(c *Container) { c.BinDir = c.SlotDir },
		"image":   func(c *Container) { c.Image = "none@sha256:" + strings.Repeat("0", 64) },
		"class":   func(c *Container) { c.Spec.RuntimeClass = "other" },
	} {
		b := n.newBox(sandbox.GVisor)
		spoil(&b.c)
		if err := n.rt.Start(n.ctx(), b.c); err == nil {
			t.Errorf("%s: started", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
		n.wantNothing()
	}
	for within := 100 * time.Millisecond; ; within /= 2 { // a quick machine may start it in time
		b := n.newBox(sandbox.GVisor)
		ctx, cancel := context.WithTimeout(context.Background(), within)
		err := n.rt.Start(ctx, b.c)
		cancel()
		if err != nil {
			break
		}
		n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	}
	n.wantNothing()
}

// What a crash left half-made is listed under its id and can be removed by it.
func TestG12_HalfMadeIsListedAndRemoved(t *testing.T) {
	n := newNode(t)
	b := n.newBox(sandbox.GVisor)
	_, err := n.rt.Client().SnapshotService("overlayfs").View(n.ctx(), string(b.c.ID), n.image.ChainID,
		snapshots.WithLabels(map[string]string{gcRoot: "now", "s0.run/pool": "p"}))
	n.ok(err)
	if s, ok := n.list()[b.c.ID]; !ok || s.Ended || s.Labels["s0.run/pool"] != "p" {
		t.Errorf("listed as %+v", s)
	}
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	n.wantNothing()
}

// The upper layer is in the overlay directory while the sandbox lives, and takes
// no space afterwards.
func TestOverlayDirIsEmptyAfterwards(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	b.accept().do("fill", "/etc/big", "4")
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	left, err := os.ReadDir(filepath.Clean(b.c.OverlayDir))
	n.ok(err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A fork bomb meets its own limit: fork fails, or the sandbox's own kernel, which
// needs threads of the host, ends with all that is in it. The node and its
// neighbours do not notice.
func TestD01_ForkBomb(t *testing.T) {
	n := newNode(t)
	neighbour := n.start(sandbox.GVisor).accept()
	b := n.newBox(sandbox.GVisor)
	b.c.Spec.PidsLimit = 200
	err := n.rt.Start(n.ctx(), b.c)
	n.ok(err)
	a := b.accept()
	if out, code, err := a.try("fork", "1000"); err != nil {
		t.Logf("the sandbox has ended: %v, exit %+v", err, n.nextExit())
	} else if t.Logf("%q, status %d", out, code); strings.Contains(out, "forked 1000") {
		t.Error("the bomb met no limit")
	}
	neighbour.wantOut("yes", "read", "/etc/from-image")
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
}
