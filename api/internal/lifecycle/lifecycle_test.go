package lifecycle_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

type fixture struct {
	t     *testing.T
	store *store.Store
	conn  *pgx.Conn
	node  *fakenode.Node
	nodes []*fakenode.Node // with node
	table *placement.Table
	keep  *lifecycle.Keeper
	team  uuid.UUID
	stop  func() // ends what serve started, before the test ends
}

// run starts a Keeper that looks often and has little patience.
func run(t *testing.T, grace time.Duration) *fixture {
	t.Helper()
	return runWith(t, &fakenode.Node{}, lifecycle.Config{Settled: time.Millisecond, Grace: grace})
}

func runWith(t *testing.T, node *fakenode.Node, c lifecycle.Config, more ...*fakenode.Node) *fixture {
	t.Helper()
	return runAt(t, s0test.Postgres(t), node, c, more...)
}

func runAt(t *testing.T, dsn string, node *fakenode.Node, c lifecycle.Config, more ...*fakenode.Node) *fixture {
	t.Helper()
	f := &fixture{t: t, node: fakenode.Start(t, node), team: uuid.New()}
	f.nodes = []*fakenode.Node{f.node}
	for _, n := range more {
		f.nodes = append(f.nodes, fakenode.Start(t, n))
	}
	f.serve(dsn, c)
	return f
}

// serve starts a Keeper and what it works with, over the fixture's nodes, until stop.
func (f *fixture) serve(dsn string, c lifecycle.Config) {
	t := f.t
	t.Helper()
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
	f.store, f.conn, f.table = s, conn, placement.New()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var sockets []string
	for _, n := range f.nodes {
		sockets = append(sockets, n.Socket)
	}
	var keep *lifecycle.Keeper
	set := nodes.New(nodes.Config{
		Sockets: sockets, Cluster: "local", Table: f.table, Log: c.Log,
		OnSync: func(string) {}, OnEnd: func(node string, id sandbox.ID) { keep.Ended(node, id) },
		OnStored: func(node string, id sandbox.ID) { keep.Stored(node, id) },
	})
	c.Volumes = volumes.New(volumes.Config{Store: s, Table: f.table, Nodes: set, Log: c.Log})
	c.Store, c.Table, c.Nodes, c.PassEvery = s, f.table, set, 20*time.Millisecond
	keep = lifecycle.New(c)
	f.keep = keep
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- set.Run(ctx) }()
	go func() { done <- keep.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		stop()
		<-done
		<-done
	})
	t.Cleanup(f.stop)
	fakenode.Eventually(t, "the nodes are known", func() bool { return len(f.table.Synced()) == len(sockets) })
}

// claimed makes a sandbox that row and node agree about.
func (f *fixture) claimed(change func(*store.NewSandbox)) store.Sandbox {
	f.t.Helper()
	id, err := sandbox.NewID("local")
	if err != nil {
		f.t.Fatal(err)
	}
	n := store.NewSandbox{
		ID: id, TeamID: f.team, UserID: uuid.New(), ClaimID: uuid.New(), TemplateID: "default",
		Node: "n1", Generation: 1, Config: json.RawMessage(`{}`), MemoryBytes: 1 << 30,
	}
	if change != nil {
		change(&n)
	}
	f.adopt(string(id), n.ClaimID.String())
	row, err := f.store.InsertSandbox(f.t.Context(), n)
	if err != nil {
		f.t.Fatal(err)
	}
	return row
}

// adopt gives the node a sandbox of a claim.
func (f *fixture) adopt(id, claimID string) {
	f.t.Helper()
	f.revive(id, claimID)
	fakenode.Eventually(f.t, "the sandbox is listed", func() bool {
		_, _, ok := f.table.Lookup(sandbox.ID(id))
		return ok
	})
}

// revive has the node run a sandbox that nobody claimed there.
func (f *fixture) revive(id, claimID string) {
	f.node.Adopt(&nodeapi.Sandbox{Id: id, Generation: 1, State: "running", Team: f.team.String(), ClaimId: claimID})
}

func (f *fixture) row(id sandbox.ID) store.Sandbox {
	f.t.Helper()
	row, err := f.store.AnySandbox(f.t.Context(), id)
	if err != nil {
		f.t.Fatal(err)
	}
	return row
}

func (f *fixture) eventually(id sandbox.ID, what string, cond func(store.Sandbox) bool) {
	f.t.Helper()
	fakenode.Eventually(f.t, what, func() bool { return cond(f.row(id)) })
}

func failed(reason string) func(store.Sandbox) bool {
	return func(row store.Sandbox) bool { return row.Status == sandbox.Failed && row.Reason == reason }
}

func deleted(row store.Sandbox) bool { return row.DeletedAt != nil }

func TestDelete(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	if err := f.keep.Delete(t.Context(), uuid.New(), sb.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("A01: by a foreign team: %v", err)
	}
	if err := f.keep.Delete(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	if !deleted(f.row(sb.ID)) || len(f.node.Sandboxes()) != 0 {
		t.Fatalf("%+v", f.row(sb.ID))
	}
	if err := f.keep.Delete(t.Context(), f.team, sb.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("again: %v", err)
	}
}

func TestDeleteIsFinishedWhenTheNodeComesBack(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	f.node.Stop()
	if err := f.keep.Delete(t.Context(), f.team, sb.ID); err != nil {
		t.Fatalf("the decision is durable without the node: %v", err)
	}
	if row := f.row(sb.ID); row.Status != sandbox.Terminating || deleted(row) {
		t.Fatalf("R6: a sandbox that may still run must not look gone: %+v", row)
	}
	f.node.Listen(t)
	f.eventually(sb.ID, "the node is told and the row is a tombstone", deleted)
	if len(f.node.Sandboxes()) != 0 {
		t.Error("the sandbox lives on")
	}
}

func TestRowsSayWhatNodesSay(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	oom, gone := f.claimed(nil), f.claimed(nil)
	f.node.Fail(string(oom.ID), "oom")
	f.node.Gone(string(gone.ID))
	f.eventually(oom.ID, "the failure is recorded", failed("oom"))
	// Whichever comes first: the node's word, or the pass that misses it there.
	f.eventually(gone.ID, "the end is recorded", func(row store.Sandbox) bool {
		return row.Status == sandbox.Failed && row.Reason != ""
	})
	if err := f.keep.Delete(t.Context(), f.team, oom.ID); err != nil {
		t.Fatal(err)
	}
	if !deleted(f.row(oom.ID)) {
		t.Error("a failed sandbox can be deleted")
	}
}

func TestG09_ARowFailsOnlyWhenItsNodeSaysSo(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb, healthy := f.claimed(nil), f.claimed(nil)
	f.node.Stop()
	f.node.Forget(string(sb.ID)) // its journal is lost
	fakenode.Eventually(t, "the loss is seen", func() bool { return !f.table.IsSynced("n1") })
	if row := f.row(sb.ID); row.Status != sandbox.Running {
		t.Fatalf("a node that can't be asked has said nothing: %+v", row)
	}
	f.node.Listen(t)
	f.eventually(sb.ID, "the loss is recorded", failed("its node has no record of it"))
	if row := f.row(healthy.ID); row.Status != sandbox.Running {
		t.Errorf("%+v", row)
	}
}

func TestG09_ASandboxWithoutARowHasTheGrace(t *testing.T) {
	t.Parallel()
	patient, hasty := run(t, time.Hour), run(t, time.Millisecond)
	for _, f := range []*fixture{patient, hasty} {
		for range 5 {
			id, err := sandbox.NewID("local")
			if err != nil {
				t.Fatal(err)
			}
			f.revive(string(id), uuid.NewString())
		}
	}
	marker := patient.claimed(nil)
	fakenode.Eventually(t, "after the grace they are ended", func() bool { return len(hasty.node.Sandboxes()) == 0 })
	patient.node.Fail(string(marker.ID), "x") // passes have run meanwhile
	patient.eventually(marker.ID, "the failure is recorded", failed("x"))
	if n := len(patient.node.Sandboxes()); n != 6 {
		t.Errorf("%d sandboxes are left within the grace, want 6", n)
	}
	for _, reason := range hasty.node.Deleted() {
		if reason != "nobody's sandbox" {
			t.Errorf("reason %q", reason)
		}
	}
}

func TestG04_ATombstoneEndsWhatComesBack(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	if err := f.keep.Delete(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	f.revive(string(sb.ID), sb.ClaimID.String()) // a node restored from an old journal
	fakenode.Eventually(t, "it is ended without any grace", func() bool { return len(f.node.Sandboxes()) == 0 })
}

func TestARowWhoseSandboxWasGivenToAnotherClaimIsRemoved(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(func(n *store.NewSandbox) {})
	f.adopt(string(sb.ID), uuid.NewString())
	fakenode.Eventually(t, "the lost claim's row is gone", func() bool {
		_, err := f.store.AnySandbox(t.Context(), sb.ID)
		return errdefs.Is(err, errdefs.NotFound)
	})
	if len(f.node.Sandboxes()) != 1 {
		t.Error("the winner's sandbox must live")
	}
}

func TestTTLs(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	soft := f.claimed(func(n *store.NewSandbox) { n.TTLSeconds = 3600 })
	hard := f.claimed(func(n *store.NewSandbox) { n.HardTTLSeconds = 3600 })
	forever := f.claimed(nil)
	alive := f.claimed(func(n *store.NewSandbox) { n.TTLSeconds, n.HardTTLSeconds = 3600, 7200 })
	for id, column := range map[sandbox.ID]string{soft.ID: "expires_at", hard.ID: "hard_expires_at"} {
		if _, err := f.conn.Exec(t.Context(), "UPDATE sandboxes SET "+column+" = now() WHERE id = $1", id); err != nil {
			t.Fatal(err)
		}
	}
	f.eventually(soft.ID, "the ttl pauses it", func(row store.Sandbox) bool { return row.Status == sandbox.Paused })
	f.eventually(hard.ID, "the hard ttl ends it", deleted)
	if got := f.node.Deleted(); got[string(hard.ID)] != "hard_ttl expired" || len(got) != 1 {
		t.Errorf("%v", got)
	}
	for _, sb := range []store.Sandbox{forever, alive} {
		if row := f.row(sb.ID); row.Status != sandbox.Running {
			t.Errorf("%+v", row)
		}
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(func(n *store.NewSandbox) { n.HardTTLSeconds = 100 })
	memory, ttl, long := "2Gi", int32(50), int32(1000)
	update := func(team uuid.UUID, c openapi.SandboxUpdateConfig) (store.Sandbox, error) {
		return f.keep.Change(t.Context(), team, sb.ID, func(store.Sandbox) (openapi.SandboxUpdateConfig, error) { return c, nil })
	}
	got, err := update(f.team, openapi.SandboxUpdateConfig{
		EnvVars: map[string]string{"A": "1"}, Resources: &openapi.SandboxResources{Memory: &memory}, TTL: &ttl,
	})
	if err != nil || got.MemoryBytes != 2<<30 || got.TTLSeconds != 50 || got.ExpiresAt == nil {
		t.Fatalf("%+v: %v", got, err)
	}
	at := f.node.Sandboxes()[string(sb.ID)]
	if at.GetMemoryBytes() != 2<<30 || at.GetCpuMillis() != 500 || at.GetEnv()["A"] != "1" {
		t.Errorf("%v", at)
	}
	if got, err = update(f.team, openapi.SandboxUpdateConfig{EnvVars: map[string]string{}}); err != nil {
		t.Fatal(err)
	}
	if _, kept := f.node.Sandboxes()[string(sb.ID)].GetEnv()["A"]; kept || got.MemoryBytes != 2<<30 {
		t.Error("an empty map clears the variables and nothing else")
	}
	if _, err := update(f.team, openapi.SandboxUpdateConfig{TTL: &long}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a ttl beyond the stored hard_ttl: %v", err)
	}
	if _, err := update(uuid.New(), openapi.SandboxUpdateConfig{TTL: &ttl}); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("A01: %v", err)
	}
	f.node.Stop()
	if _, err := update(f.team, openapi.SandboxUpdateConfig{EnvVars: map[string]string{"B": "2"}}); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("without its node: %v", err)
	}
	if row := f.row(sb.ID); string(row.Config) != `{"ttl": 50, "env_vars": {}, "resources": {"memory": "2Gi"}}` {
		t.Errorf("what the node has not got must not be stored: %s", row.Config)
	}
}

// A node that does not answer keeps no other's sandboxes from ending.
func TestANodeThatHangsDelaysNoOther(t *testing.T) {
	t.Parallel()
	released := make(chan struct{})
	var asked atomic.Int32
	hangs := &fakenode.Node{OnDelete: func(ctx context.Context) {
		asked.Add(1)
		select {
		case <-released:
		case <-ctx.Done():
		}
	}}
	f := runWith(t, hangs, lifecycle.Config{Settled: time.Hour, Grace: time.Hour}, &fakenode.Node{Name: "n2"})
	t.Cleanup(func() { close(released) })
	var ids []string
	for range 40 {
		ids = append(ids, string(f.claimed(func(n *store.NewSandbox) { n.HardTTLSeconds = 3600 }).ID))
	}
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	last, err := f.store.InsertSandbox(t.Context(), store.NewSandbox{
		ID: id, TeamID: f.team, UserID: uuid.New(), ClaimID: uuid.New(), TemplateID: "default",
		Node: "n2", Generation: 1, Config: json.RawMessage(`{}`), MemoryBytes: 1 << 30, HardTTLSeconds: 3600,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.conn.Exec(t.Context(), `UPDATE sandboxes SET hard_expires_at = now() - CASE WHEN id = ANY ($1) THEN interval '2 hours' ELSE interval '1 hour' END`, ids); err != nil {
		t.Fatal(err)
	}
	f.eventually(last.ID, "the other node's sandbox ends", deleted)
	if n := asked.Load(); n > 8 {
		t.Errorf("meanwhile the node that hangs was asked %d times", n)
	}
}
