package fakenode

import (
	"context"

	"google.golang.org/protobuf/proto"

	"s0.run/internal/nodeapi"
)

// RemoveStored implements the node API. What was asked for is in [Node.Removed].
func (n *Node) RemoveStored(_ context.Context, req *nodeapi.RemoveStoredRequest) (*nodeapi.RemoveStoredResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.removed = append(n.removed, req)
	return &nodeapi.RemoveStoredResponse{}, nil
}

// Removed is what the node was asked to remove from the object store.
func (n *Node) Removed() []*nodeapi.RemoveStoredRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*nodeapi.RemoveStoredRequest(nil), n.removed...)
}

func (n *Node) objectStore() *nodeapi.ObjectStore {
	if !n.ObjectStore {
		return nil
	}
	return &nodeapi.ObjectStore{Url: "s3://fake"}
}

// takeIn makes a paused sandbox of this node of a stored image, unless it has it, and
// returns how many generations later its next instance is.
func (n *Node) takeIn(req *nodeapi.ResumeRequest) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	stored := req.GetStored()
	sb := n.sandboxes[req.GetId()]
	if sb == nil && stored != nil && n.ObjectStore {
		sb = &nodeapi.Sandbox{Id: req.GetId(), Generation: stored.GetGeneration(), State: "paused", Team: stored.GetTeam(), ClaimId: stored.GetClaimId()}
		n.sandboxes[req.GetId()] = sb
	}
	if sb == nil {
		return 1
	}
	return max(sb.GetGeneration(), req.GetAfterGeneration()) + 1 - sb.GetGeneration()
}

// SetStored says that the object store has, or has not, a sandbox as it was paused.
func (n *Node) SetStored(id string, stored bool) {
	gen := uint64(0)
	if stored {
		gen = n.Sandboxes()[id].GetGeneration()
	}
	n.StoreAs(id, gen)
}

// StoreAs says that the object store has a sandbox's image of a generation.
func (n *Node) StoreAs(id string, gen uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := proto.CloneOf(n.sandboxes[id])
	next.StoredGeneration = gen
	n.sandboxes[id] = next
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: next}})
}
