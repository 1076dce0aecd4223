package fault_test

import (
	"fmt"
	"os"
	"testing"

	"s0.run/api/client"
)

// TestX27_AnotherVersion has a noded of another version and this one take turns over the same
// sandboxes, as an upgrade and the way back do. What one leaves, asleep or running, snapshots
// and children, the next one goes on with. S0_OTHER is the other's s0d.
func TestX27_AnotherVersion(t *testing.T) {
	other := os.Getenv("S0_OTHER")
	if other == "" {
		t.Skip("needs an s0d of another version: make test-upgrade")
	}
	s := newStackWith(t, 1, true, objectStore(t)...)
	ours := s.noded.program
	runs, sleeps := s.claim("runs", "default"), s.claim("sleeps", "default")
	tr := map[string]traces{runs: s.leaveTraces(runs), sleeps: s.leaveTraces(sleeps)}
	var children []string
	for i, program := range []string{ours, other, ours, other, ours} {
		t.Run(fmt.Sprint("turn ", i), func(t *testing.T) {
			s.TB = t
			s.noded.kill()
			s.noded.program = program
			s.startNoded("")
			s.check()
			s.wantTraces(runs, tr[runs])
			s.wantTraces(sleeps, tr[sleeps]) // wakes it
			for _, child := range children {
				s.wantTraces(child, tr[sleeps])
				s.remove(child)
			}
			if children != nil {
				s.wantSnapshots(sleeps, tr[sleeps])
			}
			children = s.leaveAll(runs)
			runs, sleeps = sleeps, runs
		})
		s.TB = t
	}
	s.removeAll()
	s.check()
}

// leaveAll makes a snapshot of a sandbox and two children with its memory, and has it sleep.
func (s *stack) leaveAll(id string) (children []string) {
	s.Helper()
	s.eventuallyDone("a snapshot", func() error {
		_, err := s.c.CreateSandboxSnapshot(s.ctx(), id, client.CreateSandboxRootFSSnapshotRequest{})
		return err
	})
	s.eventuallyDone("a fork", func() (err error) { children, err = s.fork(id); return err })
	s.pause(id)
	s.check()
	return children
}
