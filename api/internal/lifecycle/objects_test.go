package lifecycle_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// withStore runs a Keeper over two nodes that share an object store. n1 has the sandbox,
// which is paused there and stored.
func withStore(t *testing.T, n1, n2 *fakenode.Node) (*fixture, store.Sandbox) {
	t.Helper()
	return withStoreAnd(t, lifecycle.Config{}, n1, n2)
}

func withStoreAnd(t *testing.T, c lifecycle.Config, n1, n2 *fakenode.Node) (*fixture, store.Sandbox) {
	t.Helper()
	return withStoreAt(t, s0test.Postgres(t), c, n1, n2)
}

func withStoreAt(t *testing.T, dsn string, c lifecycle.Config, n1, n2 *fakenode.Node) (*fixture, store.Sandbox) {
	t.Helper()
	n1.ObjectStore, n2.ObjectStore, n2.Name = true, true, "n2"
	c.Settled, c.Grace, c.LostAfter = time.Hour, time.Hour, time.Millisecond
	f := runAt(t, dsn, n1, c, n2)
	sb := f.claimed(nil)
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	if row := f.row(sb.ID); row.Stored != nil {
		t.Fatalf("it is stored before its node says so: %d", *row.Stored)
	}
	f.node.SetStored(string(sb.ID), true)
	f.eventually(sb.ID, "it is stored", func(row store.Sandbox) bool { return row.Stored != nil && *row.Stored == 1 })
	return f, f.row(sb.ID)
}

// resumeElsewhere resumes a sandbox whose node can't, and checks that it runs at n2 as a
// generation that n1 can't have begun.
func (f *fixture) resumeElsewhere(id sandbox.ID) store.Sandbox {
	f.t.Helper()
	var row store.Sandbox
	fakenode.Eventually(f.t, "it is resumed at n2", func() (done bool) {
		var err error
		row, err = f.keep.Resume(f.t.Context(), f.team, id) // its node may not count as lost yet
		if err != nil && !errdefs.Is(err, errdefs.Unavailable) {
			f.t.Fatal(err)
		}
		return err == nil
	})
	if row.Node != "n2" || row.Status != sandbox.Running || row.Generation < 4 || row.Stored != nil {
		f.t.Fatalf("resumed as %s %d at %s, stored %v", row.Status, row.Generation, row.Node, row.Stored)
	}
	return row
}

// X47: a node that is gone takes no paused sandbox with it that is in the object store,
// and when it comes back its instance is not the sandbox any more (R2).
func TestX47_APausedSandboxOutlivesItsNode(t *testing.T) {
	t.Parallel()
	n2 := &fakenode.Node{}
	f, sb := withStore(t, &fakenode.Node{}, n2)
	f.node.Stop()
	fakenode.Eventually(t, "the node is lost", func() bool { return !f.table.IsSynced("n1") })
	row := f.resumeElsewhere(sb.ID)
	if got := n2.Sandboxes()[string(sb.ID)]; got.GetState() != "running" || got.GetGeneration() != uint64(row.Generation) {
		t.Errorf("n2 has %v", got)
	}
	f.node.Listen(t)
	fakenode.Eventually(t, "n1's is ended", func() bool { return f.node.Deleted()[string(sb.ID)] != "" })
	if now := f.row(sb.ID); now.Status != sandbox.Running || now.Node != "n2" || now.Generation != row.Generation || n2.Deleted()[string(sb.ID)] != "" {
		t.Errorf("then it is %s at %s, generation %d", now.Status, now.Node, now.Generation)
	}
}

func TestAFullNodesSandboxIsResumedElsewhere(t *testing.T) {
	t.Parallel()
	n1 := &fakenode.Node{OnResume: func(*nodeapi.ResumeRequest) error {
		return connect.NewError(connect.CodeResourceExhausted, errors.New("full"))
	}}
	f, sb := withStore(t, n1, &fakenode.Node{})
	f.resumeElsewhere(sb.ID)
	fakenode.Eventually(t, "n1's is ended", func() bool { return n1.Deleted()[string(sb.ID)] != "" })
}

// X43: while no node can have the image, the sandbox stays what it is, and is resumed
// when one can.
func TestX43_AMovedSandboxStaysPausedWhileTheStoreIsDown(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	down.Store(true)
	refuse := func(*nodeapi.ResumeRequest) error {
		if down.Load() {
			return connect.NewError(connect.CodeUnavailable, errors.New("the object store is down"))
		}
		return nil
	}
	n2 := &fakenode.Node{OnResume: refuse}
	f, sb := withStore(t, &fakenode.Node{}, n2)
	f.node.Stop()
	fakenode.Eventually(t, "the node is lost", func() bool { return !f.table.IsSynced("n1") })
	fakenode.Eventually(t, "the move is tried", func() bool {
		_, err := f.keep.Resume(t.Context(), f.team, sb.ID)
		if !errdefs.Is(err, errdefs.Unavailable) {
			t.Fatalf("resume: %v", err)
		}
		return f.row(sb.ID).Node == "n2"
	})
	if row := f.row(sb.ID); row.Status != sandbox.Paused || row.Stored == nil || *row.Stored != 1 {
		t.Errorf("then it is %s, stored %v", row.Status, row.Stored)
	}
	f.node.Listen(t)
	fakenode.Eventually(t, "n1 is back", func() bool { return f.table.IsSynced("n1") })
	f.keep.Pass(t.Context())
	if why := f.node.Deleted()[string(sb.ID)]; why != "" {
		t.Errorf("R7: what n1 has was ended before n2 could read the store: %s", why)
	}
	down.Store(false)
	f.resumeElsewhere(sb.ID)
	fakenode.Eventually(t, "n1's is ended", func() bool { return f.node.Deleted()[string(sb.ID)] != "" })
}

// R2: what is being resumed is moved by nobody else, and asked of no node twice.
func TestR2_OneResumeAtATime(t *testing.T) {
	t.Parallel()
	n2 := &fakenode.Node{}
	f, sb := withStore(t, &fakenode.Node{}, n2)
	by := uuid.New() // another replica's attempt
	begun, ok, err := f.store.BeginResume(t.Context(), f.team, sb.ID, by, time.Hour)
	if err != nil || !ok || begun.Stored == nil {
		t.Fatal(begun.Stored, ok, err)
	}
	if _, err := f.keep.Resume(t.Context(), f.team, sb.ID); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a second resume: %v", err)
	}
	if _, ok, err := f.store.Move(t.Context(), begun, uuid.New(), "n2"); ok || err != nil {
		t.Errorf("moved by who did not begin: %v", err)
	}
	if _, err := f.store.RefreshSandbox(t.Context(), f.team, sb.ID, nil); err != nil { // which does not matter
		t.Fatal(err)
	}
	moved, ok, err := f.store.Move(t.Context(), begun, by, "n2")
	if err != nil || !ok || moved.Generation != begun.Generation+2 || moved.Stored == nil {
		t.Fatalf("%+v, %v, %v", moved, ok, err)
	}
	if _, ok, err := f.store.SetResumed(t.Context(), f.team, sb.ID, sb.ClaimID, begun.Generation+1); ok || err != nil {
		t.Errorf("the earlier node's instance counts: %v", err)
	}
	if err := f.store.GiveUpResume(t.Context(), moved); err != nil || f.row(sb.ID).Status != sandbox.Starting {
		t.Errorf("given up early: %v", err)
	}
	if ours, err := f.store.RenewResume(t.Context(), sb.ID, uuid.New(), 0); ours || err != nil {
		t.Errorf("renewed by who did not begin: %v", err)
	}
	if ours, err := f.store.RenewResume(t.Context(), sb.ID, by, 0); !ours || err != nil {
		t.Errorf("not renewed: %v", err)
	}
	if err := f.store.GiveUpResume(t.Context(), moved); err != nil || f.row(sb.ID).Status != sandbox.Paused {
		t.Errorf("not given up: %v", err)
	}
	if ours, err := f.store.RenewResume(t.Context(), sb.ID, by, time.Hour); ours || err != nil {
		t.Errorf("renewed after it was given up: %v", err)
	}
}

// R6: stored is what the object store has of the sandbox as it is.
func TestR6_StoredIsTrue(t *testing.T) {
	t.Parallel()
	f, sb := withStore(t, &fakenode.Node{}, &fakenode.Node{})
	stored := func(want bool) func(store.Sandbox) bool {
		return func(row store.Sandbox) bool { return (row.Stored != nil) == want }
	}
	f.node.SetStored(string(sb.ID), false)
	f.eventually(sb.ID, "not stored", stored(false))
	f.node.SetStored(string(sb.ID), true)
	f.eventually(sb.ID, "stored", stored(true))
	if _, err := f.keep.Resume(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	f.eventually(sb.ID, "running and not stored", func(row store.Sandbox) bool { return row.Status == sandbox.Running && row.Stored == nil })
	if ok, err := f.store.SetStored(t.Context(), "n1", sb.ID, sb.ClaimID.String(), 1, 1); ok || err != nil {
		t.Errorf("an older image is the sandbox's: %v", err)
	}
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	if row := f.row(sb.ID); row.Stored != nil || row.Generation != 2 {
		t.Errorf("paused as generation %d, stored %v", row.Generation, row.Stored)
	}
	f.node.SetStored(string(sb.ID), true)
	f.eventually(sb.ID, "stored again", stored(true))
	for change, want := range map[string]bool{
		`config = '{"ttl": 60, "hard_ttl": 120, "auto_resume": false, "services": []}', ttl_seconds = 60`: true, // the row's alone
		`config = '{"env_vars": {"A": "1"}}'`:           false,
		`config = '{"network": {"mode": "block-all"}}'`: false,
		`memory_bytes = memory_bytes + 1`:               false,
	} {
		tx, err := f.conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var known bool
		err = tx.QueryRow(t.Context(), "UPDATE sandboxes SET "+change+" WHERE id = $1 RETURNING stored_generation IS NOT NULL", sb.ID).Scan(&known)
		if err != nil || known != want {
			t.Errorf("after %s it is stored: %v, %v", change, known, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A sandbox in the object store does not fail because its node has lost it.
func TestX46_AStoredSandboxIsNotLostWithItsNodesDisk(t *testing.T) {
	t.Parallel()
	f, sb := withStore(t, &fakenode.Node{}, &fakenode.Node{})
	f.node.Gone(string(sb.ID))
	fakenode.Eventually(t, "it is not listed", func() bool { _, _, ok := f.table.Lookup(sb.ID); return !ok })
	row, err := f.keep.Resume(t.Context(), f.team, sb.ID)
	if err != nil || row.Status != sandbox.Running || row.Node != "n1" || row.Generation != 2 {
		t.Errorf("resumed as %s %d at %s: %v", row.Status, row.Generation, row.Node, err)
	}
}

// G09: images go when the row of their sandbox says that nobody wants them.
func TestG09_UnwantedImagesAreRemoved(t *testing.T) {
	t.Parallel()
	f, kept := withStore(t, &fakenode.Node{}, &fakenode.Node{})
	running, gone, forgotten := f.claimed(nil), f.claimed(nil), f.claimed(nil)
	for _, sb := range []store.Sandbox{running, gone, forgotten} {
		if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.keep.Resume(t.Context(), f.team, running.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.keep.Delete(t.Context(), f.team, gone.ID); err != nil {
		t.Fatal(err)
	}
	f.eventually(gone.ID, "deleted", deleted)
	if list, err := f.store.LeaseUnwantedImages(t.Context(), time.Hour, 10); err != nil || len(list) > 0 {
		t.Fatalf("at once: %d, %v", len(list), err)
	}
	if _, err := f.conn.Exec(t.Context(), "UPDATE sandboxes SET images_due = now() WHERE images_due IS NOT NULL"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.conn.Exec(t.Context(), "DELETE FROM sandboxes WHERE id = $1", forgotten.ID); err != nil {
		t.Fatal(err) // no row is no evidence
	}
	f.keep.RemoveUnwanted(t.Context())
	asked := map[string]uint64{}
	for _, n := range f.nodes {
		for _, req := range n.Removed() {
			asked[req.GetId()] = req.GetBelowGeneration()
		}
	}
	if below, ok := asked[string(running.ID)]; !ok || below != 2 {
		t.Errorf("of what runs: %d, %v", below, ok)
	}
	if below, ok := asked[string(gone.ID)]; !ok || below != 0 {
		t.Errorf("of what is deleted: %d, %v", below, ok)
	}
	if len(asked) != 2 {
		t.Errorf("asked for %v, with %s paused and %s without a row", asked, kept.ID, forgotten.ID)
	}
	var due int
	if err := f.conn.QueryRow(t.Context(), "SELECT count(*) FROM sandboxes WHERE images_due IS NOT NULL").Scan(&due); err != nil || due != 1 {
		t.Errorf("%d sandboxes may still have images: %v", due, err)
	}
}

// G09: what is stored of a snapshot goes when its row says so, and behind what its node has:
// that stores it no more by then.
func TestG09_ADeletedSnapshotIsNotStored(t *testing.T) {
	t.Parallel()
	var refused, known atomic.Bool
	n2 := &fakenode.Node{}
	n1 := &fakenode.Node{OnDeleteSnapshot: func(context.Context, string) error {
		known.Store(true)
		if !refused.Swap(true) {
			return connect.NewError(connect.CodeUnavailable, errors.New("it is being stored"))
		}
		return nil
	}}
	f, sb := withStore(t, n1, n2)
	snap, err := f.keep.Snapshot(t.Context(), lifecycle.SnapshotRequest{TeamID: f.team, UserID: uuid.New(), SandboxID: sb.ID})
	if err != nil {
		t.Fatal(err)
	}
	asked := func() (n int) {
		for _, node := range f.nodes {
			for _, req := range node.Removed() {
				if req.GetSnapshot() == snap.ID.String() && req.GetId() == "" {
					n++
				}
			}
		}
		return n
	}
	if err := f.keep.DeleteSnapshot(t.Context(), f.team, snap.ID); err != nil {
		t.Fatal(err)
	}
	if !known.Load() || asked() != 0 {
		t.Errorf("its node was asked: %v; the store %d times, before it is gone there", known.Load(), asked())
	}
	rows := func() (n int) {
		if err := f.conn.QueryRow(t.Context(), "SELECT count(*) FROM rootfs_snapshots").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := rows(); n != 1 {
		t.Errorf("%d rows know of what is not gone", n)
	}
	fakenode.Eventually(t, "nothing is left of it", func() bool {
		if _, err := f.conn.Exec(t.Context(), "UPDATE rootfs_snapshots SET lease_until = now()"); err != nil { // nobody waits for the lease
			t.Fatal(err)
		}
		return rows() == 0
	})
	if asked() == 0 {
		t.Error("the store has it still")
	}
}
