package vkprovider_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
)

// nothing is a noded whose slots are made of nothing, at once.
type nothing struct {
	nodeapiconnect.UnimplementedNodeHandler

	mu       sync.Mutex
	slots    map[string]*nodeapi.PodSlot // by pod
	watchers map[chan *nodeapi.Event]bool
}

func serveNothing(t testing.TB, socket string) *nothing {
	t.Helper()
	n := &nothing{slots: map[string]*nodeapi.PodSlot{}, watchers: map[chan *nodeapi.Event]bool{}}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(nodeapiconnect.NewNodeHandler(n))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: mux, Protocols: protocols}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(l) }() // ends with Close
	return n
}

// Info says what it is.
func (n *nothing) Info(context.Context, *nodeapi.InfoRequest) (*nodeapi.InfoResponse, error) {
	return &nodeapi.InfoResponse{Node: "nothing", RuntimeClasses: []string{"gvisor"}, MaxSandboxes: 100_000}, nil
}

// WarmPod makes a slot, or finds it.
func (n *nothing) WarmPod(_ context.Context, req *nodeapi.WarmPodRequest) (*nodeapi.PodSlot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	slot := n.slots[req.GetPod()]
	if slot == nil {
		i := len(n.slots)
		slot = &nodeapi.PodSlot{Pod: req.GetPod(), Id: "slot-" + req.GetPod(), Generation: 1, State: nodeapi.PodSlotFree, Ip: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)}
		n.slots[req.GetPod()] = slot
		n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Pod{Pod: slot}})
	}
	return slot, nil
}

// Cordon is nothing to it.
func (n *nothing) Cordon(context.Context, *nodeapi.CordonRequest) (*nodeapi.CordonResponse, error) {
	return &nodeapi.CordonResponse{}, nil
}

// Delete ends a slot.
func (n *nothing) Delete(_ context.Context, req *nodeapi.DeleteRequest) (*nodeapi.DeleteResponse, error) {
	return &nodeapi.DeleteResponse{}, nil
}

// Watch tells of slots.
func (n *nothing) Watch(ctx context.Context, _ *nodeapi.WatchRequest, out *connect.ServerStream[nodeapi.Event]) error {
	events := make(chan *nodeapi.Event, 1<<16)
	n.mu.Lock()
	for _, slot := range n.slots {
		events <- &nodeapi.Event{Event: &nodeapi.Event_Pod{Pod: slot}}
	}
	events <- &nodeapi.Event{Event: &nodeapi.Event_Synced{Synced: &nodeapi.Synced{}}}
	n.watchers[events] = true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.watchers, events)
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if err := out.Send(e); err != nil {
				return err
			}
		}
	}
}

// claim is what a node tells when somebody has claimed a pod's slot.
func (n *nothing) claim(pod string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.slots[pod]
	slot := &nodeapi.PodSlot{Pod: pod, Id: was.GetId(), Generation: 1, State: nodeapi.PodSlotClaimed, Ip: was.GetIp()}
	n.slots[pod] = slot
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Pod{Pod: slot}})
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: &nodeapi.Sandbox{
		Id: slot.GetId(), Generation: 1, State: "running", Pod: pod, Team: "team", ClaimId: "claim-" + pod, Ip: slot.GetIp(),
	}}})
}

func (n *nothing) tellLocked(e *nodeapi.Event) {
	for events := range n.watchers {
		events <- e
	}
}
