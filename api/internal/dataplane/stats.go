package dataplane

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"s0.run/api/internal/nodes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
)

// Stats asks a sandbox's node what the sandbox uses, and has used from a time on.
// The node's word is the host's: the sandbox has no part in it.
func (p *Plane) Stats(ctx context.Context, to Target, since time.Time) (*nodeapi.StatsResponse, error) {
	at, err := p.find(ctx, to)
	if err != nil {
		return nil, err
	}
	rpc, err := p.cfg.Nodes.RPC(at.node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	resp, err := rpc.Stats(ctx, &nodeapi.StatsRequest{Id: string(to.ID), Generation: uint64(at.gen), SinceUnixNano: since.UnixNano()})
	switch connect.CodeOf(err) {
	case connect.CodeNotFound, connect.CodeFailedPrecondition, connect.CodeAborted:
		return nil, p.notServing(ctx, to, err)
	case connect.CodeDeadlineExceeded:
		return nil, errdefs.New(errdefs.GatewayTimeout, "the sandbox's node did not answer in time").WithCause(err)
	}
	if err != nil {
		return nil, nodes.ErrUnreachable.WithCause(err)
	}
	return resp, nil
}
