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
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"s0.run/internal/sandbox"
)

// Slot is a free slot of a node.
type Slot struct {
	Node       string
	ID         sandbox.ID
	Generation sandbox.Generation
	PoolKey    string
}

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

	silent time.Time // since when its node can't tell its state; zero while it can
}

// Pool is what a node says of one of its pools, beside its slots and sandboxes,
// which come one by one: see [Table.Idle] and [Table.Claimed].
type Pool struct {
	Key       string
	Warming   uint32
	LastError string // why the last warm-up failed, for the operator; empty when it did not
	Message   string // what of it, or of why slots still warm, the template's owner may see

	Ready bool      // the node has of it what it should
	Since time.Time // when that last changed, by the node's clock
	At    time.Time // when the node last said anything of it, by ours
}

// Snapshot is all that a node has, told at once.
type Snapshot struct {
	Slots     map[sandbox.ID]Slot
	Sandboxes map[sandbox.ID]Sandbox
	Pools     map[string]Pool
}

// NewSnapshot makes an empty snapshot.
func NewSnapshot() *Snapshot {
	return &Snapshot{Slots: map[sandbox.ID]Slot{}, Sandboxes: map[sandbox.ID]Sandbox{}, Pools: map[string]Pool{}}
}

// Node describes a node to those who choose between them.
type Node struct {
	Name          string
	NetworkPolicy bool   // it enforces network policy
	ObjectStore   bool   // it has the object store
	Volumes       string // the store that its volumes are in; empty: it has none
	Buckets       bool   // a bucket can be a volume of its
	Classes       []sandbox.RuntimeClass
}

// Offers reports whether the node can run sandboxes of a class.
func (n Node) Offers(class sandbox.RuntimeClass) bool { return slices.Contains(n.Classes, class) }

// Table is safe for concurrent use.
type Table struct {
	made time.Time

	mu        sync.RWMutex
	nodes     map[string]*node
	free      map[string]*slotList    // by pool key
	sandboxes map[sandbox.ID]*Sandbox // of all nodes
	claimed   map[string]int          // sandboxes by pool key
}

type node struct {
	Node
	synced bool
	lost   time.Time              // since when it is not synced
	slots  map[sandbox.ID]string  // pool keys of its free slots
	own    map[sandbox.ID]bool    // its sandboxes
	older  map[sandbox.ID]Sandbox // what it still says of sandboxes that are another node's
	pools  map[string]Pool
}

// New makes an empty table.
func New() *Table {
	return &Table{made: time.Now(), nodes: map[string]*node{}, free: map[string]*slotList{}, sandboxes: map[sandbox.ID]*Sandbox{}, claimed: map[string]int{}}
}

// Sync replaces everything that is known of a node: its stream has told all.
func (t *Table) Sync(n Node, s *Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.nodes[n.Name]; old != nil {
		t.dropSlots(old)
		for id := range old.own {
			t.dropSandbox(id)
		}
	}
	maps.DeleteFunc(t.free, func(_ string, l *slotList) bool { return len(l.slots) == 0 }) // of templates that changed
	fresh := &node{Node: n, synced: true, slots: map[sandbox.ID]string{}, own: map[sandbox.ID]bool{}, older: map[sandbox.ID]Sandbox{}, pools: s.Pools}
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
		if n.own[id] {
			delete(n.own, id)
			t.dropSandbox(id)
		}
	})
}

// PoolChanged replaces a pool's counters.
func (t *Table) PoolChanged(name string, p Pool) {
	t.update(name, func(n *node) { n.pools[p.Key] = p })
}

// Take takes a free slot of a pool out of the table, chosen by chance so that
// replicas rarely want the same one. It reports false when there is none.
func (t *Table) Take(poolKey string) (Slot, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.free[poolKey]
	if list == nil || len(list.slots) == 0 {
		return Slot{}, false
	}
	return t.take(list, rand.IntN(len(list.slots))), true
}

// TakeAt is Take of the slots of some nodes alone.
func (t *Table) TakeAt(poolKey string, nodes []string) (Slot, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.free[poolKey]
	if list == nil || len(list.slots) == 0 {
		return Slot{}, false
	}
	first := rand.IntN(len(list.slots))
	for i := range list.slots {
		at := (first + i) % len(list.slots)
		if slices.Contains(nodes, list.slots[at].Node) {
			return t.take(list, at), true
		}
	}
	return Slot{}, false
}

func (t *Table) take(list *slotList, at int) Slot {
	s := list.slots[at]
	list.remove(s.ID)
	delete(t.nodes[s.Node].slots, s.ID)
	return s
}

// ColdNode chooses, of the nodes that offer a class, the one with the fewest
// sandboxes for a start without a slot, except those that refused already.
func (t *Table) ColdNode(class sandbox.RuntimeClass, except map[string]bool) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	best, fewest := "", 0
	for name, n := range t.nodes {
		if n.synced && n.Offers(class) && !except[name] && (best == "" || len(n.own) < fewest) {
			best, fewest = name, len(n.own)
		}
	}
	return best, best != ""
}

// StoreNode chooses, of the nodes that have the object store, the one with the fewest
// sandboxes, except those that were asked already.
func (t *Table) StoreNode(except map[string]bool) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	best, fewest := "", 0
	for name, n := range t.nodes {
		if n.synced && n.ObjectStore && !except[name] && (best == "" || len(n.own) < fewest) {
			best, fewest = name, len(n.own)
		}
	}
	return best, best != ""
}

// NoStore reports whether every node that there is can be asked and none has an object
// store.
func (t *Table) NoStore() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, n := range t.nodes {
		if !n.synced || n.ObjectStore {
			return false
		}
	}
	return len(t.nodes) > 0
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

// Synced lists the nodes whose streams are whole.
func (t *Table) Synced() []Node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var list []Node
	for _, n := range t.nodes {
		if n.synced {
			list = append(list, n.Node)
		}
	}
	return list
}

// Offers reports whether a node that can be asked runs sandboxes of a class.
func (t *Table) Offers(class sandbox.RuntimeClass) bool {
	return slices.ContainsFunc(t.Synced(), func(n Node) bool { return n.Offers(class) })
}

// IsSynced reports whether a node's stream is whole.
func (t *Table) IsSynced(name string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.nodes[name]
	return n != nil && n.synced
}

// SilenceOf is for how long nobody could tell how a sandbox is: its node could not be
// asked, or its node gets no answer from it.
func (t *Table) SilenceOf(name string, id sandbox.ID) time.Duration {
	silence := t.Silence(name)
	t.mu.RLock()
	defer t.mu.RUnlock()
	if sb := t.sandboxes[id]; sb != nil && sb.Node == name && !sb.silent.IsZero() {
		silence = max(silence, time.Since(sb.silent))
	}
	return silence
}

// Silence is for how long a node could not be asked; 0 while its stream is whole.
func (t *Table) Silence(name string) time.Duration {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.nodes[name]
	switch {
	case n == nil:
		return time.Since(t.made)
	case n.synced:
		return 0
	}
	return time.Since(n.lost)
}

// Pools sums up the pools whose keys match over all nodes that can be asked. Of the
// last errors, one is kept. The sum is ready when all are, since the last of them
// is; otherwise it is not since the first of them is not.
func (t *Table) Pools(match func(key string) bool) Pool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var sum Pool
	var ready, short []time.Time
	for _, n := range t.nodes {
		for key, p := range n.pools {
			if !n.synced || !match(key) {
				continue
			}
			if p.Ready {
				ready = append(ready, p.Since)
			} else {
				short = append(short, p.Since)
			}
			if p.At.After(sum.At) {
				sum.At = p.At
			}
			sum.Warming += p.Warming
			if p.LastError != "" {
				sum.LastError = p.LastError
			}
			if p.Message != "" {
				sum.Message = p.Message
			}
		}
	}
	switch {
	case len(short) > 0:
		sum.Since = slices.MinFunc(short, time.Time.Compare)
	case len(ready) > 0:
		sum.Ready, sum.Since = true, slices.MaxFunc(ready, time.Time.Compare)
	}
	return sum
}

// Free counts the slots that can be taken.
func (t *Table) Free() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	total := 0
	for _, list := range t.free {
		total += len(list.slots)
	}
	return total
}

// Idle counts the slots of a pool that can be taken.
func (t *Table) Idle(poolKey string) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if list := t.free[poolKey]; list != nil {
		return len(list.slots)
	}
	return 0
}

// Claimed counts the sandboxes of the pools whose keys match.
func (t *Table) Claimed(match func(key string) bool) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	total := 0
	for key, n := range t.claimed {
		if match(key) {
			total += n
		}
	}
	return total
}

func (t *Table) addSlot(n *node, s Slot) {
	if _, known := n.slots[s.ID]; known {
		return
	}
	list := t.free[s.PoolKey]
	if list == nil {
		list = &slotList{at: map[sandbox.ID]int{}}
		t.free[s.PoolKey] = list
	}
	n.slots[s.ID] = s.PoolKey
	list.add(s)
}

func (t *Table) dropSlots(n *node) {
	for id, key := range n.slots {
		t.free[key].remove(id)
	}
	clear(n.slots)
}

// putSandbox ignores a sandbox that another node has in a later generation: the
// teller is a node that was fenced.
func (t *Table) putSandbox(n *node, sb Sandbox) {
	old := t.sandboxes[sb.ID]
	if old != nil && old.Node != n.Name {
		if old.Generation >= sb.Generation {
			n.older[sb.ID] = sb
			return
		}
		delete(t.nodes[old.Node].own, sb.ID)
		t.nodes[old.Node].older[sb.ID] = *old
	}
	delete(n.older, sb.ID)
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

// slotList is a set of slots with a random choice in constant time.
type slotList struct {
	slots []Slot
	at    map[sandbox.ID]int // index into slots
}

func (l *slotList) add(s Slot) {
	l.at[s.ID] = len(l.slots)
	l.slots = append(l.slots, s)
}

func (l *slotList) remove(id sandbox.ID) {
	i, ok := l.at[id]
	if !ok {
		return
	}
	last := len(l.slots) - 1
	l.slots[i] = l.slots[last]
	l.at[l.slots[i].ID] = i
	l.slots = l.slots[:last]
	delete(l.at, id)
}
