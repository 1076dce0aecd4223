package nodes_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

func following(t *testing.T, n *fakenode.Node) *nodes.Set {
	t.Helper()
	table := placement.New()
	set := nodes.New(nodes.Config{
		Sockets: []string{n.Socket}, Cluster: "local", Table: table, Log: slog.New(slog.DiscardHandler),
		OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {},
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	fakenode.Eventually(t, "the node is known", func() bool { return table.IsSynced(n.Name) })
	return set
}

// Claims that come together are answered each for itself: right, refused, failed
// or late.
func TestClaimsThatComeTogether(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var slow atomic.Value
	slow.Store("")
	n := fakenode.Start(t, &fakenode.Node{OnClaim: func(_ context.Context, req *nodeapi.ClaimRequest) error {
		if req.GetSlot() == slow.Load() {
			<-release
		}
		if req.GetTeam() == "refused" {
			return connect.NewError(connect.CodeResourceExhausted, errors.New("no room"))
		}
		return nil
	}})
	set := following(t, n)
	slots := n.AddSlots("p", 100)
	slow.Store(slots[0])
	var quick, all sync.WaitGroup
	claim := func(wg *sync.WaitGroup, slot, team string, want connect.Code) {
		wg.Go(func() {
			req := &nodeapi.ClaimRequest{ClaimId: uuid.NewString(), Slot: slot, Team: team}
			resp, err := set.Claim(t.Context(), n.Name, req)
			switch {
			case want != 0 && connect.CodeOf(err) != want:
				t.Errorf("slot %s: %v, want %v", slot, err, want)
			case want == 0 && (err != nil || resp.GetSandbox().GetId() != slot || resp.GetSandbox().GetClaimId() != req.ClaimId):
				t.Errorf("slot %s: %v, %v", slot, resp, err)
			}
		})
	}
	claim(&all, slots[0], "t", 0)
	for _, slot := range slots[1:] {
		claim(&quick, slot, "t", 0)
		claim(&quick, "local-taken", "t", connect.CodeAborted)
		claim(&quick, "local-other", "refused", connect.CodeResourceExhausted)
	}
	quick.Wait() // though one of them is not answered
	close(release)
	all.Wait()
}

// A claim that nobody waits for any more does not keep the others.
func TestAClaimThatIsGivenUp(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	n := fakenode.Start(t, &fakenode.Node{OnClaim: func(_ context.Context, req *nodeapi.ClaimRequest) error {
		if req.GetTeam() == "slow" {
			<-release
		}
		return nil
	}})
	t.Cleanup(func() { close(release) })
	set := following(t, n)
	slots := n.AddSlots("p", 20)
	var wg sync.WaitGroup
	for i, slot := range slots {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			team := "quick"
			if i%2 == 0 {
				team = "slow"
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			_, err := set.Claim(ctx, n.Name, &nodeapi.ClaimRequest{ClaimId: uuid.NewString(), Slot: slot, Team: team})
			if (err != nil) != (team == "slow") {
				t.Errorf("%s: %v", team, err)
			}
		})
	}
	wg.Wait()
}
