package fakenode

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
)

// WarmPod implements the node API; the API server never calls it.
func (n *Node) WarmPod(context.Context, *nodeapi.WarmPodRequest) (*nodeapi.PodSlot, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, errors.New("this node has no pods"))
}

// Cordon implements the node API.
func (n *Node) Cordon(_ context.Context, req *nodeapi.CordonRequest) (*nodeapi.CordonResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cordoned = req.GetCordoned()
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Cordoned{Cordoned: n.cordoned}})
	return &nodeapi.CordonResponse{}, nil
}
