package placement

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"s0.run/internal/sandbox"
)

func slot(node, id, key string) Slot {
	return Slot{Node: node, ID: sandbox.ID(id), Generation: 1, PoolKey: key}
}

func synced(t *Table, name string, slots ...Slot) {
	s := NewSnapshot()
	for _, sl := range slots {
		s.Slots[sl.ID] = sl
	}
	t.Sync(Node{Name: name, Classes: []sandbox.RuntimeClass{sandbox.GVisor}}, s)
}

func TestTakeNeverGivesASlotTwice(t *testing.T) {
	t.Parallel()
	table := New()
	synced(table, "n1")
	synced(table, "n2")
	const n = 200
	for i := range n {
		table.SlotFree(slot(fmt.Sprintf("n%d", i%2+1), fmt.Sprintf("s%d", i), "p"))
	}
	var mu sync.Mutex
	taken := map[sandbox.ID]bool{}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for {
				s, ok := table.Take("p")
				if !ok {
					return
				}
				mu.Lock()
				if taken[s.ID] {
					t.Errorf("%s was given twice", s.ID)
				}
				taken[s.ID] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(taken) != n || table.Free() != 0 || table.Idle("p") != 0 {
		t.Fatalf("took %d of %d, %d left", len(taken), n, table.Free())
	}
}

func TestTakeIsPerPool(t *testing.T) {
	t.Parallel()
	table := New()
	synced(table, "n1", slot("n1", "a", "p1"))
	if s, ok := table.Take("p2"); ok {
		t.Fatalf("took %v from an empty pool", s)
	}
	if s, ok := table.Take("p1"); !ok || s.ID != "a" {
		t.Fatalf("%v %v", s, ok)
	}
}

// A node whose Kubernetes node is cordoned gets nothing new, whatever becomes of its stream,
// and has what it had when that is over. Its drain is another matter.
func TestACordonedNodeGetsNothingNew(t *testing.T) {
	t.Parallel()
	table := New()
	synced(table, "n1", slot("n1", "a", "p"))
	if !table.Cordon("n1", true) || table.Cordon("n1", true) {
		t.Error("who hears of it first and again is told the same")
	}
	table.SlotFree(slot("n1", "b", "p"))
	closed := func() bool {
		_, taken := table.Take("p")
		_, cold := table.ColdNode(sandbox.GVisor, nil)
		return !taken && !cold && table.Closed("n1")
	}
	if !closed() || table.Synced()[0].Draining || !table.Synced()[0].Closed {
		t.Errorf("cordoned it is %+v", table.Synced())
	}
	table.Lost("n1")
	if !table.Closed("n1") {
		t.Error("it is open while nobody hears it")
	}
	s, yes, no := NewSnapshot(), true, false
	s.Slots["a"] = slot("n1", "a", "p")
	begin := func(cordoned *bool) {
		s.Cordoned = cordoned
		table.Sync(Node{Name: "n1", Classes: []sandbox.RuntimeClass{sandbox.GVisor}}, s)
	}
	if begin(nil); !closed() {
		t.Error("it is open after its stream began anew, before it was told itself")
	}
	if begin(&no); closed() {
		t.Error("it is cordoned still, though it says otherwise")
	}
	if begin(&yes); !closed() {
		t.Error("it is open after its stream began anew")
	}
	table.Drain(map[string]bool{"n1": true})
	table.Cordon("n1", false)
	if !closed() || !table.Synced()[0].Draining {
		t.Error("with its cordon its drain is over, too")
	}
	table.Drain(map[string]bool{})
	if table.Closed("n1") || table.Free() != 1 {
		t.Errorf("in the end %d slots are free", table.Free())
	}
}

func TestALostNodeGivesNoSlotsButKeepsItsSandboxes(t *testing.T) {
	t.Parallel()
	table := New()
	synced(table, "n1", slot("n1", "a", "p"))
	table.SandboxChanged(Sandbox{Node: "n1", ID: "x", Generation: 1, State: sandbox.Running, Team: "t"})
	table.Lost("n1")
	if _, ok := table.Take("p"); ok {
		t.Error("a slot of a lost node was given")
	}
	if sb, synced, ok := table.Lookup("x"); !ok || synced || sb.Team != "t" {
		t.Errorf("%+v %v %v", sb, synced, ok)
	}
	if _, ok := table.SandboxesOf("n1"); ok {
		t.Error("a lost node must not be listed")
	}
	if name, ok := table.ColdNode(sandbox.GVisor, nil); ok {
		t.Errorf("%s was chosen for a cold start", name)
	}
	table.SlotFree(slot("n1", "late", "p"))
	table.SandboxGone("n1", "x")
	if _, ok := table.Take("p"); ok {
		t.Error("a lost stream has no say any more")
	}
	synced(table, "n1", slot("n1", "b", "p"))
	if _, _, ok := table.Lookup("x"); ok {
		t.Error("what the new snapshot lacks must be gone")
	}
	if s, ok := table.Take("p"); !ok || s.ID != "b" {
		t.Errorf("%v %v", s, ok)
	}
}

func TestR2_AFencedNodeDoesNotHideALaterGeneration(t *testing.T) {
	t.Parallel()
	table := New()
	synced(table, "old")
	synced(table, "new")
	table.SandboxChanged(Sandbox{Node: "old", ID: "x", Generation: 1})
	table.SandboxChanged(Sandbox{Node: "new", ID: "x", Generation: 2})
	table.SandboxChanged(Sandbox{Node: "old", ID: "x", Generation: 1})
	table.SandboxGone("old", "x")
	if sb, _, ok := table.Lookup("x"); !ok || sb.Node != "new" {
		t.Fatalf("%+v %v", sb, ok)
	}
}

// H03: what a node says of another's sandbox is not believed for that alone; whichever of
// them was heard first, it is known that they disagree, until one of them has it no more.
func TestH03_ANodeThatHasAnothersSandbox(t *testing.T) {
	t.Parallel()
	for _, order := range [][]string{{"ours", "rogue"}, {"rogue", "ours"}} {
		table := New()
		synced(table, "ours")
		synced(table, "rogue")
		for _, node := range order {
			table.SandboxChanged(Sandbox{Node: node, ID: "x", Generation: map[string]sandbox.Generation{"ours": 1, "rogue": 9}[node], Team: "t"})
		}
		if sb, _, ok := table.Lookup("x"); !ok || !sb.Contested {
			t.Errorf("%v: %+v, %v", order, sb, ok)
		}
		table.SandboxGone("ours", "x")
		if sb, _, ok := table.Lookup("x"); !ok || sb.Contested {
			t.Errorf("%v, then one of them has it no more: %+v, %v", order, sb, ok)
		}
	}
}

func TestColdNodePrefersTheEmptierOne(t *testing.T) {
	t.Parallel()
	table := New()
	synced(table, "n1")
	synced(table, "n2")
	table.SandboxChanged(Sandbox{Node: "n1", ID: "x"})
	if n, _ := table.ColdNode(sandbox.GVisor, nil); n != "n2" {
		t.Errorf("chose %s", n)
	}
	if n, _ := table.ColdNode(sandbox.GVisor, map[string]bool{"n2": true}); n != "n1" {
		t.Errorf("chose %s", n)
	}
	if n, ok := table.ColdNode(sandbox.GVisor, map[string]bool{"n1": true, "n2": true}); ok {
		t.Errorf("chose %s", n)
	}
}

func TestPoolsAddUpOverNodes(t *testing.T) {
	t.Parallel()
	table := New()
	synced(table, "n1")
	synced(table, "n2")
	table.PoolChanged("n1", Pool{Key: "a", Warming: 2})
	table.PoolChanged("n2", Pool{Key: "a", Warming: 1, LastError: "no image at node", Message: "no image"})
	table.PoolChanged("n2", Pool{Key: "b", Warming: 100})
	got := table.Pools(func(key string) bool { return key == "a" })
	if got.Warming != 3 || got.LastError != "no image at node" || got.Message != "no image" {
		t.Fatalf("%+v", got)
	}
}

// Whatever streams say in whatever order, the lists and indexes agree.
func TestTableStaysConsistent(t *testing.T) {
	t.Parallel()
	table := New()
	rng := rand.New(rand.NewPCG(1, 2))
	name := func() string { return fmt.Sprintf("n%d", rng.IntN(3)) }
	id := func() string { return fmt.Sprintf("s%d", rng.IntN(30)) }
	for range 20_000 {
		switch rng.IntN(7) {
		case 0:
			n := name()
			synced(table, n, slot(n, n+id(), "p"), slot(n, n+id(), "q"))
		case 1:
			table.Lost(name())
		case 2, 3:
			n := name()
			table.SlotFree(slot(n, n+id(), "p"))
		case 4:
			n := name()
			table.SlotTaken(n, sandbox.ID(n+id()))
		case 5:
			table.Take("p")
		case 6:
			n := name()
			table.SandboxChanged(Sandbox{Node: n, ID: sandbox.ID(id()), Generation: sandbox.Generation(rng.IntN(3))})
		}
		check(t, table)
	}
}

func check(t *testing.T, table *Table) {
	t.Helper()
	listed := 0
	for key, l := range table.free {
		if len(l.slots) != len(l.at) {
			t.Fatalf("pool %s: %d slots, %d indexed", key, len(l.slots), len(l.at))
		}
		for i, s := range l.slots {
			if l.at[s.ID] != i || table.nodes[s.Node].slots[s.ID] != key || !table.nodes[s.Node].synced {
				t.Fatalf("slot %+v is not where it says", s)
			}
		}
		listed += len(l.slots)
	}
	owned := 0
	for _, n := range table.nodes {
		listed -= len(n.slots)
		owned += len(n.own)
		for id := range n.own {
			if table.sandboxes[id].Node != n.Name {
				t.Fatalf("sandbox %s belongs to two nodes", id)
			}
		}
	}
	if listed != 0 || owned != len(table.sandboxes) {
		t.Fatalf("lists disagree: %d slots, %d of %d sandboxes", listed, owned, len(table.sandboxes))
	}
	if n := table.Claimed(func(string) bool { return true }); n != owned {
		t.Fatalf("%d sandboxes are counted, %d are there", n, owned)
	}
}

// R6: how long nobody can tell how a sandbox is, is counted for each of them.
func TestSilenceOf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		table := New()
		snapshot := NewSnapshot()
		hung := Sandbox{Node: "n", ID: "hung", State: sandbox.Running}
		snapshot.Sandboxes["hung"] = hung
		snapshot.Sandboxes["well"] = Sandbox{Node: "n", ID: "well", State: sandbox.Running}
		table.Sync(Node{Name: "n"}, snapshot)
		time.Sleep(time.Minute) // of the bubble's clock
		hung.State = sandbox.Unknown
		for range 2 {
			table.SandboxChanged(hung)
			time.Sleep(time.Minute)
		}
		if got := table.SilenceOf("n", "hung"); got != 2*time.Minute {
			t.Errorf("silent for %s", got)
		}
		if got := table.SilenceOf("n", "well"); got != 0 {
			t.Errorf("its neighbour is silent for %s", got)
		}
		hung.State = sandbox.Running
		table.SandboxChanged(hung)
		if got := table.SilenceOf("n", "hung"); got != 0 {
			t.Errorf("it answers again, but is silent for %s", got)
		}
		table.Lost("n")
		time.Sleep(time.Minute)
		if got := table.SilenceOf("n", "well"); got != time.Minute {
			t.Errorf("its node is away, and it is silent for %s", got)
		}
	})
}
