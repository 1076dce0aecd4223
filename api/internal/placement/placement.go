// Package placement knows, in memory, what the nodes have: free slots, claimed
// sandboxes and pool counters, as their streams tell.
//
// The table is a view, never the truth: a slot taken from it is only this
// replica's choice, and the node's compare-and-swap decides. A node whose stream
// was lost keeps its sandboxes in the view, for requests must still find their
// way there, but none of its slots can be taken. The package does no I/O and
// starts nothing; package nodes feeds it.
package placement

import (
	"maps"
	"slices"
	"sync"
	"time"

	"s0.run/internal/sandbox"
)

// Sandbox is a claimed sandbox as its node has it.
type Sandbox struct {
	Node       string
	ID         sandbox.ID
	Generation sandbox.Generation
	PoolKey    string
	State      sandbox.State
	Reason     string
	Team       string
	ClaimID    string
	Stored     sandbox.Generation // the image of it in the object store, if it is paused and there is one

	// Contested says that two nodes have it, in different generations: it may have moved,
	// or one of them lies. Its row knows (H03).
	Contested bool

	silent time.Time // since when its node can't tell its state; zero while it can
}

// Snapshot is all that a node has, told at once.
type Snapshot struct {
	Slots     map[sandbox.ID]Slot
	Sandboxes map[sandbox.ID]Sandbox
	Pools     map[string]Pool
	Cordoned  *bool // its Kubernetes node lets nothing new there; nil: it has not heard yet
}

// NewSnapshot makes an empty snapshot.
func NewSnapshot() *Snapshot {
	return &Snapshot{Slots: map[sandbox.ID]Slot{}, Sandboxes: map[sandbox.ID]Sandbox{}, Pools: map[string]Pool{}}
}

// Table is safe for concurrent use.
type Table struct {
	made time.Time

	mu        sync.RWMutex
	nodes     map[string]*node
	draining  map[string]bool
	free      map[string]*slotList    // by pool key
	sandboxes map[sandbox.ID]*Sandbox // of all nodes
	claimed   map[string]int          // sandboxes by pool key
}

type node struct {
	Node
	synced bool
	// cordoned nodes get nothing new. It is the last word of its streams, and stays when one is lost.
	cordoned bool

	lost   time.Time              // since when it is not synced
	slots  map[sandbox.ID]string  // pool keys of its free slots
	parked map[sandbox.ID]Slot    // free slots that nobody gets, while it is closed
	own    map[sandbox.ID]bool    // its sandboxes
	older  map[sandbox.ID]Sandbox // what it still says of sandboxes that are another node's
	pools  map[string]Pool
}

// New makes an empty table.
func New() *Table {
	return &Table{made: time.Now(), nodes: map[string]*node{}, draining: map[string]bool{}, free: map[string]*slotList{}, sandboxes: map[sandbox.ID]*Sandbox{}, claimed: map[string]int{}}
}

// Sync replaces everything that is known of a node: its stream has told all.
func (t *Table) Sync(n Node, s *Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	cordoned := s.Cordoned != nil && *s.Cordoned
	if old := t.nodes[n.Name]; old != nil {
		if s.Cordoned == nil { // a node that starts is told after its stream began
			cordoned = old.cordoned
		}
		t.dropSlots(old)
		for id := range old.own {
			t.dropSandbox(id)
		}
	}
	maps.DeleteFunc(t.free, func(_ string, l *slotList) bool { return len(l.slots) == 0 }) // of templates that changed
	fresh := &node{Node: n, synced: true, cordoned: cordoned, slots: map[sandbox.ID]string{}, parked: map[sandbox.ID]Slot{}, own: map[sandbox.ID]bool{}, older: map[sandbox.ID]Sandbox{}, pools: s.Pools}
	t.nodes[n.Name] = fresh
	for _, slot := range s.Slots {
		t.addSlot(fresh, slot)
	}
	for _, sb := range s.Sandboxes {
		t.putSandbox(fresh, sb)
	}
}

// Lost says that a node's stream has ended.
func (t *Table) Lost(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[name]; n != nil {
		n.synced, n.lost = false, time.Now()
		t.dropSlots(n)
	}
}

// Forget removes a node that is none any more, and what it had.
func (t *Table) Forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[name]
	if n == nil {
		return
	}
	t.dropSlots(n)
	for id := range n.own {
		t.dropSandbox(id)
	}
	delete(t.nodes, name)
}

// update changes one synced node; what an unknown node says changes nothing.
func (t *Table) update(name string, f func(n *node)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[name]; n != nil && n.synced {
		f(n)
	}
}

// SlotFree adds a slot that became claimable.
func (t *Table) SlotFree(s Slot) { t.update(s.Node, func(n *node) { t.addSlot(n, s) }) }

// SlotTaken removes a slot that is not claimable any more.
func (t *Table) SlotTaken(name string, id sandbox.ID) {
	t.update(name, func(n *node) {
		delete(n.parked, id)
		if key, ok := n.slots[id]; ok {
			delete(n.slots, id)
			t.free[key].remove(id)
		}
	})
}

// SandboxChanged adds or replaces a claimed sandbox.
func (t *Table) SandboxChanged(sb Sandbox) {
	t.update(sb.Node, func(n *node) { t.putSandbox(n, sb) })
}

// SandboxGone removes a sandbox that has ended.
func (t *Table) SandboxGone(name string, id sandbox.ID) {
	t.update(name, func(n *node) {
		delete(n.older, id)
		if sb := t.sandboxes[id]; sb != nil {
			sb.Contested = t.contested(id)
		}
		if n.own[id] {
			delete(n.own, id)
			t.dropSandbox(id)
		}
	})
}

// Outdated lists what a synced node says of sandboxes that another node has in the same
// or a later generation.
func (t *Table) Outdated(name string) []Sandbox {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.nodes[name]; n != nil && n.synced {
		return slices.Collect(maps.Values(n.older))
	}
	return nil
}

// Lookup finds a claimed sandbox. synced is false when its node's stream is
// lost, so that the state may be old.
func (t *Table) Lookup(id sandbox.ID) (sb Sandbox, synced, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p := t.sandboxes[id]
	if p == nil {
		return Sandbox{}, false, false
	}
	return *p, t.nodes[p.Node].synced, true
}

// SandboxesOf lists the sandboxes of a synced node; false when it is not.
func (t *Table) SandboxesOf(name string) ([]Sandbox, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.nodes[name]
	if n == nil || !n.synced {
		return nil, false
	}
	list := make([]Sandbox, 0, len(n.own))
	for id := range n.own {
		list = append(list, *t.sandboxes[id])
	}
	return list, true
}

// putSandbox ignores a sandbox that another node has in a later generation: the
// teller is a node that was fenced.
func (t *Table) putSandbox(n *node, sb Sandbox) {
	old := t.sandboxes[sb.ID]
	if old != nil && old.Node != n.Name {
		if old.Generation >= sb.Generation {
			n.older[sb.ID], old.Contested = sb, true
			return
		}
		delete(t.nodes[old.Node].own, sb.ID)
		t.nodes[old.Node].older[sb.ID] = *old
	}
	delete(n.older, sb.ID)
	sb.Contested = t.contested(sb.ID)
	t.dropSandbox(sb.ID)
	n.own[sb.ID] = true
	sb.silent = time.Time{}
	if sb.State == sandbox.Unknown {
		if sb.silent = time.Now(); old != nil && !old.silent.IsZero() {
			sb.silent = old.silent
		}
	}
	t.sandboxes[sb.ID] = &sb
	t.claimed[sb.PoolKey]++
}

// contested reports whether a node says something older of a sandbox.
func (t *Table) contested(id sandbox.ID) bool {
	for _, n := range t.nodes {
		if _, has := n.older[id]; has {
			return true
		}
	}
	return false
}

func (t *Table) dropSandbox(id sandbox.ID) {
	sb := t.sandboxes[id]
	if sb == nil {
		return
	}
	delete(t.sandboxes, id)
	if t.claimed[sb.PoolKey]--; t.claimed[sb.PoolKey] == 0 {
		delete(t.claimed, sb.PoolKey)
	}
}
