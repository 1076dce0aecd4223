package lifecycle_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/snapshots"
)

const snap = "00000000-0000-4000-8000-000000000001"

func (n *noded) snapshotPath(name string) string { return filepath.Join(n.dir, "snapshots", name) }

// snapshots lists what lies where snapshots are.
func (n *noded) snapshots() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.dir, "snapshots"))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (n *noded) keep(id sandbox.ID, name string) {
	n.t.Helper()
	if _, err := n.Snapshot(n.ctx(), id, 0, name); err != nil {
		n.t.Fatal(err)
	}
}

func fromSnapshot(name, claimID string) lifecycle.ClaimRequest {
	req := claimOf("", claimID)
	req.Spec, req.Snapshot = spec, name
	req.Spec.Image = "the template's image by now"
	return req
}

func TestSnapshotOfRunningAndPaused(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	n.keep(id, snap) // again
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running || sb.Generation != 1 {
		t.Errorf("its source is %s, generation %d: %v", sb.State(), sb.Generation, err)
	}
	if _, err := n.Proc(id, 1); err != nil {
		t.Errorf("its source can't be used: %v", err)
	}
	n.pause(id)
	second := strings.Replace(snap, "1", "2", 1)
	n.keep(id, second)
	same(t, filepath.Join(n.image(id), "1", "files", "noop"), filepath.Join(n.snapshotPath(second), "files", "noop"))
	if all := n.snapshots(); !slices.Equal(all, []string{snap, second}) {
		t.Errorf("snapshots %q", all)
	}
	if _, err := os.Stat(filepath.Join(n.snapshotPath(second), "memory")); err == nil {
		t.Error("a snapshot has memory")
	}
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
	if images := n.Images(); len(images) != 1 || images[0] != "noop" {
		t.Errorf("its snapshots need the images %q", images)
	}
	for _, name := range []string{snap, second, second} { // the last is gone already
		if err := n.DeleteSnapshot(n.ctx(), name); err != nil {
			t.Error(err)
		}
	}
	if all := n.snapshots(); len(all) != 0 {
		t.Errorf("left are %q", all)
	}
}

func same(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	if y, err := os.Stat(b); err != nil || !os.SameFile(x, y) {
		t.Errorf("%s is not %s: %v", b, a, err)
	}
}

func TestWhatHasNoSnapshot(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	ids := n.warm(2)
	n.claim(ids[0])
	for name, c := range map[string]struct {
		id   sandbox.ID
		gen  sandbox.Generation
		name string
		want errdefs.Kind
	}{
		"a slot":               {ids[1], 0, snap, errdefs.NotFound},
		"nothing":              {"local-nosuch", 0, snap, errdefs.NotFound},
		"another generation":   {ids[0], 2, snap, errdefs.Conflict},
		"B05 a path":           {ids[0], 0, "../paused/x", errdefs.Conflict},
		"B05 a path as long":   {ids[0], 0, "../../../../../../../../etc/passwd.12", errdefs.Conflict},
		"B05 a hidden name":    {ids[0], 0, snap + ".draft", errdefs.Conflict},
		"B05 no name whatever": {ids[0], 0, "", errdefs.Conflict},
	} {
		if _, err := n.Snapshot(n.ctx(), c.id, c.gen, c.name); !errdefs.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n.keep(ids[0], snap)
	other := n.warm(1)[0]
	n.claim(other)
	if _, err := n.Snapshot(n.ctx(), other, 0, snap); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("another sandbox's name: %v", err)
	}
	if err := n.DeleteSnapshot(n.ctx(), "../x"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("%v", err)
	}
}

// X21: a snapshot is there whole or not at all, and its source goes on.
func TestX21_SnapshotUndo(t *testing.T) {
	defer failpoint.Arm("")
	for _, place := range []string{"snapshot.begin", "snapshot.after-files", "snapshot.after-measure"} {
		t.Run(place, func(t *testing.T) {
			n := newMachine(t).boot()
			id := n.warm(1)[0]
			n.claim(id)
			if err := failpoint.Arm(place + "=1*error(on purpose)"); err != nil {
				t.Fatal(err)
			}
			_, err := n.Snapshot(n.ctx(), id, 0, snap)
			kind(t, err, errdefs.Unavailable)
			if all := n.snapshots(); len(all) != 0 {
				t.Errorf("left are %q", all)
			}
			n.keep(id, snap)
			if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running {
				t.Errorf("its source is %s: %v", sb.State(), err)
			}
		})
	}
}

// X43: what can't be written leaves nothing.
func TestX43_ASnapshotThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var full atomic.Bool
	m.node.Fault = func(e string, _ sandbox.ID) error {
		if e == "runtime.SaveFiles" && full.Load() {
			return errors.New("no space left on device")
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	full.Store(true)
	_, err := n.Snapshot(n.ctx(), id, 0, snap)
	kind(t, err, errdefs.Unavailable)
	if all := n.snapshots(); len(all) != 0 {
		t.Errorf("left are %q", all)
	}
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running {
		t.Errorf("its source is %s: %v", sb.State(), err)
	}
}

// R4: what a noded that died was making or removing is swept; snapshots stay.
func TestR4_HalfSnapshotsAreSwept(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	n.stop()
	for _, half := range []string{"2.draft", "3.gone", "4.draft.part"} {
		if err := os.MkdirAll(filepath.Join(n.snapshotPath(snap[:35]+half), "files"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n = m.boot()
	eventually(t, "swept", func() bool { return slices.Equal(n.snapshots(), []string{snap}) })
	if _, _, err := n.Claim(n.ctx(), fromSnapshot(snap, "again")); err != nil {
		t.Error(err)
	}
}

func TestClaimFromSnapshot(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	sb, cold, err := n.Claim(n.ctx(), fromSnapshot(snap, "c1"))
	if err != nil || !cold || sb.State() != sandbox.Running || sb.ID == id {
		t.Fatalf("%s, cold %v: %v", sb.State(), cold, err)
	}
	if sb.Spec.Image != "noop" {
		t.Errorf("it was started from %q, its files are changes of another image", sb.Spec.Image)
	}
	if begun := (noop.Runtime{Node: n.node}).Begun(sb.ID); !strings.HasSuffix(begun, "/1") {
		t.Errorf("it has begun with %q", begun)
	}
	if n.hasImage(sb.ID) {
		t.Error("what it has begun with is kept")
	}
	again, _, err := n.Claim(n.ctx(), fromSnapshot(snap, "c1"))
	if err != nil || again.ID != sb.ID {
		t.Errorf("the same claim again: %s, %v", again.ID, err)
	}
	if err := n.DeleteSnapshot(n.ctx(), snap); err != nil {
		t.Fatal(err)
	}
	n.pause(sb.ID) // what began with it needs it no more
	n.resume(sb.ID, 2)
	_, _, err = n.Claim(n.ctx(), fromSnapshot(snap, "c2"))
	kind(t, err, errdefs.NotFound)
}

// X08: a start with a snapshot's files that fails leaves nothing, and the snapshot.
func TestX08_ClaimFromSnapshotUndo(t *testing.T) {
	defer failpoint.Arm("")
	for _, place := range []string{"create.after-files", "create.after-start", "create.after-drop"} {
		t.Run(place, func(t *testing.T) {
			n := newMachine(t).boot()
			id := n.warm(1)[0]
			n.claim(id)
			n.keep(id, snap)
			if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
				t.Fatal(err)
			}
			n.nothingLeft()
			if err := failpoint.Arm(place + "=1*error(on purpose)"); err != nil {
				t.Fatal(err)
			}
			_, _, err := n.Claim(n.ctx(), fromSnapshot(snap, "c1"))
			kind(t, err, errdefs.Unavailable)
			n.nothingLeft()
			eventually(t, "its image is gone", func() bool {
				left, err := os.ReadDir(filepath.Join(n.dir, "images"))
				return err == nil && len(left) == 0
			})
			if _, _, err := n.Claim(n.ctx(), fromSnapshot(snap, "c1")); err != nil {
				t.Error(err)
			}
		})
	}
}

// G11: a snapshot of another team is none.
func TestG11_ASnapshotIsItsTeams(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	ids := n.warm(2)
	n.claim(ids[0])
	n.keep(ids[0], snap)
	req := fromSnapshot(snap, "c1")
	req.Team = "mallory"
	_, _, err := n.Claim(n.ctx(), req)
	kind(t, err, errdefs.NotFound)
	theirs := claimOf(ids[1], "c2")
	theirs.Team = "mallory"
	if _, _, err := n.Claim(n.ctx(), theirs); err != nil {
		t.Fatal(err)
	}
	n.pause(ids[1])
	_, err = n.RestoreSnapshot(n.ctx(), ids[1], 0, snap)
	kind(t, err, errdefs.NotFound)
}

func TestRestoreInPlace(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	_, err := n.RestoreSnapshot(n.ctx(), id, 0, snap)
	kind(t, err, errdefs.Conflict)
	n.pause(id)
	_, err = n.RestoreSnapshot(n.ctx(), id, 7, snap)
	kind(t, err, errdefs.Conflict)
	_, err = n.RestoreSnapshot(n.ctx(), id, 1, strings.Replace(snap, "1", "2", 1))
	kind(t, err, errdefs.NotFound)
	sb, err := n.RestoreSnapshot(n.ctx(), id, 1, snap)
	if err != nil || sb.State() != sandbox.Paused || sb.Generation != 2 {
		t.Fatalf("%s, generation %d: %v", sb.State(), sb.Generation, err)
	}
	same(t, filepath.Join(n.image(id), "2", "files", "noop"), filepath.Join(n.snapshotPath(snap), "files", "noop"))
	for _, gone := range []string{"1", "2/memory"} {
		if _, err := os.Stat(filepath.Join(n.image(id), gone)); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	n.resume(id, 3)
	if begun := (noop.Runtime{Node: n.node}).Begun(id); !strings.HasSuffix(begun, "/2") {
		t.Errorf("it has begun with %q", begun)
	}
}

// X21: a restore that was cut off leaves the sandbox what it was or what the snapshot is,
// and in both cases one that can be resumed.
func TestX21_RestoreInPlaceUndo(t *testing.T) {
	defer failpoint.Arm("")
	for place, want := range map[string]sandbox.Generation{
		"restore.begin": 1, "restore.after-files": 1, "journal.commit": 1, "restore.after-commit": 2, "restore.after-drop": 2,
	} {
		t.Run(place, func(t *testing.T) {
			m := newMachine(t)
			n := m.boot()
			id := n.warm(1)[0]
			n.claim(id)
			n.keep(id, snap)
			n.pause(id)
			n.released()
			eventually(t, "the teardown has written its last record", func() bool { return n.Holding() == 0 })
			if err := failpoint.Arm(place + "=1*error(on purpose)"); err != nil {
				t.Fatal(err)
			}
			if _, err := n.RestoreSnapshot(n.ctx(), id, 0, snap); err == nil {
				t.Error("it has succeeded")
			}
			n.stop()
			n = m.boot()
			if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Paused || sb.Generation != want {
				t.Fatalf("%s, generation %d: %v", sb.State(), sb.Generation, err)
			}
			if _, err := n.RestoreSnapshot(n.ctx(), id, 0, snap); err != nil {
				t.Errorf("again: %v", err)
			}
			n.resume(id, want+2)
			if n.hasImage(id) {
				t.Error("an image is left")
			}
		})
	}
}

// A pause of files alone is one, and procd is told which contexts there were.
func TestPauseOfFilesAlone(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	rt := noop.Runtime{Node: n.node}
	rt.Keep(id, []procapi.KeptContext{{ID: "ctx-1", Request: procapi.CreateContext{Type: "repl"}}})
	sb, err := n.PauseFiles(n.ctx(), id, 0)
	if err != nil || sb.State() != sandbox.Paused {
		t.Fatalf("%s, %v", sb.State(), err)
	}
	if _, err := os.Stat(filepath.Join(n.image(id), "1", "memory")); err == nil {
		t.Error("there is memory")
	}
	n.keep(id, snap)
	n.stop()
	n = m.boot()
	n.resume(id, 2)
	if kept := rt.Identity(id).Kept; len(kept) != 1 || kept[0].ID != "ctx-1" {
		t.Errorf("procd was told to keep %+v", kept)
	}
	rt.Keep(id, []procapi.KeptContext{{ID: "ctx-2"}})
	n.pause(id) // with memory: its procd knows by itself
	n.resume(id, 3)
	if kept := rt.Identity(id).Kept; len(kept) != 0 {
		t.Errorf("procd was told to keep %+v", kept)
	}
	rt.Keep(id, []procapi.KeptContext{{ID: "ctx-3"}})
	n.pause(id)
	if _, err := n.RestoreSnapshot(n.ctx(), id, 0, snap); err != nil { // which drops the memory
		t.Fatal(err)
	}
	n.resume(id, 5)
	if kept := rt.Identity(id).Kept; len(kept) != 1 || kept[0].ID != "ctx-3" {
		t.Errorf("procd was told to keep %+v", kept)
	}
	sb, _, err = n.Claim(n.ctx(), fromSnapshot(snap, "c1"))
	if err != nil {
		t.Fatal(err)
	}
	if kept := rt.Identity(sb.ID).Kept; len(kept) != 0 {
		t.Errorf("another sandbox was given %+v", kept)
	}
}

// A snapshot's manifest is what a snapshot is without its sandbox.
func TestSnapshotIsDescribed(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	m, err := snapshots.Read(n.snapshotPath(snap))
	if err != nil || m.Sandbox != id || m.Team != "team" || m.Memory || m.Image != "noop" || m.Generation != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

// G11: a noded that dies after a start with a team's files, before its claim is durable,
// leaves no slot that another team may get.
func TestG11_ACutClaimFromSnapshotIsNoSlot(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	path := filepath.Join(m.dir, "journal.db")
	var dying atomic.Bool
	var journal []byte // as it is when noded dies
	var started sandbox.ID
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if !dying.Load() || effect != "groups.Set" && effect != "runtime.Remove" {
			return nil
		}
		if effect == "groups.Set" { // the first that binds the claim, before the journal
			var err error
			if journal, err = os.ReadFile(path); err != nil {
				t.Error(err)
			}
			started = id
		}
		return errors.New("noded dies")
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.keep(id, snap)
	dying.Store(true)
	_, _, err := n.Claim(n.ctx(), fromSnapshot(snap, "c1"))
	kind(t, err, errdefs.Unavailable)
	n.stop()
	if err := os.WriteFile(path, journal, 0o600); err != nil {
		t.Fatal(err)
	}
	dying.Store(false)
	if left := m.node.Left(); !slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, string(started)) }) {
		t.Fatalf("%s does not live: %v", started, left)
	}
	n = m.boot()
	eventually(t, "what was begun is gone", func() bool { return n.Holding() == 1 && len(m.node.Left()) == 3 })
	if free := n.free(); len(free) != 0 {
		t.Errorf("free for any team: %v", free)
	}
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running {
		t.Errorf("its source is %s: %v", sb.State(), err)
	}
}
