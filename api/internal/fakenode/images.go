package fakenode

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
)

// ResolveImage implements the node API.
func (n *Node) ResolveImage(_ context.Context, req *nodeapi.ResolveImageRequest) (*nodeapi.ResolveImageResponse, error) {
	if n.OnResolve == nil {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("no registry is in reach"))
	}
	digest, err := n.OnResolve(req.GetImage())
	if err != nil {
		return nil, err
	}
	return &nodeapi.ResolveImageResponse{Digest: digest}, nil
}
