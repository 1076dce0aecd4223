package server

import (
	"context"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/noded/internal/images"
	"s0.run/noded/internal/lifecycle"
)

// WarmPod implements the node API.
func (s *Server) WarmPod(ctx context.Context, req *nodeapi.WarmPodRequest) (*nodeapi.PodSlot, error) {
	spec, err := nodeapi.SpecFromWire(req.GetSpec())
	if err != nil {
		return nil, s.fail("WarmPod", errdefs.New(errdefs.InvalidArgument, "warming a pod's slot: %v", err))
	}
	slot, err := s.cfg.Lifecycle.WarmPod(images.ForTeam(ctx, req.GetTeam()), lifecycle.WarmRequest{Pod: req.GetPod(), PoolKey: req.GetPoolKey(), Spec: spec})
	if err != nil {
		return nil, s.fail("WarmPod", err)
	}
	return slot, nil
}

// cordonKey is what stands in the hub for whether the node gets anything new.
const cordonKey = "cordoned"

// Cordon implements the node API.
func (s *Server) Cordon(_ context.Context, req *nodeapi.CordonRequest) (*nodeapi.CordonResponse, error) {
	s.cfg.Hub.Set(cordonKey, &nodeapi.Event{Event: &nodeapi.Event_Cordoned{Cordoned: req.GetCordoned()}})
	s.cfg.Log.Info("the node's cordon", "cordoned", req.GetCordoned())
	return &nodeapi.CordonResponse{}, nil
}
