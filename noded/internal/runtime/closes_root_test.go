package runtime

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

// hearing is a file system that counts what it is told by whoever closes or syncs files.
type hearing struct {
	fuse.RawFileSystem
	flushes, syncs atomic.Int64
}

func (h *hearing) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h.flushes.Add(1)
	return h.RawFileSystem.Flush(cancel, in)
}

func (h *hearing) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h.syncs.Add(1)
	return h.RawFileSystem.Fsync(cancel, in)
}

// hear has a file system of FUSE be at a place until the test ends.
func (n *node) hear(at string) *hearing {
	n.Helper()
	root, err := fs.NewLoopbackRoot(dir(n.TB))
	n.ok(err)
	h := &hearing{RawFileSystem: fs.NewNodeFS(root, &fs.Options{})}
	srv, err := fuse.NewServer(h, at, &fuse.MountOptions{AllowOther: true, DirectMount: true})
	n.ok(err)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve() }()
	n.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			n.Error(err)
		}
		<-done
	})
	n.ok(srv.WaitMount())
	return h
}

// A file system in a portal hears of no close, so it can answer none, and a pause syncs what
// is half written: ADR 31 has buckets read-only for that.
func TestWhatAFileSystemHears(t *testing.T) {
	n := newNode(t)
	at := dir(t)
	portals := n.portals(at)
	h := n.hear(filepath.Join(at, "v1"))
	b := n.newBox(sandbox.GVisor)
	n.Cleanup(func() { _ = n.rt.Remove(context.Background(), b.c.ID) })
	n.ok(os.MkdirAll(filepath.Join(b.c.SlotDir, filepath.Base(procapi.Portal)), 0o755))
	n.ok(portals.Prepare(b.c.ID))
	b.c.PortalDir = portals.Dir(b.c.ID)
	n.ok(n.rt.Start(n.ctx(), b.c))
	a := b.accept()
	n.ok(portals.Attach(n.ctx(), b.c.ID, volume("v1", false)))
	v1 := procapi.Portal + "/v1~m"
	before := h.flushes.Load() // by who mounted it
	if out, code := a.do("write", v1+"/closed", "content"); code != 0 {
		t.Fatal(out)
	}
	pid, code := a.do("hold", v1+"/open")
	if code != 0 {
		t.Fatal(pid)
	}
	if heard := h.flushes.Load() - before; heard != 0 || h.syncs.Load() != 0 {
		t.Errorf("%d closes and %d syncs are heard of", heard, h.syncs.Load())
	}
	a.conn.Close()
	n.ok(n.rt.Checkpoint(n.ctx(), b.c.ID, dir(t)))
	if h.syncs.Load() == 0 {
		t.Error("a checkpoint syncs nothing")
	}
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	n.ok(portals.DetachAll(n.ctx(), b.c.ID))
	n.wantNothing()
}
