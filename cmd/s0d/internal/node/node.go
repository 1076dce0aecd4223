// Package node asks the machine's own noded, over its unix socket, what s0d has
// to know: whether slots are warm, what runs, and to end all of it.
//
// It holds no state: every question opens the node's event stream, which begins
// with everything that the node has. It never touches containerd or a sandbox.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/sandbox"
)

// A Node is the noded behind one unix socket.
type Node struct{ client nodeapiconnect.NodeClient }

// New makes a client; nothing is sent yet.
func New(socket string) *Node {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	return &Node{client: nodeapiconnect.NewNodeClient(&http.Client{Transport: transport}, "http://noded")}
}

// A View is what the node has.
type View struct {
	Slots   map[string]bool   // ids of free slots
	Claimed map[string]string // ids of sandboxes that take compute, and their states
	Paused  map[string]bool   // ids of those that are on the disk alone
	Warming int
	// LastError says why the latest warm-up failed; empty while all is well.
	LastError string
	warming   map[string]int
}

func (v *View) apply(e *nodeapi.Event) {
	switch e := e.GetEvent().(type) {
	case *nodeapi.Event_SlotFree:
		v.Slots[e.SlotFree.GetId()] = true
	case *nodeapi.Event_SlotTaken:
		delete(v.Slots, e.SlotTaken)
	case *nodeapi.Event_Sandbox:
		id, state := e.Sandbox.GetId(), e.Sandbox.GetState()
		v.forget(id)
		if state == string(sandbox.Paused) {
			v.Paused[id] = true
		} else {
			v.Claimed[id] = state
		}
	case *nodeapi.Event_SandboxGone:
		v.forget(e.SandboxGone)
	case *nodeapi.Event_Pool:
		v.Warming += int(e.Pool.GetWarming()) - v.warming[e.Pool.GetKey()]
		v.warming[e.Pool.GetKey()] = int(e.Pool.GetWarming())
		v.LastError = e.Pool.GetLastError()
	}
}

func (v *View) forget(id string) {
	delete(v.Claimed, id)
	delete(v.Paused, id)
}

// Follow calls see with the view once it is complete and after each change,
// until see returns true.
func (n *Node) Follow(ctx context.Context, see func(*View) (done bool)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := n.client.Watch(ctx, &nodeapi.WatchRequest{})
	if err != nil {
		return fmt.Errorf("watching noded: %w", err)
	}
	defer stream.Close()
	view := &View{Slots: map[string]bool{}, Claimed: map[string]string{}, Paused: map[string]bool{}, warming: map[string]int{}}
	synced := false
	for stream.Receive() {
		view.apply(stream.Msg())
		synced = synced || stream.Msg().GetSynced() != nil
		if synced && see(view) {
			return nil
		}
	}
	if err := stream.Err(); err != nil {
		return fmt.Errorf("watching noded: %w", err)
	}
	return errors.New("watching noded: the stream ended")
}

// Look answers the view of now.
func (n *Node) Look(ctx context.Context) (*View, error) {
	var now *View
	err := n.Follow(ctx, func(v *View) bool { now = v; return true })
	return now, err
}

// Images is what images take on the node; nil when it can't tell.
func (n *Node) Images(ctx context.Context) (*nodeapi.ImageUsage, error) {
	info, err := n.client.Info(ctx, &nodeapi.InfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("asking noded about its images: %w", err)
	}
	return info.GetImages(), nil
}

// ObjectStore is how the node gets on with its object store; nil when it has none.
func (n *Node) ObjectStore(ctx context.Context) (*nodeapi.ObjectStore, error) {
	info, err := n.client.Info(ctx, &nodeapi.InfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("asking noded about its object store: %w", err)
	}
	return info.GetObjectStore(), nil
}

// EndSandboxes deletes every sandbox that takes compute and waits until all are gone.
// What is paused stays: it is data.
func (n *Node) EndSandboxes(ctx context.Context, reason string) error {
	asked := map[string]bool{}
	var failed error
	err := n.Follow(ctx, func(v *View) bool {
		for id := range v.Claimed {
			if asked[id] {
				continue
			}
			asked[id] = true
			if _, err := n.client.Delete(ctx, &nodeapi.DeleteRequest{Id: id, Reason: reason}); err != nil {
				failed = fmt.Errorf("deleting %s: %w", id, err)
				return true
			}
		}
		return len(v.Claimed) == 0
	})
	return errors.Join(failed, err)
}

// holdingPoll is how often a drain looks at what is left; a person waits for it.
const holdingPoll = 50 * time.Millisecond

// Drain ends every pool and waits until the last trace of the last slot is gone.
// Nobody may declare pools meanwhile.
func (n *Node) Drain(ctx context.Context) error {
	if _, err := n.client.SetPools(ctx, &nodeapi.SetPoolsRequest{}); err != nil {
		return fmt.Errorf("ending the pools: %w", err)
	}
	for {
		info, err := n.client.Info(ctx, &nodeapi.InfoRequest{})
		if err != nil {
			return fmt.Errorf("asking noded what it holds: %w", err)
		}
		if info.GetHolding() == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d sandboxes are still ending: %w", info.GetHolding(), ctx.Err())
		case <-time.After(holdingPoll):
		}
	}
}
