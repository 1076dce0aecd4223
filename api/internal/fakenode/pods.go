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
