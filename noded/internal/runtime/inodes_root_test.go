package runtime

import (
	"os"
	"testing"

	"s0.run/internal/sandbox"
)

// D05: ten million empty files. They are inodes of the sandbox's own kernel, in the sandbox's
// own memory: their number ends with that, in this sandbox alone, and the host's file system
// has none of them.
func TestD05_EmptyFilesAreTheSandboxsOwn(t *testing.T) {
	n := newNode(t)
	neighbour := n.start(sandbox.GVisor).accept()
	b := n.newBox(sandbox.GVisor)
	b.c.Spec.MemoryBytes = 96 << 20
	n.ok(n.rt.Start(n.ctx(), b.c))
	a := b.accept()
	a.do("mkdir", "/etc/many")
	go a.conn.Write([]byte(`["make","/etc/many","10000000"]`)) // there is no answer
	if e := n.nextExit(); e.ID != b.c.ID || e.Reason != outOfMemory {
		t.Errorf("exit %+v, want reason oom", e)
	}
	if left, err := os.ReadDir(b.c.OverlayDir); err != nil || len(left) > 4 {
		t.Errorf("the host has %d files of it: %v", len(left), err)
	}
	neighbour.wantOut("yes", "read", "/etc/from-image")
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
}
