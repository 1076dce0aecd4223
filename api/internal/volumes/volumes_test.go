package volumes_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

type fixture struct {
	t      *testing.T
	keep   *volumes.Keeper
	store  *store.Store
	table  *placement.Table
	shared *fakenode.VolumeStore
	conn   *pgx.Conn
	team   uuid.UUID
}

// run makes a keeper over two nodes that share a store of volumes.
func run(t *testing.T) (f *fixture, n1, n2 *fakenode.Node) {
	t.Helper()
	dsn := s0test.Postgres(t)
	s, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	f = &fixture{t: t, store: s, conn: conn, table: placement.New(), team: uuid.New(), shared: &fakenode.VolumeStore{Name: "shared"}}
	n1 = fakenode.Start(t, &fakenode.Node{Name: "n1", Volumes: f.shared})
	n2 = fakenode.Start(t, &fakenode.Node{Name: "n2", Volumes: f.shared})
	log := slog.New(slog.DiscardHandler)
	set := nodes.New(nodes.Config{
		Sockets: []string{n1.Socket, n2.Socket}, Cluster: "local", Table: f.table, Log: log,
		OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {}, OnStored: func(string, sandbox.ID) {},
	})
	f.keep = volumes.New(volumes.Config{Store: s, Table: f.table, Nodes: set, Log: log})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	fakenode.Eventually(t, "the nodes are known", func() bool { return f.table.IsSynced("n1") && f.table.IsSynced("n2") })
	return f, n1, n2
}

func (f *fixture) volume() store.Volume {
	f.t.Helper()
	v, err := f.keep.Create(f.t.Context(), volumes.CreateRequest{TeamID: f.team, UserID: uuid.New(), Backend: nodeapi.BackendS0FS})
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func (f *fixture) hold(v store.Volume, node string) (uuid.UUID, []*nodeapi.Mount, error) {
	claim := uuid.New()
	mounts, err := f.keep.Hold(f.t.Context(), store.Holder{Team: f.team, Claim: claim, Node: node}, []store.MountWant{{Volume: v.ID, Point: "/data"}})
	return claim, mounts, err
}

func other(node string) string { return map[string]string{"n1": "n2", "n2": "n1"}[node] }

// R2, X43: a volume goes to another node when the one that had it has let it go, at a later
// epoch, and what the earlier node still says of it is refused.
func TestAVolumeGoesToAnotherNode(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	v := f.volume()
	claim, mounts, err := f.hold(v, other(v.Node))
	if err != nil || len(mounts) != 1 || mounts[0].GetVolume().GetEpoch() != 2 {
		t.Fatalf("%v: %v", mounts, err)
	}
	if at := f.shared.Get(v.ID.String()); at.Released != 1 {
		t.Errorf("its node was not asked to let it go: %+v", at)
	}
	if _, _, err := f.hold(v, v.Node); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("two have it: %v", err)
	}
	if err := f.keep.Free(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	node, wire, err := f.keep.Reach(t.Context(), f.team, v.ID)
	if err != nil || node != other(v.Node) || wire.GetEpoch() != 2 {
		t.Errorf("at %s, %v: %v", node, wire, err)
	}
}

// A node that does not let a volume go keeps it.
func TestAVolumeThatItsNodeKeeps(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	v := f.volume()
	f.shared.OnCall = func(_ context.Context, call, _ string) error {
		if call != "ReleaseVolume" {
			return nil
		}
		e := connect.NewError(connect.CodeFailedPrecondition, errors.New("a sandbox writes to the volume"))
		e.Meta().Set(nodeapi.CodeHeader, nodeapi.CodeVolumeBusy)
		return e
	}
	if _, _, err := f.hold(v, other(v.Node)); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("%v", err)
	}
	if row, err := f.store.Volume(t.Context(), f.team, v.ID); err != nil || row.Node != v.Node || row.Epoch != v.Epoch {
		t.Errorf("%+v: %v", row, err)
	}
}

// While a node is away for a moment its volumes wait for it: what it has not told yet may
// be the latest.
func TestX31_AVolumeWaitsForItsNode(t *testing.T) {
	t.Parallel()
	f, n1, n2 := run(t)
	v := f.volume()
	gone := map[string]*fakenode.Node{"n1": n1, "n2": n2}[v.Node]
	gone.Stop()
	fakenode.Eventually(t, "the node is lost", func() bool { return !f.table.IsSynced(v.Node) })
	if _, _, err := f.keep.Reach(t.Context(), f.team, v.ID); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("%v", err)
	}
	if _, _, err := f.hold(v, other(v.Node)); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("%v", err)
	}
	gone.Listen(t)
	fakenode.Eventually(t, "it is back", func() bool { _, _, err := f.keep.Reach(t.Context(), f.team, v.ID); return err == nil })
}

// R4: what could not be removed goes when its node can be told, and not before.
func TestADeletedVolumeGoesWhenItsNodesKnow(t *testing.T) {
	t.Parallel()
	f, n1, n2 := run(t)
	v := f.volume()
	gone := map[string]*fakenode.Node{"n1": n1, "n2": n2}[v.Node]
	gone.Stop()
	if err := f.keep.Delete(t.Context(), f.team, v.ID, false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Volume(t.Context(), f.team, v.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("%v", err)
	}
	if f.rows("volumes") != 1 || len(f.shared.IDs()) != 1 {
		t.Fatal("it is forgotten before its node knows")
	}
	gone.Listen(t)
	fakenode.Eventually(t, "the node is back", func() bool { return f.table.IsSynced(v.Node) })
	f.overdue("volumes")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.keep.Run(ctx) }()
	defer func() { stop(); <-done }()
	fakenode.Eventually(t, "it is removed", func() bool { return len(f.shared.IDs()) == 0 })
	fakenode.Eventually(t, "it is forgotten", func() bool { return f.rows("volumes") == 0 })
}

// R4, X39: what was made and never finished, whose answer was lost, is removed.
func TestX39_AVolumeWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	f.shared.After = func(_ context.Context, call, _ string) error {
		if call == "CreateVolume" {
			return connect.NewError(connect.CodeUnavailable, errors.New("lost"))
		}
		return nil
	}
	_, err := f.keep.Create(t.Context(), volumes.CreateRequest{TeamID: f.team, UserID: uuid.New(), Backend: nodeapi.BackendS0FS, Key: "k"})
	if !errdefs.Is(err, errdefs.Unavailable) || len(f.shared.IDs()) != 1 {
		t.Fatalf("%v, %v", err, f.shared.IDs())
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.keep.Run(ctx) }()
	defer func() { stop(); <-done }()
	fakenode.Eventually(t, "it is removed", func() bool { return len(f.shared.IDs()) == 0 })
}

// A mount whose answer was lost is taken back, and the volume is free again.
func TestX39_AMountWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	v := f.volume()
	row := f.sandbox(v.Node)
	f.shared.After = func(_ context.Context, call, _ string) error {
		if call == "MountVolume" {
			return connect.NewError(connect.CodeUnavailable, errors.New("lost"))
		}
		return nil
	}
	if _, err := f.keep.Mount(t.Context(), row, store.MountWant{Volume: v.ID, Point: "/data"}); !errdefs.Is(err, errdefs.Unavailable) {
		t.Fatalf("%v", err)
	}
	if at := f.shared.Get(v.ID.String()); len(at.Mounts) != 0 || f.rows("volume_mounts") != 0 {
		t.Errorf("%+v, %d rows", at, f.rows("volume_mounts"))
	}
	f.shared.After = nil
	m, err := f.keep.Mount(t.Context(), row, store.MountWant{Volume: v.ID, Point: "/data"})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.keep.Unmount(t.Context(), row, v.ID, m.ID); err != nil {
		t.Fatal(err)
	}
	if at := f.shared.Get(v.ID.String()); len(at.Mounts) != 0 {
		t.Errorf("%+v", at)
	}
}

// Why a place can't be used is told: it is the tenant's own.
func TestAMountPointThatIsRefused(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	v := f.volume()
	const why = `mount point "/link": a part of it is a symlink`
	f.shared.OnCall = func(_ context.Context, call, _ string) error {
		if call == "MountVolume" {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New(why))
		}
		return nil
	}
	_, err := f.keep.Mount(t.Context(), f.sandbox(v.Node), store.MountWant{Volume: v.ID, Point: "/link"})
	if !errdefs.Is(err, errdefs.Conflict) || !strings.HasSuffix(err.Error(), why) || f.rows("volume_mounts") != 0 {
		t.Errorf("%v, %d rows", err, f.rows("volume_mounts"))
	}
}

// R7: whether a sandbox is paused is for its row to say at that moment, and its node is asked
// all the same: what it has written may not be committed. Until that is so, nobody has the
// volume, and a resume goes without it.
func TestX43_AnUnmountTrustsNoStalePause(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	v := f.volume()
	row := f.sandbox(v.Node)
	m, err := f.keep.Mount(t.Context(), row, store.MountWant{Volume: v.ID, Point: "/data"})
	if err != nil {
		t.Fatal(err)
	}
	has := func() int {
		t.Helper()
		all, err := f.store.Mounts(t.Context(), f.team, row.ID)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	asked, refusal := 0, error(nil)
	f.shared.OnCall = func(_ context.Context, call, _ string) error {
		if call == "UnmountVolume" {
			asked++
		}
		return refusal
	}
	refusal = connect.NewError(connect.CodeUnavailable, errors.New("the store is down"))
	stale := row
	stale.Status = sandbox.Paused
	if err := f.keep.Unmount(t.Context(), stale, v.ID, m.ID); !errdefs.Is(err, errdefs.Unavailable) || asked != 1 || has() != 1 {
		t.Errorf("of what runs: %v, the node was asked %d times, %d mounts", err, asked, has())
	}
	if _, changed, err := f.store.SetPaused(t.Context(), f.team, row.ID, row.ClaimID, row.Generation); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if err := f.keep.Unmount(t.Context(), stale, v.ID, m.ID); !errdefs.Is(err, errdefs.Unavailable) || asked != 2 || has() != 1 {
		t.Errorf("of what is paused: %v, the node was asked %d times, %d mounts", err, asked, has())
	}
	f.shared.OnCall = func(_ context.Context, call, _ string) error {
		if call != "UnmountVolume" {
			return nil
		}
		if _, _, err := f.hold(v, v.Node); !errdefs.Is(err, errdefs.Conflict) || has() != 0 {
			t.Errorf("meanwhile somebody else gets it: %v; a resume would have %d mounts", err, has())
		}
		return connect.NewError(connect.CodeNotFound, errors.New("the node does not have the sandbox"))
	}
	if err := f.keep.Unmount(t.Context(), row, v.ID, m.ID); err != nil || f.rows("volume_mounts") != 0 {
		t.Errorf("%v, %d rows", err, f.rows("volume_mounts"))
	}
}

// The volumes of a sandbox that failed are free.
func TestAFailureFreesVolumes(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	v := f.volume()
	row := f.sandbox(v.Node)
	if _, err := f.keep.Mount(t.Context(), row, store.MountWant{Volume: v.ID, Point: "/data"}); err != nil {
		t.Fatal(err)
	}
	if changed, err := f.store.FailSandbox(t.Context(), f.team, row, 0, "oom"); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if n := f.rows("volume_mounts"); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

// A lease that is over is nobody's: a claim that comes back for it is refused whole.
func TestG07_AClaimWhoseLeaseIsOver(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	v := f.volume()
	claim, _, err := f.hold(v, v.Node)
	if err != nil {
		t.Fatal(err)
	}
	f.overdue("volume_mounts")
	n := f.newSandbox(v.Node)
	n.ClaimID, n.Mounts = claim, 1
	if _, err := f.store.InsertSandbox(t.Context(), n); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("%v", err)
	}
	if rows := f.rows("sandboxes"); rows != 0 {
		t.Errorf("half of the claim is stored: %d", rows)
	}
	if _, _, err := f.hold(v, v.Node); err != nil {
		t.Errorf("the volume is not free: %v", err)
	}
}

func (f *fixture) newSandbox(node string) store.NewSandbox {
	f.t.Helper()
	id, err := sandbox.NewID("local")
	if err != nil {
		f.t.Fatal(err)
	}
	return store.NewSandbox{
		ID: id, TeamID: f.team, UserID: uuid.New(), ClaimID: uuid.New(), TemplateID: "default", Node: node, Generation: 1,
		Config: []byte("{}"), MemoryBytes: 1 << 30,
	}
}

func (f *fixture) sandbox(node string) store.Sandbox {
	f.t.Helper()
	row, err := f.store.InsertSandbox(f.t.Context(), f.newSandbox(node))
	if err != nil {
		f.t.Fatal(err)
	}
	return row
}

func (f *fixture) rows(table string) (n int) {
	f.t.Helper()
	if err := f.conn.QueryRow(f.t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

// overdue ends every lease.
func (f *fixture) overdue(table string) {
	f.t.Helper()
	if _, err := f.conn.Exec(f.t.Context(), "UPDATE "+table+" SET lease_until = now() - $1::interval WHERE lease_until IS NOT NULL", time.Second); err != nil {
		f.t.Fatal(err)
	}
}

// Metering has what a volume held, and what became of it.
func TestVolumesAreMetered(t *testing.T) {
	t.Parallel()
	f, _, _ := run(t)
	v := f.volume()
	if _, err := f.conn.Exec(t.Context(), "UPDATE volumes SET counted_at = now() - interval '30 minutes'"); err != nil {
		t.Fatal(err)
	}
	if err := f.store.AddVolumeReadings(t.Context(), v.Node, []store.VolumeReading{{ID: v.ID, Bytes: 7}}); err != nil {
		t.Fatal(err)
	}
	if err := f.store.AddVolumeReadings(t.Context(), other(v.Node), []store.VolumeReading{{ID: v.ID, Bytes: 9}}); err != nil {
		t.Fatal(err)
	}
	row, err := f.store.Volume(t.Context(), f.team, v.ID)
	if err != nil || row.Bytes != 7 {
		t.Errorf("what another node says counts: %d, %v", row.Bytes, err)
	}
	var hours float64
	if err := f.conn.QueryRow(t.Context(), "SELECT byte_ms / 3600000 FROM metering_volume_counts WHERE volume_id = $1", v.ID).Scan(&hours); err != nil {
		t.Fatal(err)
	}
	if hours < fakenode.VolumeBytes*0.49 || hours > fakenode.VolumeBytes*0.6 {
		t.Errorf("half an hour of %d bytes is %f byte hours", int64(fakenode.VolumeBytes), hours)
	}
	if err := f.keep.Delete(t.Context(), f.team, v.ID, false); err != nil {
		t.Fatal(err)
	}
	if n := f.rows("metering_volume_changes"); n != 2 {
		t.Errorf("%d changes", n)
	}
}
