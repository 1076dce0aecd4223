package fakenode

import (
	"context"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
)

// ClaimMany implements the node API.
func (n *Node) ClaimMany(ctx context.Context, req *nodeapi.ClaimManyRequest, stream *connect.ServerStream[nodeapi.ClaimManyResponse]) error {
	return nodeapi.ServeClaims(ctx, req, n.Claim, stream.Send)
}
