package server

import (
	"context"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
)

// Snapshot implements the node API.
func (s *Server) Snapshot(ctx context.Context, req *nodeapi.SnapshotRequest) (*nodeapi.SnapshotResponse, error) {
	id, err := parseID(req.GetId())
	if err != nil {
		return nil, s.fail("Snapshot", err)
	}
	bytes, err := s.cfg.Lifecycle.Snapshot(ctx, id, sandbox.Generation(req.GetGeneration()), req.GetSnapshot())
	if err != nil {
		return nil, s.fail("Snapshot", err)
	}
	return &nodeapi.SnapshotResponse{Bytes: bytes}, nil
}

// DeleteSnapshot implements the node API.
func (s *Server) DeleteSnapshot(ctx context.Context, req *nodeapi.DeleteSnapshotRequest) (*nodeapi.DeleteSnapshotResponse, error) {
	if err := s.cfg.Lifecycle.DeleteSnapshot(ctx, req.GetSnapshot()); err != nil {
		return nil, s.fail("DeleteSnapshot", err)
	}
	return &nodeapi.DeleteSnapshotResponse{}, nil
}

// RestoreSnapshot implements the node API.
func (s *Server) RestoreSnapshot(ctx context.Context, req *nodeapi.RestoreSnapshotRequest) (*nodeapi.Sandbox, error) {
	restore := func(ctx context.Context, id sandbox.ID, gen sandbox.Generation) (lifecycle.Sandbox, error) {
		return s.cfg.Lifecycle.RestoreSnapshot(ctx, id, gen, req.GetSnapshot())
	}
	return s.switchTo(ctx, "RestoreSnapshot", restore, req.GetId(), req.GetGeneration())
}
