package lifecycle

import (
	"context"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
)

// WarmRequest asks for the slot that a pod stands for.
type WarmRequest struct {
	Pod     string // its UID
	PoolKey string
	Spec    sandbox.Spec
}

func (r WarmRequest) validate() error {
	for name, v := range map[string]string{"pod": r.Pod, "pool_key": r.PoolKey} {
		if v == "" || len(v) > maxNameBytes {
			return errdefs.New(errdefs.InvalidArgument, "warming a pod's slot: want a %s of at most %d bytes", name, maxNameBytes)
		}
	}
	if err := r.Spec.Validate(); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "warming a pod's slot: %v", err)
	}
	return nil
}

// WarmPod makes a pod's slot and returns when it is free, or when it is decided that
// it will not be. A pod has one slot: who asks again is told what it is by now, until
// it has ended.
func (m *Manager) WarmPod(ctx context.Context, req WarmRequest) (*nodeapi.PodSlot, error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	leave, err := m.enterPod(ctx, req.Pod)
	if err != nil {
		return nil, err
	}
	defer leave()
	if slot := m.podSlot(req.Pod); slot != nil {
		return slot, nil
	}
	image, err := m.image(ctx, req.Spec)
	if err != nil {
		return nil, err
	}
	inst, err := m.warmUp(ctx, image, startRequest{poolKey: req.PoolKey, pod: req.Pod, spec: req.Spec, idle: true})
	if err != nil {
		return nil, startError(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return inst.podSlot(), nil
}

// enterPod waits until nobody else asks for the pod's slot.
func (m *Manager) enterPod(ctx context.Context, pod string) (leave func(), err error) {
	mine := make(chan struct{})
	for {
		m.mu.Lock()
		other := m.pods[pod]
		if other == nil {
			m.pods[pod] = mine
		}
		m.mu.Unlock()
		if other == nil {
			return func() { m.leavePod(pod, mine) }, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, errdefs.New(errdefs.Unavailable, "the pod's slot is still warming").WithCause(ctx.Err())
		}
	}
}

func (m *Manager) leavePod(pod string, mine chan struct{}) {
	m.mu.Lock()
	delete(m.pods, pod)
	m.mu.Unlock()
	close(mine)
}

// podSlot finds the slot of a pod, or what became of it; nil: it has none.
func (m *Manager) podSlot(pod string) *nodeapi.PodSlot {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, inst := range m.instances {
		if inst.rec.Pod == pod && inst.rec.State != journal.Terminating {
			return inst.podSlot()
		}
	}
	return nil
}

// podSlot is what a pod is told of its slot. It is called with Manager.mu held.
func (i *instance) podSlot() *nodeapi.PodSlot {
	s := &nodeapi.PodSlot{Pod: i.rec.Pod, Id: string(i.id), Generation: uint64(known(i.rec)), State: nodeapi.PodSlotWarming, Reason: nodeapi.Text(i.unhealthy)}
	if i.rec.IP.IsValid() {
		s.Ip = i.rec.IP.String()
	}
	switch {
	case i.rec.State == journal.Terminating:
		s.State, s.Reason = nodeapi.PodSlotEnded, nodeapi.Text(i.rec.Reason)
	case i.rec.State != journal.Slot:
		s.State, s.Reason = nodeapi.PodSlotClaimed, ""
	case i.ready, i.binding: // a claim under way may still fail; then the slot ends
		s.State, s.Reason = nodeapi.PodSlotFree, ""
	}
	return s
}

// tellPod tells of a slot that a pod stands for. It is called with mu held.
func (m *Manager) tellPod(inst *instance) {
	if inst.rec.Pod == "" {
		return
	}
	key, e := "pod/"+string(inst.id), &nodeapi.Event{Event: &nodeapi.Event_Pod{Pod: inst.podSlot()}}
	if inst.rec.State == journal.Terminating {
		m.cfg.Hub.Clear(key, e)
		return
	}
	m.cfg.Hub.Set(key, e)
}
