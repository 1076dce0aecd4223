package fakenode

import (
	"context"

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
