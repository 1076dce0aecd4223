package fakenode

import (
	"context"
	"errors"
	"maps"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"s0.run/internal/nodeapi"
)

// SnapshotBytes is what every snapshot takes.
const SnapshotBytes = 3_000_000_000

// Snapshot implements the node API.
func (n *Node) Snapshot(ctx context.Context, req *nodeapi.SnapshotRequest) (*nodeapi.SnapshotResponse, error) {
	if n.OnSnapshot != nil {
		if err := n.OnSnapshot(ctx, req.GetSnapshot()); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	sb := n.sandboxes[req.GetId()]
	if sb == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("unknown"))
	}
	n.snapshots[req.GetSnapshot()] = sb.GetTeam()
	return &nodeapi.SnapshotResponse{Bytes: SnapshotBytes}, nil
}

// DeleteSnapshot implements the node API.
func (n *Node) DeleteSnapshot(ctx context.Context, req *nodeapi.DeleteSnapshotRequest) (*nodeapi.DeleteSnapshotResponse, error) {
	if n.OnDeleteSnapshot != nil {
		if err := n.OnDeleteSnapshot(ctx, req.GetSnapshot()); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.snapshots, req.GetSnapshot())
	return &nodeapi.DeleteSnapshotResponse{}, nil
}

// RestoreSnapshot implements the node API.
func (n *Node) RestoreSnapshot(_ context.Context, req *nodeapi.RestoreSnapshotRequest) (*nodeapi.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sb := n.sandboxes[req.GetId()]
	switch {
	case sb == nil || n.snapshots[req.GetSnapshot()] != sb.GetTeam():
		return nil, connect.NewError(connect.CodeNotFound, errors.New("unknown"))
	case sb.GetState() != "paused":
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("not paused"))
	case req.GetGeneration() != 0 && req.GetGeneration() != sb.GetGeneration():
		return nil, errStale()
	}
	next := proto.CloneOf(sb)
	next.Generation++
	n.sandboxes[req.GetId()], n.begun[req.GetId()] = next, req.GetSnapshot()
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: next}})
	if n.AfterRestore != nil {
		if err := n.AfterRestore(req.GetId()); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// Snapshots lists what the node keeps.
func (n *Node) Snapshots() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.snapshots))
}

// Begun is the snapshot that a sandbox began with or went back to.
func (n *Node) Begun(id string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.begun[id]
}

// FilesOnly tells how a sandbox was paused last.
func (n *Node) FilesOnly(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.filesOnly[id]
}
