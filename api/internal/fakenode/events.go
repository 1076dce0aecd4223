package fakenode

import (
	"context"
	"fmt"
	"time"

	"s0.run/internal/nodeapi"
)

// pollEvents is how often TakeEvents looks while it waits.
const pollEvents = 2 * time.Millisecond

// Tell makes a sandbox tell events, in the name of its claim.
func (n *Node) Tell(id string, events ...*nodeapi.SandboxEvent) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leases++
	sb := n.sandboxes[id]
	n.told = append(n.told, &nodeapi.SandboxEvents{
		Lease: fmt.Sprint("lease-", n.leases), Sandbox: id, Generation: sb.GetGeneration(), ClaimId: sb.GetClaimId(), Events: events,
	})
}

// Untold counts batches that nobody has stored yet.
func (n *Node) Untold() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.told)
}

// TakeEvents implements the node API. It leases nothing: every caller gets
// everything until it is stored, which is what makes storing twice likely.
func (n *Node) TakeEvents(ctx context.Context, req *nodeapi.TakeEventsRequest) (*nodeapi.TakeEventsResponse, error) {
	deadline := time.Now().Add(time.Duration(req.GetWaitMillis()) * time.Millisecond)
	for {
		n.mu.Lock()
		batches := append([]*nodeapi.SandboxEvents(nil), n.told...)
		n.mu.Unlock()
		if len(batches) > 0 || time.Now().After(deadline) {
			return &nodeapi.TakeEventsResponse{Batches: batches}, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pollEvents):
		}
	}
}

// AckEvents implements the node API.
func (n *Node) AckEvents(_ context.Context, req *nodeapi.AckEventsRequest) (*nodeapi.AckEventsResponse, error) {
	stored := map[string]bool{}
	for _, lease := range req.GetStored() {
		stored[lease] = true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var rest []*nodeapi.SandboxEvents
	for _, b := range n.told {
		if !stored[b.GetLease()] {
			rest = append(rest, b)
		}
	}
	n.told = rest
	return &nodeapi.AckEventsResponse{}, nil
}
