package lifecycle_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/archive"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
)

// keptAndStored is a node with a snapshot that is on the shelf, too, of a sandbox that runs.
func keptAndStored(t *testing.T, s *shelf) (n *noded, id sandbox.ID) {
	t.Helper()
	n = newMachine(t).boot(with(s))
	id = n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	if refs := s.put(n); len(refs) != 1 || refs[0] != (archive.Ref{Team: "team", Snapshot: snap}) {
		t.Fatalf("stored %v", refs)
	}
	return n, id
}

func claimStored(team, claim string) lifecycle.ClaimRequest {
	return lifecycle.ClaimRequest{ClaimID: claim, PoolKey: "pool", Spec: spec, Snapshot: snap, Team: team}
}

// X47: a sandbox begins with, and goes back to, a snapshot that another node has made, as
// long as the object store has it.
func TestX47_ASnapshotOfAnotherNode(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	keptAndStored(t, s)
	other := newMachine(t).boot(with(s))
	sb, cold, err := other.Claim(other.ctx(), claimStored("team", "a"))
	if err != nil || !cold || sb.State() != sandbox.Running {
		t.Fatalf("claimed %+v: %v", sb, err)
	}
	if begun := (noop.Runtime{Node: other.node}).Begun(sb.ID); begun != filepath.Join(other.image(sb.ID), "1") {
		t.Errorf("it began with %q", begun)
	}
	if all := other.snapshots(); len(all) > 0 {
		t.Errorf("the other node keeps %q, whose end nobody would tell it of", all)
	}
	other.pause(sb.ID)
	other.released()
	restored, err := other.RestoreSnapshot(other.ctx(), sb.ID, 0, snap)
	if err != nil || restored.Generation != 2 {
		t.Fatalf("restored %+v: %v", restored, err)
	}
	other.resume(sb.ID, 3)
	if begun := (noop.Runtime{Node: other.node}).Begun(sb.ID); begun != filepath.Join(other.image(sb.ID), "2") {
		t.Errorf("it went on with %q", begun)
	}

	for name, c := range map[string]struct {
		err  error
		want errdefs.Kind
	}{
		"X43: the store is down": {errors.New("down"), errdefs.Unavailable}, "X43: it is damaged": {archive.ErrDamaged, errdefs.Conflict},
	} {
		s.fail(c.err)
		if _, _, err := other.Claim(other.ctx(), claimStored("team", name)); !errdefs.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.fail(nil)
	if _, _, err := other.Claim(other.ctx(), claimStored("another", "b")); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("G11: another team's: %v", err)
	}
	if err := other.Delete(other.ctx(), sb.ID, 0, "test"); err != nil {
		t.Fatal(err)
	}
	other.nothingLeft()
}

// A snapshot of another node may take longer to come than a sandbox to start.
func TestX47_ASnapshotHasTimeToCome(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	keptAndStored(t, s)
	other := newMachine(t).boot(with(s))
	if _, _, err := other.Claim(t.Context(), claimStored("team", "a")); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if left := time.Until(s.until); left < 10*time.Minute {
		t.Errorf("it has %v", left)
	}
}

// What is stored is stored once, also over a restart.
func TestASnapshotIsStoredOnce(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	n, _ := keptAndStored(t, s)
	if again := s.put(n); len(again) != 0 {
		t.Errorf("again: %v", again)
	}
	n.stop()
	n = n.boot(with(s))
	if again := s.put(n); len(again) != 0 {
		t.Errorf("after a restart: %v", again)
	}
}

// G09: while a snapshot is being stored nobody is told that it is gone, for then what is
// stored of it would be nobody's; and whoever stores it is told to stop.
func TestG09_ASnapshotEndsBehindItsUpload(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot(with(newShelf(t)))
	id := n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	<-n.ImagesChanged()
	img := n.Unstored()[0]
	release, ok := n.Hold(img)
	if _, twice := n.Hold(img); !ok || twice {
		t.Fatalf("held %v, twice %v", ok, twice)
	}
	deleted := make(chan error, 1)
	go func() { deleted <- n.DeleteSnapshot(n.ctx(), snap) }()
	<-n.ImagesChanged()
	if list := n.Unstored(); len(list) != 0 {
		t.Errorf("it is still to be stored: %v", list)
	}
	if ok, err := n.SetStored(n.ctx(), img); ok || err != nil {
		t.Errorf("stored: %v, %v", ok, err)
	}
	if _, err := os.Stat(img.Dir); err != nil {
		t.Errorf("whoever reads it: %v", err)
	}
	release()
	if err := <-deleted; err != nil && !errdefs.Is(err, errdefs.Unavailable) { // it waits for a while, not for ever
		t.Error(err)
	}
	if err := n.DeleteSnapshot(n.ctx(), snap); err != nil {
		t.Error(err)
	}
	if _, ok := n.Hold(img); ok {
		t.Error("what is gone is held")
	}
	if all := n.snapshots(); len(all) > 0 {
		t.Errorf("left %q", all)
	}
}
