package lifecycle_test

import (
	"testing"

	"s0.run/internal/sandbox"
	"s0.run/noded/internal/noop"
)

// X29: the files that the runtime keeps of a sandbox go with it when its shim can't remove
// them any more, and those of nobody with the first sweep. What runs keeps its own.
func TestX29_WhatTheRuntimeKeptGoes(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	rt := noop.Runtime{Node: m.node}
	n := m.boot()
	slots := n.warm(2)
	for _, id := range slots {
		n.claim(id)
	}
	rt.LoseTask(slots[0])
	eventually(t, "all of it is gone", func() bool { return len(m.node.Left()) == 3 })
	n.stop()
	nobody, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	rt.Leave(nobody)
	m.boot()
	eventually(t, "nobody's files are gone", func() bool { return len(m.node.Left()) == 3 })
	if kept, err := rt.Remains(); err != nil || len(kept) != 1 || kept[0] != slots[1] {
		t.Errorf("files are kept of %v (%v), want of %s", kept, err, slots[1])
	}
}
