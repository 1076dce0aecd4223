package node_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"s0.run/cmd/s0d/internal/node"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
)

// fake is a node of a few slots and sandboxes whose only behaviour is to let go
// of what it is told to.
type fake struct {
	nodeapiconnect.UnimplementedNodeHandler

	mu       sync.Mutex
	slots    []string
	claimed  []string
	deleted  []string
	ending   int // slots on their way out
	watchers []chan *nodeapi.Event
}

func (f *fake) Watch(ctx context.Context, _ *nodeapi.WatchRequest, stream *connect.ServerStream[nodeapi.Event]) error {
	changes := make(chan *nodeapi.Event, 16)
	f.mu.Lock()
	var now []*nodeapi.Event
	for _, id := range f.slots {
		now = append(now, &nodeapi.Event{Event: &nodeapi.Event_SlotFree{SlotFree: &nodeapi.Slot{Id: id}}})
	}
	for _, id := range f.claimed {
		now = append(now, &nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: &nodeapi.Sandbox{Id: id, State: "running"}}})
	}
	now = append(now,
		&nodeapi.Event{Event: &nodeapi.Event_Pool{Pool: &nodeapi.PoolStatus{Key: "k", Idle: uint32(len(f.slots)), LastError: "no image"}}},
		&nodeapi.Event{Event: &nodeapi.Event_Synced{Synced: &nodeapi.Synced{}}})
	f.watchers = append(f.watchers, changes)
	f.mu.Unlock()
	for _, e := range now {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-changes:
			if err := stream.Send(e); err != nil {
				return err
			}
		}
	}
}

func (f *fake) tell(e *nodeapi.Event) {
	for _, w := range f.watchers {
		w <- e
	}
}

func (f *fake) Delete(_ context.Context, r *nodeapi.DeleteRequest) (*nodeapi.DeleteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.GetId() == "stuck" {
		return nil, errors.New("it does not want to")
	}
	f.deleted = append(f.deleted, r.GetId())
	f.claimed = f.claimed[1:]
	f.tell(&nodeapi.Event{Event: &nodeapi.Event_SandboxGone{SandboxGone: r.GetId()}})
	return &nodeapi.DeleteResponse{}, nil
}

func (f *fake) SetPools(_ context.Context, r *nodeapi.SetPoolsRequest) (*nodeapi.SetPoolsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(r.GetPools()) == 0 {
		f.slots, f.ending = nil, len(f.slots)
	}
	return &nodeapi.SetPoolsResponse{}, nil
}

// Info tells of one slot less each time.
func (f *fake) Info(context.Context, *nodeapi.InfoRequest) (*nodeapi.InfoResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	left := f.ending
	f.ending = max(0, f.ending-1)
	return &nodeapi.InfoResponse{Holding: uint32(left)}, nil
}

func serve(t *testing.T, f *fake) *node.Node {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "n.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(nodeapiconnect.NewNodeHandler(f))
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return node.New(socket)
}

func TestLook(t *testing.T) {
	t.Parallel()
	view, err := serve(t, &fake{slots: []string{"a"}, claimed: []string{"b", "c"}}).Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !view.Slots["a"] || len(view.Slots) != 1 || view.Claimed["b"] != "running" || len(view.Claimed) != 2 || view.LastError != "no image" {
		t.Errorf("Look = %+v", view)
	}
}

func TestEverythingEnds(t *testing.T) {
	t.Parallel()
	f := &fake{slots: []string{"a", "b"}, claimed: []string{"c", "d", "e"}}
	n := serve(t, f)
	if err := n.EndSandboxes(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	if len(f.deleted) != 3 || len(f.slots) != 2 {
		t.Errorf("deleted %v and left slots %v, want the sandboxes alone to end", f.deleted, f.slots)
	}
	if err := n.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.ending != 0 || len(f.slots) != 0 {
		t.Errorf("a drain returned with slots %v and %d ending", f.slots, f.ending)
	}
}

func TestASandboxThatCannotEndIsNamed(t *testing.T) {
	t.Parallel()
	err := serve(t, &fake{claimed: []string{"stuck"}}).EndSandboxes(t.Context(), "test")
	if err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("EndSandboxes = %v, want the id", err)
	}
}
