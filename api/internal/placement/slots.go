package placement

import (
	"math/rand/v2"
	"slices"

	"s0.run/internal/sandbox"
)

// Slot is a free slot of a node.
type Slot struct {
	Node       string
	ID         sandbox.ID
	Generation sandbox.Generation
	PoolKey    string
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

func (t *Table) addSlot(n *node, s Slot) {
	if _, known := n.slots[s.ID]; known {
		return
	}
	if t.closed(n) {
		n.parked[s.ID] = s
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
	clear(n.parked)
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
