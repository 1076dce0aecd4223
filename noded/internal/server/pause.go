package server

import (
	"context"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
)

// Pause implements the node API.
func (s *Server) Pause(ctx context.Context, req *nodeapi.PauseRequest) (*nodeapi.Sandbox, error) {
	pause := s.cfg.Lifecycle.Pause
	if req.GetFilesOnly() {
		pause = s.cfg.Lifecycle.PauseFiles
	}
	return s.switchTo(ctx, "Pause", pause, req.GetId(), req.GetGeneration())
}

// Resume implements the node API.
func (s *Server) Resume(ctx context.Context, req *nodeapi.ResumeRequest) (*nodeapi.Sandbox, error) {
	sb, err := s.resume(ctx, req)
	if err != nil {
		return nil, s.fail("Resume", err)
	}
	return sb.Wire(), nil
}

func (s *Server) switchTo(ctx context.Context, call string, do func(context.Context, sandbox.ID, sandbox.Generation) (lifecycle.Sandbox, error), name string, gen uint64) (*nodeapi.Sandbox, error) {
	id, err := parseID(name)
	if err != nil {
		return nil, s.fail(call, err)
	}
	sb, err := do(ctx, id, sandbox.Generation(gen))
	if err != nil {
		return nil, s.fail(call, err)
	}
	return sb.Wire(), nil
}
