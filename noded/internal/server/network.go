package server

import (
	"context"
	"encoding/json"

	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/nodeapi"
	"s0.run/noded/internal/egress"
)

// maxTeams bounds what one call says of teams, and maxTeamBytes each one's name.
const maxTeams, maxTeamBytes = 10_000, 256

// Network is what the node's network daemon tells and is told; see [egress.Agent].
type Network interface {
	TakeFlows(ctx context.Context, stored netdapi.Mark) (netdapi.Events, error)
	SetBandwidth(ctx context.Context, b egress.Bandwidths) error
}

// TakeFlows implements the node API.
func (s *Server) TakeFlows(ctx context.Context, req *nodeapi.TakeFlowsRequest) (*nodeapi.TakeFlowsResponse, error) {
	e, err := s.cfg.Network.TakeFlows(ctx, netdapi.Mark{Run: req.GetStored().GetRun(), Through: req.GetStored().GetThrough()})
	if err != nil {
		return nil, s.flowless(err)
	}
	s.noFlows.Store(false)
	resp := &nodeapi.TakeFlowsResponse{Mark: &nodeapi.FlowMark{Run: e.Mark.Run, Through: e.Mark.Through}}
	for i := range e.Events {
		r := &e.Events[i]
		record, err := json.Marshal(r)
		if err != nil {
			return nil, s.fail("TakeFlows", err)
		}
		resp.Flows = append(resp.Flows, &nodeapi.Flow{
			Id: r.FlowID, Sandbox: r.SandboxID, Generation: r.Generation, UnixNano: r.Timestamp.UnixNano(),
			Action: r.Action, Outcome: r.Outcome, More: r.More != nil, Record: record,
		})
	}
	return resp, nil
}

// flowless is what a caller is told who takes no records of flows. While netd is away, or
// where there is none, he asks every few seconds: that is said once.
func (s *Server) flowless(err error) error {
	if !errdefs.Is(err, errdefs.Unavailable) {
		return s.fail("TakeFlows", err)
	}
	if !s.noFlows.Swap(true) {
		s.cfg.Log.Info("there is nobody to take records of flows from", "error", err)
	}
	return wire(classify(err))
}

// SetBandwidth implements the node API.
func (s *Server) SetBandwidth(ctx context.Context, req *nodeapi.SetBandwidthRequest) (*nodeapi.SetBandwidthResponse, error) {
	if len(req.GetTeams()) > maxTeams {
		return nil, s.fail("SetBandwidth", errdefs.New(errdefs.InvalidArgument, "more than %d teams", maxTeams))
	}
	b := egress.Bandwidths{Teams: make(map[string]egress.Bandwidth, len(req.GetTeams())), Others: bandwidthFromWire(req.GetOthers())}
	for _, t := range req.GetTeams() {
		if t.GetTeam() == "" || len(t.GetTeam()) > maxTeamBytes {
			return nil, s.fail("SetBandwidth", errdefs.New(errdefs.InvalidArgument, "team %.64q", t.GetTeam()))
		}
		b.Teams[t.GetTeam()] = bandwidthFromWire(t)
	}
	if err := s.cfg.Network.SetBandwidth(ctx, b); err != nil {
		return nil, s.fail("SetBandwidth", err)
	}
	return &nodeapi.SetBandwidthResponse{}, nil
}

func bandwidthFromWire(t *nodeapi.TeamBandwidth) egress.Bandwidth {
	both := func(b *nodeapi.Bandwidth) netdapi.Bandwidth {
		rate := func(r *nodeapi.Rate) netdapi.Rate { return netdapi.Rate{Bytes: r.GetBytes(), Burst: r.GetBurst()} }
		return netdapi.Bandwidth{Egress: rate(b.GetEgress()), Ingress: rate(b.GetIngress())}
	}
	return egress.Bandwidth{Together: both(t.GetTogether()), Each: both(t.GetEach())}
}
