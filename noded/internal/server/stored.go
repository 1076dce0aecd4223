package server

import (
	"context"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/archive"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/snapshots"
)

// Archive is the node's way to the object store.
type Archive interface {
	// Remove removes a sandbox's images that are older than a generation; 0: all.
	Remove(ctx context.Context, id sandbox.ID, below sandbox.Generation) error
	// RemoveSnapshot removes a snapshot.
	RemoveSnapshot(ctx context.Context, name string) error
	// Status tells which store it is and how it goes.
	Status() *nodeapi.ObjectStore
}

// resume resumes what the node has or, if the request names one, an image in the object
// store.
func (s *Server) resume(ctx context.Context, req *nodeapi.ResumeRequest) (lifecycle.Sandbox, error) {
	id, err := parseID(req.GetId())
	if err != nil {
		return lifecycle.Sandbox{}, err
	}
	mounts, err := mountsFromWire(req.GetMounts())
	if err != nil {
		return lifecycle.Sandbox{}, err
	}
	resume := lifecycle.ResumeRequest{
		ID: id, Generation: sandbox.Generation(req.GetGeneration()), After: sandbox.Generation(req.GetAfterGeneration()), Mounts: mounts,
	}
	if stored := req.GetStored(); stored != nil {
		resume.Stored = &lifecycle.Stored{
			Ref:     archive.Ref{Team: stored.GetTeam(), Sandbox: id, Generation: sandbox.Generation(stored.GetGeneration())},
			ClaimID: stored.GetClaimId(), After: sandbox.Generation(stored.GetAfterGeneration()),
		}
	}
	return s.cfg.Lifecycle.Resume(ctx, resume)
}

// RemoveStored implements the node API.
func (s *Server) RemoveStored(ctx context.Context, req *nodeapi.RemoveStoredRequest) (*nodeapi.RemoveStoredResponse, error) {
	remove, err := s.removal(req)
	if err == nil && s.cfg.Archive == nil {
		err = errdefs.New(errdefs.Conflict, "the node has no object store")
	}
	if err != nil {
		return nil, s.fail("RemoveStored", err)
	}
	if err := remove(ctx); err != nil {
		return nil, s.fail("RemoveStored", errdefs.New(errdefs.Unavailable, "what is stored could not be removed").WithCause(err))
	}
	return &nodeapi.RemoveStoredResponse{}, nil
}

// removal is what the request asks for.
func (s *Server) removal(req *nodeapi.RemoveStoredRequest) (func(context.Context) error, error) {
	if name := req.GetSnapshot(); name != "" {
		if err := snapshots.CheckName(name); err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, "%v", err)
		}
		return func(ctx context.Context) error { return s.cfg.Archive.RemoveSnapshot(ctx, name) }, nil
	}
	id, err := parseID(req.GetId())
	return func(ctx context.Context) error {
		return s.cfg.Archive.Remove(ctx, id, sandbox.Generation(req.GetBelowGeneration()))
	}, err
}
