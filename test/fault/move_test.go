package fault_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"s0.run/api/client"
)

// newTwoNodes is a stack whose only room is taken when it has a sandbox and a slot, and
// another node of it, with a containerd and an oracle of its own. They share an object store.
func newTwoNodes(t testing.TB) (s, other *stack) {
	t.Helper()
	store := objectStore(t)
	s = newStackWith(t, 1, false, append(store, "--max-sandboxes=2")...)
	other = newNode(t, "n2")
	other.Cluster, other.dsn, other.image, other.url, other.api, other.pg, other.c = s.Cluster, s.dsn, s.image, s.url, s.api, s.pg, s.c
	other.install()
	other.noded = newProcess(other, "noded", append(other.nodedArgs(s.registry), store...))
	t.Cleanup(other.finish)
	other.startNoded("")
	s.api.kill()
	s.api.args = append(s.api.args, "--nodes=unix://"+other.NodeSocket)
	s.startAPI()
	other.shape = shape{} // the only slot is the first node's
	for what, n := range s.shape {
		other.shape[strings.ReplaceAll(what, filepath.Base(s.Root), filepath.Base(other.Root))] = n
	}
	return s, other
}

// objectStore is where a noded is told to store images.
func objectStore(t testing.TB) (args []string) {
	t.Helper()
	key := filepath.Join(t.TempDir(), "object.key")
	if err := os.WriteFile(key, []byte(strings.Repeat("5e", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--object-store=file://" + filepath.Join(t.TempDir(), "objects"), "--object-key-file=" + key}
}

// asleepAndCrowdedOut is a sandbox that is paused and stored, for which its node has no room
// any more. The other node is not there meanwhile, so that nothing begins on it.
func (s *stack) asleepAndCrowdedOut(other *stack) (id string, tr traces) {
	s.Helper()
	other.noded.kill()
	id = s.claim(claimKey(s)+"-moves", "default")
	tr = s.leaveTraces(id)
	s.pause(id)
	s.untilStored(id)
	s.claim(claimKey(s)+"-stays", "default")
	s.eventually("the other place to be taken by a slot", func() error {
		live, err := s.Live()
		if err == nil && !slices.Contains(slices.Collect(maps.Values(live)), "slot") {
			err = fmt.Errorf("the node has %v", live)
		}
		return err
	})
	s.check()
	other.startNoded("")
	other.check()
	return id, tr
}

func (s *stack) tryResume(id string) error {
	_, err := s.c.ResumeSandbox(s.ctx(), id)
	return err
}

// wantMoved: R2 and R7, the sandbox is the other node's, as one instance, and what it was; the
// first node has nothing of it, nor has anybody of what has ended.
func (s *stack) wantMoved(other *stack, id string, tr traces) {
	s.Helper()
	s.wantTraces(id, tr)
	s.check()
	v := other.check()
	if rec := v.records[id]; rec.State != "claimed" || rec.Generation < 4 {
		s.Errorf("the other node has it as %+v", rec)
	}
	for _, node := range []*stack{s, other} {
		node.removeAll()
		node.check()
	}
}

// TestX47_TheNewNodeIsKilledAtEveryStep moves a sandbox from a full node to another, which is
// killed at every place of taking it in. It is resumed when it is asked for again, once.
func TestX47_TheNewNodeIsKilledAtEveryStep(t *testing.T) {
	needFaults(t)
	s, other := newTwoNodes(t)
	places := s.placesOfAMove(other)
	t.Logf("%d places: %s", len(places), strings.Join(places, " "))
	for _, place := range places {
		t.Run(place, func(t *testing.T) {
			s.TB, other.TB = t, t
			id, tr := s.asleepAndCrowdedOut(other)
			other.restartNoded(place + "=exit")
			other.check() // else a restart's own work would die
			answered := make(chan error, 1)
			go func() { // it may have to be asked for again before the server knows the node again
				err := s.tryResume(id)
				for !other.noded.ended() && isStatus(err, 429) {
					err = s.tryResume(id)
				}
				answered <- err
			}()
			other.noded.died(fmt.Sprintf("the move did not come by %s", place))
			s.Logf("answered with the new node dead: %v", <-answered)
			other.startNoded("")
			s.resume(id)
			s.wantMoved(other, id, tr)
		})
		s.TB, other.TB = t, t
	}
}

// placesOfAMove moves a sandbox once, with a trace of the places that the new node comes by.
func (s *stack) placesOfAMove(other *stack) []string {
	s.Helper()
	id, tr := s.asleepAndCrowdedOut(other)
	file := filepath.Join(other.Root, "trace-move")
	other.restartNoded("*=trace(" + file + ")")
	other.check()
	before, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		s.Fatal(err)
	}
	s.resume(id)
	after, err := os.ReadFile(file)
	s.must(err)
	s.wantMoved(other, id, tr)
	return slices.Compact(strings.Fields(strings.TrimPrefix(string(after), string(before))))
}

// TestX47_TheOldNodeComesBack: a node that was gone finds out that its sandbox went on.
func TestX47_TheOldNodeComesBack(t *testing.T) {
	needFaults(t)
	s, other := newTwoNodes(t)
	id, tr := s.asleepAndCrowdedOut(other)
	s.noded.kill()
	s.eventuallyDone("a resume, when the node counts as lost", func() error { return s.tryResume(id) })
	s.wantTraces(id, tr)
	if sb, err := s.c.GetSandbox(s.ctx(), id); err != nil || sb.Status != client.SandboxStateRunning {
		t.Errorf("%+v: %v", sb, err)
	}
	s.startNoded("")
	s.wantMoved(other, id, tr)
}
