package noded_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"s0.run/internal/nodeapi"
)

// realCanary is in the memory of a sandbox whose processes know it.
const realCanary = "canary-7c1e-in-real-memory"

// X47 with a real sandbox: its processes go on at another node, from the object store.
// F10: they hold what the store does not show.
func TestX47_ARealSandboxGoesToAnotherNode(t *testing.T) {
	m := newMachine(t)
	store := filepath.Join(t.TempDir(), "store")
	m.cfg.ObjectStore, m.cfg.ObjectKeyFile = "file://"+store, newObjectKey(t)
	other := *m
	other.cfg.Node, other.cfg.DataDir, other.cfg.RunDir = "n2", filepath.Join(m.ctd.Dir, "e"), filepath.Join(m.ctd.Dir, "o")
	other.cfg.Socket, other.cfg.AdminSocket = filepath.Join(other.cfg.RunDir, "s"), filepath.Join(other.cfg.RunDir, "a")
	t.Cleanup(func() {
		other.removeInfrastructure()
		_ = syscall.Unmount(filepath.Join(other.cfg.RunDir, "runsc", "null-netns"), syscall.MNT_DETACH) // runsc makes it once, and may not have
	})

	a := m.run()
	m.spec.Env["CANARY"] = realCanary
	a.setPool(m.spec, 1)
	sb := a.claim(a.untilFree(1)[0])
	a.setPool(m.spec, 0)
	a.mustServe(sb.GetId())
	if _, err := a.rpc.Pause(a.ctx(), &nodeapi.PauseRequest{Id: sb.GetId()}); err != nil {
		t.Fatal(err)
	}
	sb = a.untilSandbox(sb.GetId(), func(sb *nodeapi.Sandbox) bool { return sb.GetStoredGeneration() == 1 })
	if n := holding(t, filepath.Join(m.cfg.DataDir, "paused"), realCanary); n == 0 {
		t.Error("the image on the node does not hold the canary: the look at the store proves nothing")
	}
	if n := holding(t, store, realCanary); n > 0 {
		t.Errorf("F10: %d objects hold the canary", n)
	}
	a.untilNothingRuns() // for the other node has the same containerd
	a.stop()
	if err := os.RemoveAll(m.cfg.DataDir); err != nil { // the node is gone for good
		t.Fatal(err)
	}

	b := other.run()
	got, err := b.rpc.Resume(b.ctx(), storedAs(sb, 3))
	if err != nil || got.GetState() != "running" || got.GetGeneration() != 4 {
		t.Fatalf("resumed as %v: %v", got, err)
	}
	b.mustServe(sb.GetId())
	b.delete(sb.GetId())
	b.until("nothing", func(p *picture) bool { return len(p.sandboxes) == 0 })
	other.gone()
}

// untilNothingRuns waits until what is paused is all that the node has, and torn down.
func (d *daemon) untilNothingRuns() {
	d.t.Helper()
	for ctx := d.ctx(); ; {
		info, err := d.rpc.Info(ctx, &nodeapi.InfoRequest{})
		if err != nil {
			d.t.Fatal(err)
		}
		if info.GetHolding() == 0 {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			d.t.Fatalf("%d are still there", info.GetHolding())
		}
	}
}

// holding counts the files below a directory that contain a text.
func holding(t *testing.T, dir, text string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
