package metering_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/metering"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// What nodes count is recorded once by many replicas, whatever of a node's answers
// they get; what a node does not know harms nothing, and one that hangs no other.
func TestWhatNodesCountedIsRecordedOnce(t *testing.T) {
	t.Parallel()
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
	node, table, log := fakenode.Start(t, &fakenode.Node{}), placement.New(), slog.New(slog.DiscardHandler)
	hung := fakenode.Start(t, &fakenode.Node{Name: "n0", OnStats: func(ctx context.Context) { <-ctx.Done() }})
	for n := range 64 { // one after the other they would take longer than anybody waits below
		hung.Adopt(&nodeapi.Sandbox{Id: fmt.Sprint("local-hung", n), Generation: 1, State: "running", Team: uuid.NewString(), ClaimId: uuid.NewString()})
	}
	set := nodes.New(nodes.Config{Sockets: []string{hung.Socket, node.Socket}, Cluster: "local", Table: table, Log: log,
		OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {}})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 5)
	go func() { done <- set.Run(ctx) }()
	fakenode.Eventually(t, "the nodes are known", func() bool { return table.IsSynced("n0") && table.IsSynced("n1") })

	team := uuid.New()
	id := node.AddSlots("pool", 1)[0]
	silent := node.AddSlots("pool", 1)[0] // has no counters
	for _, slot := range []string{id, silent} {
		claim := uuid.New()
		rpc, err := set.RPC("n1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rpc.Claim(ctx, &nodeapi.ClaimRequest{ClaimId: claim.String(), Slot: slot, PoolKey: "pool", Team: team.String()}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.InsertSandbox(ctx, store.NewSandbox{
			ID: sandbox.ID(slot), TeamID: team, UserID: uuid.New(), ClaimID: claim, TemplateID: "default", Node: "n1", Generation: 1, Config: []byte(`{}`), MemoryBytes: 1 << 30,
		}); err != nil {
			t.Fatal(err)
		}
	}
	// Another node's sandbox, which the node has an older instance of.
	foreign, claim := sandbox.ID("local-foreign"), uuid.New()
	for node, gen := range map[*fakenode.Node]uint64{hung: 2, node: 1} {
		node.Adopt(&nodeapi.Sandbox{Id: string(foreign), Generation: gen, State: "running", Team: team.String(), ClaimId: claim.String()})
	}
	if _, err := s.InsertSandbox(ctx, store.NewSandbox{
		ID: foreign, TeamID: team, UserID: uuid.New(), ClaimID: claim, TemplateID: "default", Node: "n0", Generation: 2, Config: []byte(`{}`), MemoryBytes: 1 << 30,
	}); err != nil {
		t.Fatal(err)
	}
	node.SetStats(string(foreign), &nodeapi.StatsSample{Generation: 1, Network: &nodeapi.NetworkUsage{RxBytes: 1 << 30}})
	fakenode.Eventually(t, "another node's sandbox is known as its", func() bool {
		sb, _, _ := table.Lookup(foreign)
		return sb.Node == "n0" && len(table.Outdated("n1")) == 1
	})
	tell := func(rx, tx uint64) {
		node.SetStats(id, &nodeapi.StatsSample{
			UnixNano: time.Now().Add(time.Hour).UnixNano(), Generation: 1, // later than whoever asks
			Network: &nodeapi.NetworkUsage{RxBytes: rx, TxBytes: tx}, Disk: &nodeapi.DiskUsage{Bytes: 1 << 20},
		})
	}
	tell(100, 10)
	for range 4 { // replicas: each is kept waiting once by the node that hangs
		m := metering.New(metering.Config{Store: s, Table: table, Nodes: set, Log: log, Every: 10 * time.Millisecond})
		go func() { done <- m.Run(ctx) }()
	}
	counted := func(in, out int64) func() bool {
		return func() bool {
			u, err := s.Usage(t.Context(), team)
			return err == nil && u.IngressBytes == in && u.EgressBytes == out
		}
	}
	fakenode.Eventually(t, "the counters are recorded", counted(100, 10))
	tell(300, 11)
	if _, err := conn.Exec(t.Context(), "UPDATE metering_progress SET read_at = '-infinity'"); err != nil { // a minute later
		t.Fatal(err)
	}
	fakenode.Eventually(t, "what came since is added", counted(300, 11))
	// The last of a generation that was over before anybody came round counts, too.
	node.SetFinals(&nodeapi.SandboxCounters{Id: id, Generation: 1, RxBytes: 400, TxBytes: 12, DiskBytes: nodeapi.NotCounted},
		&nodeapi.SandboxCounters{Id: id, Generation: 2, RxBytes: 7, TxBytes: 1, DiskBytes: nodeapi.NotCounted},
		&nodeapi.SandboxCounters{Id: string(foreign), Generation: 1, RxBytes: 1 << 30})
	node.SetStats(id, &nodeapi.StatsSample{Generation: 3, Network: &nodeapi.NetworkUsage{RxBytes: 1, TxBytes: 1}})
	if _, err := conn.Exec(t.Context(), "UPDATE metering_progress SET read_at = '-infinity'"); err != nil {
		t.Fatal(err)
	}
	fakenode.Eventually(t, "what short generations had is added", counted(408, 14))
	node.SetStats(id, &nodeapi.StatsSample{Generation: 3, Network: &nodeapi.NetworkUsage{RxBytes: 2, TxBytes: 1}})
	if _, err := conn.Exec(t.Context(), "UPDATE metering_progress SET read_at = '-infinity'"); err != nil {
		t.Fatal(err)
	}
	fakenode.Eventually(t, "it is added once, however often it is told", counted(409, 14))
	stop()
	for range 5 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
