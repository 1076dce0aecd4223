package fakenode

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"s0.run/internal/nodeapi"
)

// Fork implements the node API. Without a word about memory a child has none.
func (n *Node) Fork(_ context.Context, req *nodeapi.ForkRequest) (*nodeapi.ForkResponse, error) {
	resp, err := n.fork(req)
	if err == nil && n.AfterFork != nil {
		err = n.AfterFork(req)
	}
	return resp, err
}

func (n *Node) fork(req *nodeapi.ForkRequest) (*nodeapi.ForkResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	source := n.sandboxes[req.GetId()]
	if source == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("unknown"))
	}
	resp := &nodeapi.ForkResponse{}
	for _, c := range req.GetChildren() {
		child := n.sandboxes[c.GetId()]
		if child == nil {
			child = proto.CloneOf(source)
			child.Id, child.ClaimId, child.User, child.State = c.GetId(), c.GetClaimId(), req.GetUser(), "paused"
			n.sandboxes[c.GetId()] = child
			n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: child}})
		}
		resp.Children = append(resp.Children, child)
	}
	return resp, nil
}
