package lifecycle_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// X47, R2: after a move that failed, the sandbox can be changed and stored where it is, and
// its next instance is later than all that there may have been.
func TestX47_AFailedMoveLeavesAWholeSandbox(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	broken.Store(true)
	n1 := &fakenode.Node{OnResume: func(*nodeapi.ResumeRequest) error {
		return connect.NewError(connect.CodeResourceExhausted, errors.New("full"))
	}}
	n2 := &fakenode.Node{AfterResume: func(n *fakenode.Node, id string, gen uint64) error {
		if !broken.Load() {
			return nil
		}
		n.Switch(id, "paused", gen-1) // as noded does: it knows the row's generation by now
		n.StoreAs(id, 1)
		return connect.NewError(connect.CodeUnavailable, errors.New("it could not be started"))
	}}
	f, sb := withStore(t, n1, n2)
	if _, err := f.keep.Resume(t.Context(), f.team, sb.ID); !errdefs.Is(err, errdefs.Exhausted) {
		t.Fatalf("the first node's reason is lost: %v", err)
	}
	row := f.row(sb.ID)
	if row.Node != "n2" || row.Generation != 3 || row.Status != sandbox.Paused || row.Stored == nil || *row.Stored != 1 {
		t.Fatalf("%s %d at %s, stored %v", row.Status, row.Generation, row.Node, row.Stored)
	}
	fakenode.Eventually(t, "n2's is listed", func() bool { at, _, ok := f.table.Lookup(sb.ID); return ok && at.Node == "n2" })
	f.keep.Pass(t.Context())
	if why := n1.Deleted()[string(sb.ID)]; why != "" {
		t.Errorf("R7: what n1 has was ended before another node runs it: %s", why)
	}
	change := func(store.Sandbox) (openapi.SandboxUpdateConfig, error) {
		return openapi.SandboxUpdateConfig{EnvVars: map[string]string{"A": "1"}}, nil
	}
	if _, err := f.keep.Change(t.Context(), f.team, sb.ID, change); err != nil {
		t.Fatalf("a change: %v", err)
	}
	n2.SetStored(string(sb.ID), false)
	f.eventually(sb.ID, "it is not stored with the change", func(row store.Sandbox) bool { return row.Stored == nil })
	n2.StoreAs(string(sb.ID), 1)
	f.eventually(sb.ID, "it is stored again", func(row store.Sandbox) bool { return row.Stored != nil && *row.Stored == 1 })
	n2.SetStored(string(sb.ID), false)
	f.eventually(sb.ID, "it is not stored", func(row store.Sandbox) bool { return row.Stored == nil })
	broken.Store(false)
	if got, err := f.keep.Resume(t.Context(), f.team, sb.ID); err != nil || !is(sandbox.Running, 4)(got) || got.Node != "n2" {
		t.Errorf("%+v: %v", got, err)
	}
}

// R2: a node that was not asked since the row was moved to it resumes a later generation
// than the row's, also without the store.
func TestR2_AResumeIsLaterThanItsRow(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := f.conn.Exec(t.Context(), "UPDATE sandboxes SET generation = 7 WHERE id = $1", sb.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := f.keep.Resume(t.Context(), f.team, sb.ID); err != nil || !is(sandbox.Running, 8)(got) {
		t.Errorf("%+v: %v", got, err)
	}
}

// X47: whoever could not resume a sandbox says why, not that nobody else was there to ask.
func TestX47_ARefusedMoveSaysWhy(t *testing.T) {
	t.Parallel()
	differs := connect.NewError(connect.CodeFailedPrecondition, errors.New("another version of the runtime"))
	differs.Meta().Set(nodeapi.CodeHeader, nodeapi.CodeMemoryDiffers)
	refuse := func(err error) func(*nodeapi.ResumeRequest) error {
		return func(*nodeapi.ResumeRequest) error { return err }
	}
	n1 := &fakenode.Node{OnResume: refuse(differs)}
	n2 := &fakenode.Node{OnResume: refuse(connect.NewError(connect.CodeUnavailable, errors.New("the store is down")))}
	f, sb := withStore(t, n1, n2)
	_, err := f.keep.Resume(t.Context(), f.team, sb.ID)
	if got := errdefs.From(err); got.Code != nodeapi.CodeMemoryDiffers || got.Message != "another version of the runtime" {
		t.Errorf("%v", err)
	}
}

// X39: a server that dies while it resumes a sandbox keeps nobody else from it for long.
func TestX39_AResumeOfAServerThatDied(t *testing.T) {
	t.Parallel()
	f, sb := withStore(t, &fakenode.Node{}, &fakenode.Node{})
	by := uuid.New()
	if _, ok, err := f.store.BeginResume(t.Context(), f.team, sb.ID, by, time.Hour); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := f.keep.Resume(t.Context(), f.team, sb.ID); !errdefs.Is(err, errdefs.Unavailable) {
		t.Fatalf("beside another: %v", err)
	}
	if ours, err := f.store.RenewResume(t.Context(), sb.ID, by, 0); !ours || err != nil {
		t.Fatal(ours, err)
	}
	f.eventually(sb.ID, "it can be resumed", func(store.Sandbox) bool {
		got, err := f.keep.Resume(t.Context(), f.team, sb.ID)
		return err == nil && is(sandbox.Running, 2)(got)
	})
	if err := f.store.EndResume(t.Context(), sb, by); err != nil || f.row(sb.ID).Status != sandbox.Running {
		t.Errorf("the first attempt's end counts: %v", err)
	}
}

// X26: an attempt whose lease somebody else has by now stops, and undoes nothing of his.
func TestX26_AResumeThatLostItsLeaseStops(t *testing.T) {
	t.Parallel()
	asked, released := make(chan struct{}, 1), make(chan struct{})
	n1 := &fakenode.Node{WhileResuming: func(stop <-chan struct{}) {
		asked <- struct{}{}
		select {
		case <-stop:
		case <-released:
		}
	}}
	// Long enough for a slow machine to begin; the loss is seen at the next renewal.
	f, sb := withStoreAnd(t, lifecycle.Config{Lease: 6 * time.Second}, n1, &fakenode.Node{})
	failed := make(chan error, 1)
	go func() {
		_, err := f.keep.Resume(t.Context(), f.team, sb.ID)
		failed <- err
	}()
	select {
	case <-asked:
	case err := <-failed:
		t.Fatalf("no node was asked: %v", err)
	}
	other := uuid.New()
	if _, err := f.conn.Exec(t.Context(), "UPDATE sandboxes SET resume_by = $2, resume_until = now() + interval '1 hour' WHERE id = $1", sb.ID, other); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("%v", err)
	}
	close(released)
	if ours, err := f.store.RenewResume(t.Context(), sb.ID, other, time.Hour); !ours || err != nil {
		t.Errorf("the other attempt's was undone: %v", err)
	}
}

// X35, X47: an attempt whose database says nothing stops while its lease holds, not when the
// database gives up an answer: from then on the sandbox is another attempt's, and there is
// one of it.
func TestX35_AResumeWhoseDatabaseIsSilentStops(t *testing.T) {
	t.Parallel()
	cluster := s0test.NewPostgresCluster(t)
	asked, stopped := make(chan struct{}, 1), make(chan time.Time, 1)
	var hold atomic.Bool
	n1 := &fakenode.Node{WhileResuming: func(stop <-chan struct{}) {
		if !hold.Swap(false) {
			return
		}
		asked <- struct{}{}
		<-stop
		stopped <- time.Now()
	}}
	f, sb := withStoreAt(t, cluster.Database(t), lifecycle.Config{Lease: 4 * time.Second}, n1, &fakenode.Node{})
	hold.Store(true)
	failed := make(chan error, 1)
	go func() {
		_, err := f.keep.Resume(t.Context(), f.team, sb.ID)
		failed <- err
	}()
	select {
	case <-asked:
	case err := <-failed:
		t.Fatalf("no node was asked: %v", err)
	}
	thaw := cluster.Freeze(t)
	_, err := f.store.RenewResume(t.Context(), sb.ID, uuid.New(), 0) // as long as a call waits
	gaveUp := time.Now()
	if err == nil {
		t.Error("the database answers")
	}
	select {
	case at := <-stopped:
		if at.After(gaveUp) {
			t.Errorf("it stopped %v after a call has given up its answer", at.Sub(gaveUp))
		}
	default:
		t.Error("it goes on")
	}
	thaw()
	if err := <-failed; !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("%v", err)
	}
	row := store.Sandbox{}
	fakenode.Eventually(t, "it is resumed by another", func() bool {
		row, err = f.keep.Resume(t.Context(), f.team, sb.ID)
		return err == nil
	})
	running := 0
	for _, n := range f.nodes {
		if at := n.Sandboxes()[string(sb.ID)]; at.GetState() == "running" {
			if running++; at.GetGeneration() != uint64(row.Generation) {
				t.Errorf("%s runs generation %d, the row says %d", n.Name, at.GetGeneration(), row.Generation)
			}
		}
	}
	if running != 1 {
		t.Errorf("R2: %d nodes run it", running)
	}
}

// X40: what a server of before this version has begun has no lease.
func TestX40_AResumeWithoutALease(t *testing.T) {
	t.Parallel()
	f, sb := withStore(t, &fakenode.Node{}, &fakenode.Node{})
	by := uuid.New()
	if _, ok, err := f.store.BeginResume(t.Context(), f.team, sb.ID, by, 0); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := f.store.EndResume(t.Context(), sb, by); err != nil {
		t.Fatal(err)
	}
	begun, err := f.conn.Exec(t.Context(), "UPDATE sandboxes SET status = 'starting', updated_at = now() WHERE id = $1 AND status = 'paused'", sb.ID)
	if err != nil || begun.RowsAffected() != 1 {
		t.Fatal(begun, err)
	}
	if _, err := f.keep.Resume(t.Context(), f.team, sb.ID); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("beside it: %v", err)
	}
	if _, err := f.conn.Exec(t.Context(), "UPDATE sandboxes SET updated_at = now() - interval '6 minutes' WHERE id = $1", sb.ID); err != nil {
		t.Fatal(err)
	}
	f.eventually(sb.ID, "it can be resumed", func(store.Sandbox) bool {
		_, err := f.keep.Resume(t.Context(), f.team, sb.ID)
		return err == nil
	})
}

// G02: what a refresh was told while the sandbox slept or woke up holds.
func TestG02_RefreshDuringAResume(t *testing.T) {
	t.Parallel()
	var f *fixture
	var sb store.Sandbox
	told := make(chan *time.Time, 10)
	refresh := func() {
		long := int32(7200)
		row, err := f.store.RefreshSandbox(t.Context(), f.team, sb.ID, &long)
		if err != nil {
			t.Error(err)
		}
		told <- row.ExpiresAt
	}
	var waking atomic.Bool
	f = runWith(t, &fakenode.Node{}, lifecycle.Config{Settled: time.Hour}) // no pass takes an old list for news
	f.node.OnResume = func(*nodeapi.ResumeRequest) error {
		if waking.Load() {
			refresh()
		}
		return nil
	}
	sb = f.claimed(func(n *store.NewSandbox) { n.TTLSeconds = 60 })
	for _, when := range []string{"paused", "waking up"} {
		if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
			t.Fatal(err)
		}
		if waking.Store(when == "waking up"); when == "paused" {
			refresh()
		}
		row, err := f.keep.Resume(t.Context(), f.team, sb.ID)
		if want := <-told; err != nil || row.ExpiresAt == nil || want == nil || row.ExpiresAt.Before(*want) {
			t.Errorf("refreshed while %s to %v, it ends at %v: %v", when, want, row.ExpiresAt, err)
		}
	}
}

// X24: a restore whose answer was lost is told of as what can be tried again, and can.
func TestX24_ARestoreWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	var lose atomic.Bool
	node := &fakenode.Node{AfterRestore: func(string) error {
		if lose.Swap(false) {
			return connect.NewError(connect.CodeUnavailable, errors.New("the node died"))
		}
		return nil
	}}
	f := runWith(t, node, lifecycle.Config{Settled: time.Hour})
	sb := f.claimed(nil)
	snap, err := f.keep.Snapshot(t.Context(), lifecycle.SnapshotRequest{TeamID: f.team, UserID: uuid.New(), SandboxID: sb.ID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	lose.Store(true)
	for try := range 2 { // the second is of a stale generation
		if _, err := f.keep.RestoreSnapshot(t.Context(), f.team, sb.ID, snap.ID); !errdefs.Is(err, errdefs.Unavailable) || errdefs.From(err).RetryAfter == 0 {
			t.Fatalf("try %d: %v", try, err)
		}
	}
	if got, err := f.keep.RestoreSnapshot(t.Context(), f.team, sb.ID, snap.ID); err != nil || !is(sandbox.Paused, 3)(got) {
		t.Errorf("%+v: %v", got, err)
	}
}

// What is paused on a node whose Kubernetes node is cordoned goes on elsewhere.
func TestACordonedNodeResumesNothing(t *testing.T) {
	t.Parallel()
	f, sb := withStore(t, &fakenode.Node{}, &fakenode.Node{})
	if _, err := f.node.Cordon(t.Context(), &nodeapi.CordonRequest{Cordoned: true}); err != nil {
		t.Fatal(err)
	}
	fakenode.Eventually(t, "the cordon", func() bool { return f.table.Closed("n1") })
	f.resumeElsewhere(sb.ID)
}

// What a node has paused of itself, its row says paused: a pod's eviction asks no API server.
func TestWhatItsNodePausedIsPaused(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	if _, err := f.node.Pause(t.Context(), &nodeapi.PauseRequest{Id: string(sb.ID), Generation: uint64(sb.Generation)}); err != nil {
		t.Fatal(err)
	}
	fakenode.Eventually(t, "the row", func() bool {
		f.keep.Pass(t.Context())
		return f.row(sb.ID).Status == sandbox.Paused
	})
}

// What is paused there alone waits, and whoever asks is told why.
func TestACordonedNodeKeepsWhatItAloneHas(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	for _, cordoned := range []bool{true, false} {
		if _, err := f.node.Cordon(t.Context(), &nodeapi.CordonRequest{Cordoned: cordoned}); err != nil {
			t.Fatal(err)
		}
		fakenode.Eventually(t, "the cordon", func() bool { return f.table.Closed("n1") == cordoned })
		_, err := f.keep.Resume(t.Context(), f.team, sb.ID)
		if cordoned != errdefs.Is(err, errdefs.Unavailable) || cordoned != (f.row(sb.ID).Status == sandbox.Paused) {
			t.Errorf("cordoned: %v; %v, and it is %s", cordoned, err, f.row(sb.ID).Status)
		}
	}
}
