package fakenode

import (
	"context"
	"errors"
	"slices"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
)

// SetStats makes samples the answer about a sandbox's usage.
func (n *Node) SetStats(id string, samples ...*nodeapi.StatsSample) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats[id] = samples
}

// SetFinals makes figures of generations that are over part of ReadCounters' answer.
func (n *Node) SetFinals(all ...*nodeapi.SandboxCounters) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.finals = all
}

// Stats implements the node API.
func (n *Node) Stats(ctx context.Context, req *nodeapi.StatsRequest) (*nodeapi.StatsResponse, error) {
	if n.OnStats != nil {
		n.OnStats(ctx)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sandboxes[req.GetId()] == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("unknown"))
	}
	resp := &nodeapi.StatsResponse{IntervalMillis: 15_000}
	for _, s := range n.stats[req.GetId()] {
		if s.GetUnixNano() >= req.GetSinceUnixNano() {
			resp.Samples = append(resp.Samples, s)
		}
	}
	return resp, nil
}

// ReadCounters implements the node API, by what SetFinals and the newest of what SetStats
// said.
func (n *Node) ReadCounters(ctx context.Context, _ *nodeapi.ReadCountersRequest, stream *connect.ServerStream[nodeapi.ReadCountersResponse]) error {
	if n.OnStats != nil {
		n.OnStats(ctx)
	}
	n.mu.Lock()
	resp := &nodeapi.ReadCountersResponse{Counters: slices.Clone(n.finals)}
	for id, samples := range n.stats {
		if len(samples) == 0 || n.sandboxes[id] == nil {
			continue
		}
		last := samples[len(samples)-1]
		resp.Counters = append(resp.Counters, &nodeapi.SandboxCounters{
			Id: id, Generation: last.GetGeneration(),
			RxBytes: int64(last.GetNetwork().GetRxBytes()), TxBytes: int64(last.GetNetwork().GetTxBytes()), DiskBytes: last.GetDisk().GetBytes(),
		})
	}
	n.mu.Unlock()
	return stream.Send(resp)
}
