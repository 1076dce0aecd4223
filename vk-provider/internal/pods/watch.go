package pods

import (
	"k8s.io/apimachinery/pkg/types"

	"s0.run/internal/nodeapi"
	"s0.run/vk-provider/internal/noded"
)

var _ noded.Listener = (*Pods)(nil)

// Synced implements noded.Listener. What a pod had and noded lacks now has ended: its
// journal is the truth about the node, and the picture is whole.
func (p *Pods) Synced(picture noded.Picture) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots, p.sandboxes, p.synced = picture.Slots, picture.Sandboxes, true
	for uid, pod := range p.byUID {
		if slot := p.slots[string(uid)]; slot != nil {
			pod.slot = slot
		} else if pod.slot != nil && pod.warmed {
			pod.gone = orElse(pod.gone, "its node has no record of it")
		}
		if pod.sandbox != nil {
			id := pod.sandbox.GetId()
			if pod.sandbox = p.sandboxes[id]; pod.sandbox == nil {
				pod.gone = orElse(pod.gone, "its node has no record of it")
			}
		} else {
			pod.sandbox = p.sandboxOf(pod)
		}
		pod.kick()
	}
}

// sandboxOf finds the sandbox of a pod. It is called with mu held.
func (p *Pods) sandboxOf(pod *pod) *nodeapi.Sandbox {
	if pod.slot != nil {
		return p.sandboxes[pod.slot.GetId()]
	}
	for _, sb := range p.sandboxes {
		if uid, ok := nodeapi.ClaimedPod(sb.GetClaimId()); ok && uid == string(pod.uid) {
			return sb
		}
	}
	return nil
}

// Lost implements noded.Listener. Pods stay what they were: package virtualnode says
// that the node is not ready.
func (p *Pods) Lost(error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = false
}

// PodSlot implements noded.Listener.
func (p *Pods) PodSlot(slot *nodeapi.PodSlot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pod := p.byUID[types.UID(slot.GetPod())]
	if slot.GetState() == nodeapi.PodSlotEnded {
		if now := p.slots[slot.GetPod()]; now.GetId() == slot.GetId() {
			delete(p.slots, slot.GetPod())
		}
		if pod == nil || pod.slot.GetId() != slot.GetId() {
			return // of an attempt before
		}
		pod.ended = slot.GetId()
		if !pod.warmed { // an attempt of who is trying still
			pod.slot = nil
			return
		}
		pod.gone = orElse(slot.GetReason(), "its slot ended")
	} else {
		p.slots[slot.GetPod()] = slot
		if pod == nil {
			return
		}
		pod.slot = slot
	}
	pod.kick()
}

// Sandbox implements noded.Listener.
func (p *Pods) Sandbox(sb *nodeapi.Sandbox) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sandboxes[sb.GetId()] = sb
	uid, ok := nodeapi.ClaimedPod(sb.GetClaimId())
	if !ok {
		uid = sb.GetPod()
	}
	if pod := p.byUID[types.UID(uid)]; pod != nil {
		pod.sandbox = sb
		pod.kick()
	}
}

// SandboxGone implements noded.Listener.
func (p *Pods) SandboxGone(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sb := p.sandboxes[id]
	delete(p.sandboxes, id)
	for _, pod := range p.byUID {
		if pod.sandbox.GetId() == id {
			pod.gone = orElse(orElse(pod.gone, sb.GetReason()), "its sandbox ended")
			pod.kick()
		}
	}
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}
