package fakenode

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"s0.run/internal/nodeapi"
)

// flows are records that nobody has stored yet, and how many were before.
type flows struct {
	list   []*nodeapi.Flow
	stored uint64
}

// Send makes a sandbox send something, of which there is a record.
func (n *Node) Send(records ...*nodeapi.Flow) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.flows.list = append(n.flows.list, records...)
}

// Unstored counts the records that nobody has stored yet.
func (n *Node) Unstored() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.flows.list)
}

// TakeFlows implements the node API.
func (n *Node) TakeFlows(ctx context.Context, req *nodeapi.TakeFlowsRequest) (*nodeapi.TakeFlowsResponse, error) {
	for end := time.Now().Add(time.Second); n.Unstored() == 0 && ctx.Err() == nil && time.Now().Before(end); {
		time.Sleep(pollEvents)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if through := req.GetStored().GetThrough(); req.GetStored().GetRun() == n.Name && through > n.flows.stored {
		n.flows.list = slices.Clone(n.flows.list[through-n.flows.stored:])
		n.flows.stored = through
	}
	return &nodeapi.TakeFlowsResponse{
		Mark:  &nodeapi.FlowMark{Run: n.Name, Through: n.flows.stored + uint64(len(n.flows.list))},
		Flows: slices.Clone(n.flows.list),
	}, nil
}

// SetBandwidth implements the node API.
func (n *Node) SetBandwidth(_ context.Context, req *nodeapi.SetBandwidthRequest) (*nodeapi.SetBandwidthResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bandwidth = proto.CloneOf(req)
	return &nodeapi.SetBandwidthResponse{}, nil
}

// Bandwidth is what the node was told last.
func (n *Node) Bandwidth() *nodeapi.SetBandwidthRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bandwidth
}
