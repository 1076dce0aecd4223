package placement

import (
	"maps"
	"slices"
	"time"

	"s0.run/internal/sandbox"
)

// Node describes a node to those who choose between them.
type Node struct {
	Name          string
	NetworkPolicy bool   // it enforces network policy
	ObjectStore   bool   // it has the object store
	Volumes       string // the store that its volumes are in; empty: it has none
	Buckets       bool   // a bucket can be a volume of its
	Classes       []sandbox.RuntimeClass
	Draining      bool // what runs there is paused
	Closed        bool // nothing new goes there: it is drained, or its Kubernetes node is cordoned
}

// Offers reports whether the node can run sandboxes of a class.
func (n Node) Offers(class sandbox.RuntimeClass) bool { return slices.Contains(n.Classes, class) }

// ColdNode chooses, of the nodes that offer a class, the one with the fewest
// sandboxes for a start without a slot, except those that refused already.
func (t *Table) ColdNode(class sandbox.RuntimeClass, except map[string]bool) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	best, fewest := "", 0
	for name, n := range t.nodes {
		if n.synced && !t.closed(n) && n.Offers(class) && !except[name] && (best == "" || len(n.own) < fewest) {
			best, fewest = name, len(n.own)
		}
	}
	return best, best != ""
}

// StoreNode chooses, of the nodes that have the object store and offer a class, the one
// with the fewest sandboxes, except those that were asked already. Without a class any will do.
func (t *Table) StoreNode(class sandbox.RuntimeClass, except map[string]bool) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	best, fewest := "", 0
	for name, n := range t.nodes {
		if n.synced && n.ObjectStore && !t.closed(n) && (class == "" || n.Offers(class)) && !except[name] && (best == "" || len(n.own) < fewest) {
			best, fewest = name, len(n.own)
		}
	}
	return best, best != ""
}

// NoStore reports whether no node has an object store, be it one that can't be asked now:
// a node that is gone for good has none, if it had none.
func (t *Table) NoStore() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, n := range t.nodes {
		if n.ObjectStore {
			return false
		}
	}
	return len(t.nodes) > 0
}

// Drain says which nodes get nothing new, and no others. It reports whether they are
// others than before.
func (t *Table) Drain(names map[string]bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if maps.Equal(t.draining, names) {
		return false
	}
	t.draining = names
	for _, n := range t.nodes {
		t.settle(n)
	}
	return true
}

// Cordon says whether a node's own Kubernetes node lets nothing new there. It reports
// whether it is otherwise than before.
func (t *Table) Cordon(name string, cordoned bool) (changed bool) {
	t.update(name, func(n *node) {
		changed = n.cordoned != cordoned
		n.cordoned = cordoned
		t.settle(n)
	})
	return changed
}

// Closed reports whether a node gets nothing new.
func (t *Table) Closed(name string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.nodes[name]
	return t.draining[name] || n != nil && n.cordoned
}

func (t *Table) closed(n *node) bool { return t.draining[n.Name] || n.cordoned }

// settle keeps a node's free slots where everybody or nobody gets them.
func (t *Table) settle(n *node) {
	if t.closed(n) {
		t.park(n)
	} else {
		t.unpark(n)
	}
}

func (t *Table) park(n *node) {
	for id, key := range n.slots {
		list := t.free[key]
		n.parked[id] = list.slots[list.at[id]]
		list.remove(id)
	}
	clear(n.slots)
}

func (t *Table) unpark(n *node) {
	parked := slices.Collect(maps.Values(n.parked))
	clear(n.parked)
	for _, s := range parked {
		t.addSlot(n, s)
	}
}

// Synced lists the nodes whose streams are whole.
func (t *Table) Synced() []Node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var list []Node
	for _, n := range t.nodes {
		if n.synced {
			of := n.Node
			of.Draining, of.Closed = t.draining[of.Name], t.closed(n)
			list = append(list, of)
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
