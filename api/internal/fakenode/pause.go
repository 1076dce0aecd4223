package fakenode

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"s0.run/internal/nodeapi"
)

// Pause implements the node API.
func (n *Node) Pause(_ context.Context, req *nodeapi.PauseRequest) (*nodeapi.Sandbox, error) {
	sb, err := n.switchTo(req.GetId(), req.GetGeneration(), "paused", 0)
	if err == nil {
		n.mu.Lock()
		n.filesOnly[req.GetId()] = req.GetFilesOnly()
		n.mu.Unlock()
		n.Volumes.unmount(func(_, sandbox string) bool { return sandbox == req.GetId() })
	}
	if err == nil && n.AfterPause != nil {
		n.AfterPause(req.GetId())
	}
	return sb, err
}

// Resume implements the node API.
func (n *Node) Resume(ctx context.Context, req *nodeapi.ResumeRequest) (*nodeapi.Sandbox, error) {
	if n.OnResume != nil {
		if err := n.OnResume(req); err != nil {
			return nil, err
		}
	}
	if n.WhileResuming != nil {
		n.WhileResuming(ctx.Done())
		if err := ctx.Err(); err != nil {
			return nil, connect.NewError(connect.CodeCanceled, err)
		}
	}
	if err := n.mountAll(ctx, "Resume", req.GetId(), req.GetMounts()); err != nil {
		return nil, err
	}
	sb, err := n.switchTo(req.GetId(), req.GetGeneration(), "running", n.takeIn(req))
	if err == nil && n.AfterResume != nil {
		err = n.AfterResume(n, req.GetId(), sb.GetGeneration())
	}
	return sb, err
}

func errStale() error {
	err := connect.NewError(connect.CodeFailedPrecondition, errors.New("stale generation"))
	err.Meta().Set(nodeapi.CodeHeader, nodeapi.CodeStaleGeneration)
	return err
}

// Switch makes a sandbox one of a state and generation, as if by another's call.
func (n *Node) Switch(id, state string, gen uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := proto.CloneOf(n.sandboxes[id])
	next.State, next.Generation = state, gen
	n.sandboxes[id] = next
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: next}})
}

func (n *Node) switchTo(id string, gen uint64, state string, step uint64) (*nodeapi.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sb := n.sandboxes[id]
	switch {
	case sb == nil:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("unknown"))
	case sb.GetState() == state:
		return sb, nil
	case gen != 0 && sb.GetGeneration() != gen:
		return nil, errStale()
	}
	next := proto.CloneOf(sb)
	next.State, next.Generation, next.StoredGeneration = state, sb.GetGeneration()+step, 0
	n.sandboxes[id] = next
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: next}})
	return next, nil
}
