package server

import (
	"context"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
)

// Fork implements the node API.
func (s *Server) Fork(ctx context.Context, req *nodeapi.ForkRequest) (*nodeapi.ForkResponse, error) {
	id, err := parseID(req.GetId())
	if err != nil {
		return nil, s.fail("Fork", err)
	}
	fork := lifecycle.ForkRequest{ID: id, Generation: sandbox.Generation(req.GetGeneration()), Memory: req.Memory, User: req.GetUser()}
	for _, c := range req.GetChildren() {
		fork.Children = append(fork.Children, lifecycle.Child{ID: sandbox.ID(c.GetId()), ClaimID: c.GetClaimId()})
	}
	made, err := s.cfg.Lifecycle.Fork(ctx, fork)
	if err != nil {
		return nil, s.fail("Fork", err)
	}
	resp := &nodeapi.ForkResponse{}
	for _, sb := range made {
		resp.Children = append(resp.Children, sb.Wire())
	}
	return resp, nil
}
