package lifecycle_test

import (
	"context"
	"slices"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
)

func (n *noded) warmPod(pod string) *nodeapi.PodSlot {
	n.t.Helper()
	slot, err := n.WarmPod(n.ctx(), lifecycle.WarmRequest{Pod: pod, PoolKey: "pool", Spec: spec})
	if err != nil {
		n.t.Fatal(err)
	}
	return slot
}

// podStates are what is told of a pod's slot, until one of them is want.
func (w *watch) podStates(pod, want string) (states []string, last *nodeapi.PodSlot) {
	w.t.Helper()
	for e := range w.sub.C() {
		if p := e.GetPod(); p.GetPod() == pod {
			if states = append(states, p.GetState()); p.GetState() == want {
				return states, p
			}
		}
	}
	w.t.Fatalf("the slot of %s did not become %s, only %v", pod, want, states)
	return nil, nil
}

func TestPodsSlot(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	_, w := n.watch()
	slot := n.warmPod("uid-1")
	if slot.GetState() != nodeapi.PodSlotFree || slot.GetPod() != "uid-1" || slot.GetIp() == "" {
		t.Fatalf("%v", slot)
	}
	if again := n.warmPod("uid-1"); again.GetId() != slot.GetId() {
		t.Fatalf("asked again, the pod has %s, not %s", again.GetId(), slot.GetId())
	}
	if other := n.warmPod("uid-2"); other.GetId() == slot.GetId() {
		t.Fatal("two pods have one slot")
	}
	for _, s := range n.Slots() {
		if s.Pod == "" {
			t.Errorf("slot %s does not say that a pod stands for it", s.ID)
		}
	}
	sb := n.claim(sandbox.ID(slot.GetId()))
	if wire := sb.Wire(); wire.GetPod() != "uid-1" || wire.GetIp() != slot.GetIp() {
		t.Errorf("the sandbox says pod %q, address %q", wire.GetPod(), wire.GetIp())
	}
	if states, _ := w.podStates("uid-1", nodeapi.PodSlotClaimed); !slices.Contains(states, nodeapi.PodSlotFree) {
		t.Errorf("told %v", states)
	}
	if again := n.warmPod("uid-1"); again.GetState() != nodeapi.PodSlotClaimed || again.GetId() != slot.GetId() {
		t.Errorf("a claimed pod's slot is %v", again)
	}
	n.stop()

	n = m.boot()
	if again := n.warmPod("uid-1"); again.GetId() != slot.GetId() {
		t.Errorf("after a restart the pod has %s, not %s", again.GetId(), slot.GetId())
	}
	_, w = n.watch()
	if err := n.Delete(n.ctx(), sandbox.ID(slot.GetId()), 0, "pod deleted"); err != nil {
		t.Fatal(err)
	}
	if _, last := w.podStates("uid-1", nodeapi.PodSlotEnded); last.GetReason() != "pod deleted" {
		t.Errorf("it ended because %q", last.GetReason())
	}
	if again := n.warmPod("uid-1"); again.GetId() == slot.GetId() {
		t.Error("what has ended is no pod's slot any more")
	}
}

// Kubernetes gives up a pod that is not warm yet by deleting it: its caller goes away.
func TestPodsSlotIsGivenUpWithItsCaller(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.WarmPod(ctx, lifecycle.WarmRequest{Pod: "uid", PoolKey: "pool", Spec: spec}); err == nil {
		t.Fatal("a slot was warmed for nobody")
	}
	n.nothingLeft()
}

func TestPodsSlotRefusals(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot(func(c *lifecycle.Config) { c.Max = 1 })
	for _, req := range []lifecycle.WarmRequest{{PoolKey: "pool", Spec: spec}, {Pod: "uid", Spec: spec}, {Pod: "uid", PoolKey: "pool"}} {
		_, err := n.WarmPod(n.ctx(), req)
		kind(t, err, errdefs.InvalidArgument)
	}
	n.warmPod("uid-1")
	_, err := n.WarmPod(n.ctx(), lifecycle.WarmRequest{Pod: "uid-2", PoolKey: "pool", Spec: spec})
	kind(t, err, errdefs.Exhausted)
}
