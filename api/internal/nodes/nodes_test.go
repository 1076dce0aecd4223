package nodes_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

type fixture struct {
	set   *nodes.Set
	table *placement.Table
	syncs atomic.Int32
	ended chan sandbox.ID
}

func run(t *testing.T, sockets ...string) *fixture {
	t.Helper()
	f := &fixture{table: placement.New(), ended: make(chan sandbox.ID, 100)}
	f.set = nodes.New(nodes.Config{
		Sockets: sockets, Cluster: "local", Table: f.table, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		OnSync: func(string) { f.syncs.Add(1) },
		OnEnd:  func(_ string, id sandbox.ID) { f.ended <- id },
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.set.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestTheTableFollowsTheNode(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{NetworkPolicy: true})
	ids := n.AddSlots("p", 2)
	f := run(t, n.Socket)
	fakenode.Eventually(t, "two free slots", func() bool { return f.table.Free() == 2 })
	if got := f.table.Synced(); len(got) != 1 || got[0].Name != "n1" || !got[0].NetworkPolicy {
		t.Fatalf("%+v", got)
	}
	rpc, err := f.set.RPC("n1")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rpc.Claim(t.Context(), &nodeapi.ClaimRequest{ClaimId: "c", Slot: ids[0], PoolKey: "p", Team: "t"})
	if err != nil || resp.GetCold() {
		t.Fatalf("%v: %v", resp, err)
	}
	fakenode.Eventually(t, "the sandbox is listed and its slot is not", func() bool {
		sb, synced, ok := f.table.Lookup(sandbox.ID(ids[0]))
		return ok && synced && sb.Team == "t" && sb.ClaimID == "c" && f.table.Free() == 1
	})
	if _, err := rpc.Claim(t.Context(), &nodeapi.ClaimRequest{ClaimId: "d", Slot: ids[0]}); connect.CodeOf(err) != connect.CodeAborted {
		t.Fatalf("a taken slot: %v", err)
	}
	n.Fail(ids[0], "oom")
	if got := <-f.ended; got != sandbox.ID(ids[0]) {
		t.Fatalf("%s ended", got)
	}
	if sb, _, _ := f.table.Lookup(sandbox.ID(ids[0])); sb.State != sandbox.Failed || sb.Reason != "oom" {
		t.Fatalf("%+v", sb)
	}
	n.Gone(ids[0])
	<-f.ended
	if _, _, ok := f.table.Lookup(sandbox.ID(ids[0])); ok {
		t.Fatal("a sandbox that is gone must not be listed")
	}
}

func TestX28_ANodeComesBack(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	n.AddSlots("p", 1)
	f := run(t, n.Socket)
	fakenode.Eventually(t, "synced", func() bool { return f.table.Free() == 1 })
	n.Stop()
	fakenode.Eventually(t, "the loss is seen", func() bool { return f.table.Free() == 0 && !f.table.IsSynced("n1") })
	rpc, err := f.set.RPC("n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.Get(t.Context(), &nodeapi.GetRequest{Id: "x"}); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Fatalf("a call to a node that is away must fail as unavailable: %v", err)
	}
	n.AddSlots("p", 2)
	n.Listen(t)
	fakenode.Eventually(t, "synced again", func() bool { return f.table.Free() == 3 })
	fakenode.Eventually(t, "told twice about a sync", func() bool { return f.syncs.Load() == 2 })
}

// X28: who asks right after a start finds every node that can be found.
func TestX28_AStartWaitsForItsNodes(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	n.AddSlots("p", 1)
	f := run(t, n.Socket, filepath.Join(t.TempDir(), "nobody.sock"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f.set.Settled(ctx)
	if ctx.Err() != nil || f.table.Free() != 1 {
		t.Fatalf("%v, %d free slots", ctx.Err(), f.table.Free())
	}
	if _, err := f.set.Data("n1"); err != nil {
		t.Fatal(err)
	}
}

func TestANodeThatIsNotOursIsRefused(t *testing.T) {
	t.Parallel()
	ours := fakenode.Start(t, &fakenode.Node{})
	twin := fakenode.Start(t, &fakenode.Node{})
	other := fakenode.Start(t, &fakenode.Node{Name: "n2", Cluster: "elsewhere"})
	ours.AddSlots("p", 1)
	twin.AddSlots("p", 1)
	other.AddSlots("p", 1)
	f := run(t, ours.Socket, other.Socket)
	fakenode.Eventually(t, "synced", func() bool { return f.table.Free() == 1 })
	if _, err := f.set.RPC("n2"); !errdefs.Is(err, errdefs.Unavailable) {
		t.Fatalf("a node of another cluster: %v", err)
	}
	g := run(t, ours.Socket, twin.Socket)
	fakenode.Eventually(t, "one of the twins", func() bool { return g.table.Free() == 1 })
}

func TestTheDataPlaneFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{Proc: http.RedirectHandler("http://169.254.169.254/", http.StatusFound)})
	id := n.AddSlots("p", 1)[0]
	f := run(t, n.Socket)
	fakenode.Eventually(t, "synced", func() bool { return f.table.Free() == 1 })
	rpc, _ := f.set.RPC("n1")
	if _, err := rpc.Claim(t.Context(), &nodeapi.ClaimRequest{ClaimId: "c", Slot: id}); err != nil {
		t.Fatal(err)
	}
	data, err := f.set.Data("n1")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := data.Get("http://node" + nodeapi.ProcPrefix + id + "/contexts")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusFound || resp.ProtoMajor != 2 {
		t.Fatalf("%s %s", resp.Proto, resp.Status)
	}
}

// G09: a pod's sandbox has no row and needs none; who took it for an orphan would end it.
func TestG09_PodsSandboxesAreNoneOfOurs(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	ids := n.AddSlots("p", 2)
	f := run(t, n.Socket)
	fakenode.Eventually(t, "two free slots", func() bool { return f.table.Free() == 2 })
	rpc, err := f.set.RPC("n1")
	if err != nil {
		t.Fatal(err)
	}
	for i, claim := range []string{nodeapi.PodClaim("uid"), "ours"} {
		if _, err := rpc.Claim(t.Context(), &nodeapi.ClaimRequest{ClaimId: claim, Slot: ids[i], PoolKey: "p", Team: "t"}); err != nil {
			t.Fatal(err)
		}
	}
	fakenode.Eventually(t, "our sandbox is listed", func() bool { _, _, ok := f.table.Lookup(sandbox.ID(ids[1])); return ok })
	if list, ok := f.table.SandboxesOf("n1"); !ok || len(list) != 1 || list[0].ClaimID != "ours" {
		t.Fatalf("listed %+v", list)
	}
}
