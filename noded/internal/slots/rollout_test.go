package slots

import (
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/noded/internal/events"
	"s0.run/noded/internal/lifecycle"
)

// The slots of an old spec end one by one as those of the new one become free;
// never are there more than the pool's own and the warm-ups under way.
func TestRolloutWithoutAGap(t *testing.T) {
	t.Parallel()
	run(t, 2, func(n *node, p *Pools, hub *events.Hub) {
		other := Pool{Key: "other:1", Spec: spec("o"), Min: 2, Max: 2}
		mustSet(t, p, Pool{Key: "a:1", Spec: spec("a"), Min: 5, Max: 5}, other)
		pass(10 * time.Second)
		mustSet(t, p, Pool{Key: "a:2", Spec: spec("a2"), Min: 5, Max: 5}, other)
		for n.count("a:2", lifecycle.Free) < 5 {
			pass(100 * time.Millisecond)
			old, fresh, warming := n.count("a:1", lifecycle.Free), n.count("a:2", lifecycle.Free), n.count("a:2", lifecycle.Warming)
			if old+fresh != 5 || old+fresh+warming > 5+2 {
				t.Fatalf("%d old ones, %d new ones, %d warming", old, fresh, warming)
			}
			if s := status(hub, "a:2"); s.GetReady() != (fresh == 5) || int(s.GetIdle()) != fresh {
				t.Fatalf("with %d new ones its status is %v", fresh, s)
			}
			if n.count("other:1", lifecycle.Free) != 2 {
				t.Fatal("another pool lost a slot")
			}
		}
		if n.count("a:1", lifecycle.Free) != 0 {
			t.Error("old slots are left")
		}
	})
}

// A spec that can't be warmed leaves the old slots where they are; when the old
// spec comes back they serve at once, and if it never does they end.
func TestRollback(t *testing.T) {
	t.Parallel()
	for name, back := range map[string]bool{"it comes back": true, "it never does": false} {
		t.Run(name, func(t *testing.T) {
			run(t, 2, func(n *node, p *Pools, hub *events.Hub) {
				old := Pool{Key: "a:1", Spec: spec("a"), Min: 3, Max: 3}
				mustSet(t, p, old)
				pass(10 * time.Second)
				made := len(n.created)
				n.set(func() { n.pull = errdefs.New(errdefs.NotFound, "no such image") })
				mustSet(t, p, Pool{Key: "a:2", Spec: spec("wrong"), Min: 3, Max: 3})
				pass(rollback / 2)
				if s := status(hub, "a:2"); n.count("a:1", lifecycle.Free) != 3 || s.GetReady() || s.GetLastError() == "" {
					t.Fatalf("%d old slots, status %v", n.count("a:1", lifecycle.Free), s)
				}
				if !back {
					pass(rollback)
					if left := n.count("a:1", lifecycle.Free); left != 0 {
						t.Errorf("%d old slots are kept for ever", left)
					}
					return
				}
				mustSet(t, p, old)
				pass(time.Second)
				if s := status(hub, "a:1"); s.GetIdle() != 3 || !s.GetReady() || len(n.created) != made {
					t.Errorf("status %v, %d more slots were made", s, len(n.created)-made)
				}
			})
		})
	}
}

// On a full node the old slots make way, and a template that is gone keeps none.
func TestOldSlotsMakeWay(t *testing.T) {
	t.Parallel()
	run(t, 2, func(n *node, p *Pools, _ *events.Hub) {
		mustSet(t, p, Pool{Key: "a:1", Spec: spec("a"), Min: 3, Max: 3}, Pool{Key: "b:1", Spec: spec("b"), Min: 1, Max: 1})
		pass(10 * time.Second)
		n.set(func() { n.fail = errdefs.New(errdefs.Exhausted, "the node is full") })
		mustSet(t, p, Pool{Key: "a:2", Spec: spec("a2"), Min: 3, Max: 3})
		pass(10 * time.Second)
		if left := n.count("a:1", lifecycle.Free) + n.count("b:1", lifecycle.Free); left != 0 {
			t.Errorf("%d old slots are left", left)
		}
	})
}

// A new version of a busy template begins with what the old one was asked for.
func TestDemandOutlivesASpec(t *testing.T) {
	t.Parallel()
	run(t, 4, func(n *node, p *Pools, _ *events.Hub) {
		mustSet(t, p, Pool{Key: "a:1", Spec: spec("a"), Min: 1, Max: 6})
		pass(10 * time.Second)
		for range 4 {
			n.claim(t, "a:1", 1)
			pass(3 * time.Second)
		}
		mustSet(t, p, Pool{Key: "a:2", Spec: spec("a2"), Min: 1, Max: 6})
		pass(10 * time.Second)
		if got := n.count("a:2", lifecycle.Free); got != 4 {
			t.Errorf("%d free slots of the new spec after 4 claims of the old one", got)
		}
	})
}
