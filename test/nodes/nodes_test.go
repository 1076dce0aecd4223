package nodes_test

import (
	"context"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"s0.run/api"
	"s0.run/internal/nodeapi"
)

// TestX45_X47_SeveralNodes is the life of a cluster of three nodes. Its parts build on each other.
func TestX45_X47_SeveralNodes(t *testing.T) {
	if os.Getenv("S0_NODES") == "" {
		t.Skip("takes minutes: make test-nodes")
	}
	c := startCluster(t, func(*api.Config) {})
	for i, name := range []string{"n1", "n2", "n3"} {
		c.node(i, name)
	}
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Spread", c.testSpread}, {"Drain", c.testDrain}, {"X45_X47_LostAndBack", c.testLost}, {"X47_GoneForGood", c.testRemoved},
	} {
		ok := t.Run(part.name, func(t *testing.T) {
			whole := c.T
			c.T = t
			defer func() { c.T = whole }()
			part.run(t)
		})
		if !ok {
			return
		}
	}
}

// filled waits until nodes have the pool's slots, as many each.
func (c *cluster) filled(names ...string) {
	c.Helper()
	c.until("the pool's slots on "+strings.Join(names, ", "), func() bool {
		return !slices.ContainsFunc(names, func(name string) bool { return c.nodes[name].free() < pool/len(names) })
	})
}

// Each node has its share of the warm slots, and claims go where there are some.
func (c *cluster) testSpread(t *testing.T) {
	c.filled("n1", "n2", "n3")
	at := map[string]int{}
	var ids []string
	for range 45 {
		id, node := c.claim()
		at[node]++
		ids = append(ids, id)
	}
	t.Logf("claims: %v", at)
	for name := range c.nodes {
		if at[name] == 0 {
			t.Errorf("no claim of %d went to %s", len(ids), name)
		}
	}
	for _, id := range ids {
		c.delete(id)
	}
}

// A drained node gets nothing new. What ran there is paused, and goes on elsewhere.
func (c *cluster) testDrain(t *testing.T) {
	id := c.claimAt("n3")
	c.must(c.admin.Drain(context.Background(), "n3", true))
	c.until("what runs is paused and stored", func() bool { return c.row(id) == "paused n3 stored" })
	c.until("it has no slots", func() bool { return c.nodes["n3"].free() == 0 })
	c.filled("n1", "n2")
	for range 20 {
		other, node := c.claim()
		if node == "n3" {
			t.Error("a drained node got a claim")
		}
		c.delete(other)
	}
	if node := c.resume(id); node == "n3" {
		t.Error("resumed at the drained node")
	}
	c.until("nothing of it is left at the drained node", func() bool { return c.nodes["n3"].has(id) == "" })
	c.must(c.admin.Drain(context.Background(), "n3", false))
	c.filled("n1", "n2", "n3")
	c.delete(c.claimAt("n3"))
	c.delete(id)
}

// X45, X47: one node dies at once, another one is cut off. What was stored goes on elsewhere;
// when they are back, what they still have of it ends, and what ran on goes on.
func (c *cluster) testLost(t *testing.T) {
	dead, cut := c.nodes["n1"], c.nodes["n2"]
	stored := map[string]string{"n1": c.claimAt("n1"), "n2": c.claimAt("n2")}
	for _, id := range stored {
		c.pause(id)
	}
	running, doomed := c.claimAt("n2"), c.claimAt("n2")
	dead.kill()
	cut.cut(true)
	for name, id := range stored {
		if at := c.resume(id); at != "n3" {
			t.Errorf("what was stored by %s was resumed at %s", name, at)
		}
	}
	if state := cut.has(stored["n2"]); state != "paused" {
		t.Errorf("the node that is cut off has it as %q", state)
	}
	if status := c.call(http.MethodGet, "/api/v1/sandboxes/"+running, nil, nil); status != http.StatusServiceUnavailable {
		t.Errorf("what nobody can tell about is answered with %d", status)
	}
	c.delete(doomed) // is decided, and carried out when that is possible
	for range 10 {
		id, node := c.claim()
		if node != "n3" {
			t.Errorf("a claim went to %s", node)
		}
		c.delete(id)
	}
	if state := cut.has(doomed); state != "running" {
		t.Errorf("the node that is cut off has what was deleted as %q", state)
	}

	cut.cut(false)
	c.until("what went on elsewhere has ended at the node that is back", func() bool { return cut.has(stored["n2"]) == "" })
	c.until("what was deleted meanwhile has ended", func() bool { return cut.has(doomed) == "" })
	if state, row := cut.has(running), c.row(running); state != "running" || row != "running n2" {
		t.Errorf("what ran on is %q, and its row %q", state, row)
	}
	dead.start() // with its certificate: its token is used up
	c.until("what went on elsewhere has ended at the node that was dead", func() bool { return dead.up() && dead.has(stored["n1"]) == "" })
	c.filled("n1", "n2", "n3")
	for name, id := range stored {
		if row := c.row(id); row != "running n3" {
			t.Errorf("what was stored by %s is %q", name, row)
		}
		c.delete(id)
	}
	c.delete(running)
}

// up reports whether the node answers.
func (n *node) up() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := n.rpc().Info(ctx, &nodeapi.InfoRequest{})
	return err == nil
}

// X47: a node is declared gone. Its sandboxes fail, or go on elsewhere at once; if it comes
// back after all it is nobody, until it is admitted anew, and what it then still has ends.
func (c *cluster) testRemoved(t *testing.T) {
	gone := c.nodes["n1"]
	running, stored := c.claimAt("n1"), c.claimAt("n1")
	c.pause(stored)
	gone.cut(true)
	c.must(c.admin.Remove(context.Background(), "n1"))
	if names := c.members(); !slices.Equal(names, []string{"n2", "n3"}) {
		t.Errorf("members are %v", names)
	}
	if row := c.row(running); row != "failed n1" {
		t.Errorf("what ran there is %q", row)
	}
	if at := c.resume(stored); at == "n1" {
		t.Error("it was resumed at a node that is gone")
	}
	gone.cut(false)
	gone.kill()
	gone.start()
	c.until("it is told that it is no member", func() bool {
		text, err := os.ReadFile(gone.log.Name())
		return err == nil && strings.Contains(string(text), "no member any more")
	})
	c.filled("n2", "n3")
	if names := c.members(); !slices.Equal(names, []string{"n2", "n3"}) {
		t.Errorf("members are %v", names)
	}
	gone.admit()
	gone.kill()
	gone.start()
	c.filled("n1", "n2", "n3")
	c.until("what it had has ended", func() bool { // its processes with the kill, for they were simulated
		state := gone.has(running)
		return (state == "" || state == "failed") && gone.has(stored) == ""
	})
	if row := c.row(stored); !strings.HasPrefix(row, "running") || strings.Contains(row, "n1") {
		t.Errorf("what went on elsewhere is %q", row)
	}
	c.delete(running)
	c.until("what was lost can be deleted", func() bool { return strings.HasSuffix(c.row(running), "deleted") })
	c.delete(stored)
}
