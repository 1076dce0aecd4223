package fakenode

import (
	"maps"
	"testing"
	"time"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

// Sandboxes copies what the node has.
func (n *Node) Sandboxes() map[string]*nodeapi.Sandbox {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.sandboxes)
}

// Deleted copies which sandboxes the node was told to delete, and why.
func (n *Node) Deleted() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.deletes)
}

// Pools copies the pools that the node was told to keep, and how often it was told.
func (n *Node) Pools() (map[string]*nodeapi.Pool, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.pools), n.setPools
}

// Free counts the node's free slots.
func (n *Node) Free() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.free)
}

// AddSlots puts free slots into a pool.
func (n *Node) AddSlots(poolKey string, count int) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for range count {
		ids = append(ids, n.addLocked(poolKey))
	}
	return ids
}

// Steal takes a free slot away without telling anybody, as another replica's
// claim does a moment before its event arrives.
func (n *Node) Steal(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropLocked(id)
}

// Fail makes a sandbox fail.
func (n *Node) Fail(id, reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.sandboxes[id]
	sb := &nodeapi.Sandbox{
		Id: id, Generation: old.GetGeneration(), PoolKey: old.GetPoolKey(), State: string(sandbox.Failed), Reason: reason,
		Team: old.GetTeam(), ClaimId: old.GetClaimId(),
	}
	n.sandboxes[id] = sb
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: sb}})
}

// Gone makes a sandbox end by itself.
func (n *Node) Gone(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.goneLocked(id)
}

// Forget loses a sandbox without a word, as a node does whose journal is lost.
func (n *Node) Forget(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sandboxes, id)
}

// Adopt gives the node a sandbox that nobody claimed through the API.
func (n *Node) Adopt(sb *nodeapi.Sandbox) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sandboxes[sb.GetId()] = sb
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: sb}})
}

// Eventually waits until a condition holds, and fails the test when it takes
// absurdly long.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("never happened: %s", what)
		case <-tick.C:
		}
	}
}
