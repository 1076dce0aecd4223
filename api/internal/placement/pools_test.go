package placement

import (
	"testing"
	"time"

	"s0.run/internal/sandbox"
)

// A pool's status is what all the nodes that can be asked say together.
func TestPoolsOverSeveralNodes(t *testing.T) {
	t.Parallel()
	table := New()
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	node := func(name string, slots int, p Pool) {
		s := NewSnapshot()
		for range slots {
			id, err := sandbox.NewID("local")
			if err != nil {
				t.Fatal(err)
			}
			s.Slots[id] = Slot{Node: name, ID: id, PoolKey: "a:1"}
		}
		id, err := sandbox.NewID("local")
		if err != nil {
			t.Fatal(err)
		}
		s.Sandboxes[id] = Sandbox{Node: name, ID: id, PoolKey: "a:0", State: sandbox.Running}
		p.Key = "a:1"
		s.Pools[p.Key] = p
		table.Sync(Node{Name: name, Classes: []sandbox.RuntimeClass{sandbox.GVisor}}, s)
	}
	all := func(string) bool { return true }
	node("n1", 2, Pool{Ready: true, Since: at(10), At: at(100)})
	node("n2", 1, Pool{Ready: true, Since: at(20), At: at(200), Warming: 1})
	if p := table.Pools(all); !p.Ready || !p.Since.Equal(at(20)) || !p.At.Equal(at(200)) || p.Warming != 1 || table.Idle("a:1") != 3 || table.Claimed(all) != 2 {
		t.Errorf("ready on both: %+v, %d idle", p, table.Idle("a:1"))
	}
	table.PoolChanged("n1", Pool{Key: "a:1", Since: at(30), At: at(300), LastError: "no"})
	table.PoolChanged("n2", Pool{Key: "a:1", Since: at(40), At: at(250)})
	if p := table.Pools(all); p.Ready || !p.Since.Equal(at(30)) || !p.At.Equal(at(300)) || p.LastError != "no" {
		t.Errorf("short on both: %+v", p)
	}
	table.Lost("n1")
	if p := table.Pools(all); p.LastError != "" || !p.Since.Equal(at(40)) || table.Idle("a:1") != 1 || table.Claimed(all) != 2 {
		t.Errorf("with one lost: %+v, %d idle, %d claimed", p, table.Idle("a:1"), table.Claimed(all))
	}
}

func TestC01_ColdStartsGoWhereTheClassIs(t *testing.T) {
	t.Parallel()
	table := New()
	table.Sync(Node{Name: "n1", Classes: []sandbox.RuntimeClass{sandbox.GVisor}}, NewSnapshot())
	if name, ok := table.ColdNode(sandbox.Runc, nil); ok || table.Offers(sandbox.Runc) {
		t.Errorf("runc on %s, which does not offer it", name)
	}
	table.Sync(Node{Name: "n2", Classes: []sandbox.RuntimeClass{sandbox.GVisor, sandbox.Runc}}, NewSnapshot())
	if name, ok := table.ColdNode(sandbox.Runc, nil); !ok || name != "n2" || !table.Offers(sandbox.Runc) {
		t.Errorf("runc on %q", name)
	}
	table.Lost("n2")
	if table.Offers(sandbox.Runc) || !table.Offers(sandbox.GVisor) {
		t.Error("a lost node offers what it had")
	}
}

func TestC01_WhatIsStoredGoesWhereTheClassIs(t *testing.T) {
	t.Parallel()
	table := New()
	table.Sync(Node{Name: "n1", ObjectStore: true, Classes: []sandbox.RuntimeClass{sandbox.GVisor}}, NewSnapshot())
	if name, ok := table.StoreNode(sandbox.Runc, nil); ok {
		t.Errorf("runc on %s, which does not offer it", name)
	}
	for _, class := range []sandbox.RuntimeClass{sandbox.GVisor, ""} {
		if name, ok := table.StoreNode(class, nil); !ok || name != "n1" {
			t.Errorf("class %q on %q", class, name)
		}
	}
	table.Sync(Node{Name: "n2", ObjectStore: true, Classes: []sandbox.RuntimeClass{sandbox.Runc}}, NewSnapshot())
	if name, ok := table.StoreNode(sandbox.Runc, nil); !ok || name != "n2" {
		t.Errorf("runc on %q", name)
	}
	if name, ok := table.StoreNode(sandbox.Runc, map[string]bool{"n2": true}); ok {
		t.Errorf("again on %s", name)
	}
}

// A node that is lost may have the only object store, unless it had none.
func TestNoNodeHasAnObjectStore(t *testing.T) {
	t.Parallel()
	table := New()
	is := func(when string, want bool) {
		t.Helper()
		if got := table.NoStore(); got != want {
			t.Errorf("%s: %v", when, got)
		}
	}
	is("without a node", false)
	table.Sync(Node{Name: "n1"}, NewSnapshot())
	is("with one that has none", true)
	table.Lost("n1")
	is("when it is lost", true)
	table.Sync(Node{Name: "n2", ObjectStore: true}, NewSnapshot())
	is("with one that has it", false)
	table.Lost("n2")
	is("when that is lost", false)
}
