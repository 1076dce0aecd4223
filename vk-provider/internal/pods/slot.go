package pods

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/vk-provider/internal/podspec"
)

// keepSlot looks after a pool's pod until it is to go, or its slot has ended.
func (p *Pods) keepSlot(ctx context.Context, pod *pod) {
	slot, refusal := podspec.SlotOf(p.api(pod), p.cfg.PoolNamespace)
	if refusal != nil {
		p.refuse(pod, refusal)
		return
	}
	if podClaimed(p.api(pod)) {
		if !p.findClaimed(ctx, pod) {
			return
		}
	} else {
		if p.phase(pod) != corev1.PodRunning {
			p.setPending(pod, "Warming", "")
		}
		if !p.warm(ctx, pod, slot) {
			return
		}
	}
	var again <-chan time.Time
	for {
		settled, ended := p.followSlot(ctx, pod)
		if ended {
			return
		}
		if again = nil; !settled {
			again = time.After(firstRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-pod.wake:
		case <-again:
		}
	}
}

// warm has noded make the pod's slot, as often as it takes; false: the pod is to go.
func (p *Pods) warm(ctx context.Context, pod *pod, slot podspec.Slot) bool {
	return retry(ctx, func() bool {
		leave, err := p.seat(ctx)
		if err != nil {
			return false
		}
		defer leave()
		told, err := p.cfg.Node.RPC().WarmPod(ctx, &nodeapi.WarmPodRequest{
			Pod: string(pod.uid), PoolKey: slot.PoolKey, Team: slot.Team, Spec: nodeapi.SpecToWire(slot.Spec),
		})
		if err != nil {
			p.notYet(ctx, pod, "Warming", err)
			return true
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if pod.slot.GetId() != told.GetId() { // else the stream's word is the newer one
			pod.slot = told
		}
		if pod.warmed = true; pod.ended == told.GetId() {
			pod.gone = orElse(pod.gone, "its slot ended")
		}
		return false
	})
}

// findClaimed waits until noded has said what it has, for a pod that was claimed before
// this process began. It gets no other slot: one whose sandbox ended meanwhile has ended.
func (p *Pods) findClaimed(ctx context.Context, pod *pod) bool {
	return p.findSandbox(ctx, pod, func() {
		if pod.sandbox == nil {
			pod.gone = orElse(pod.gone, "its sandbox ended")
		}
		pod.warmed = true
	})
}

// findSandbox waits until noded has said what it has, and finds the pod's sandbox among
// it; then is called with mu held. false: the pod is to go.
func (p *Pods) findSandbox(ctx context.Context, pod *pod, then func()) bool {
	for {
		p.mu.Lock()
		synced := p.synced
		if synced {
			if pod.sandbox == nil {
				pod.sandbox = p.sandboxOf(pod)
			}
			then()
		}
		p.mu.Unlock()
		if synced {
			return true
		}
		select {
		case <-pod.wake:
		case <-ctx.Done():
			return false
		}
	}
}

// notYet tells why a pod is not there yet, or not all of it.
func (p *Pods) notYet(ctx context.Context, pod *pod, reason string, err error) {
	if ctx.Err() != nil {
		return
	}
	message := text(err)
	p.event(pod, corev1.EventTypeWarning, "Failed"+reason, message)
	p.cfg.Log.Warn("a pod can't be brought up yet", "pod", key(pod.namespace, pod.name), "uid", pod.uid, "error", err)
	p.set(pod, func() corev1.PodStatus {
		if s, ok := lives(pod, p.cfg.HostIP, p.synced); ok {
			return s
		}
		return pendingStatus(pod, p.cfg.HostIP, reason, message)
	})
}

func text(err error) string {
	if e, ok := err.(*connect.Error); ok {
		return nodeapi.Text(e.Message())
	}
	return nodeapi.Text(err.Error())
}

// followSlot tells what a slot is now. settled is false when it must be told again.
func (p *Pods) followSlot(ctx context.Context, pod *pod) (settled, ended bool) {
	p.mu.Lock()
	slot, sb, gone := pod.slot, pod.sandbox, pod.gone
	p.mu.Unlock()
	if gone != "" {
		p.event(pod, corev1.EventTypeNormal, "SandboxEnded", gone)
		p.removeObject(ctx, pod)
		return true, true
	}
	settled = true
	if sb != nil {
		settled = p.label(ctx, pod, sb)
	}
	phase := p.set(pod, func() corev1.PodStatus { return slotStatus(pod, p.cfg.HostIP, slot, sb) })
	return settled, phase == corev1.PodFailed
}

// label makes a claim visible, and takes the pod from its ReplicaSet, which makes another:
// in one write, so that who deletes or shrinks the set never takes a claimed pod along. It
// is the one write to Kubernetes that a claim costs, and nobody waits for it.
func (p *Pods) label(ctx context.Context, pod *pod, sb *nodeapi.Sandbox) bool {
	want := map[string]string{podspec.LabelState: podspec.StateClaimed, podspec.LabelSandbox: sb.GetId(), podspec.LabelTeam: sb.GetTeam()}
	have, owner := p.api(pod).Labels, metav1.GetControllerOf(p.api(pod))
	if maps.Equal(want, subset(have, want)) && owner == nil {
		return true
	}
	meta := map[string]any{"uid": pod.uid, "labels": want}
	if owner != nil {
		meta["ownerReferences"] = []map[string]any{{"$patch": "delete", "uid": owner.UID}}
	}
	patient := patiently(p.api(pod).Spec.Tolerations)
	patch, err := json.Marshal(map[string]any{"metadata": meta, "spec": map[string]any{"tolerations": patient}})
	if err != nil {
		return true // it is made of strings
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = p.cfg.Kube.CoreV1().Pods(pod.namespace).Patch(ctx, pod.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		p.cfg.Log.Warn("a claim's pod could not be labelled yet", "sandbox", sb.GetId(), "pod", key(pod.namespace, pod.name), "error", err)
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	api := pod.api.DeepCopy() // what VK compares with, so that it sees no change of its own in this
	if api.Labels == nil {
		api.Labels = map[string]string{}
	}
	maps.Copy(api.Labels, want)
	api.Spec.Tolerations = patient
	if owner != nil {
		api.OwnerReferences = slices.DeleteFunc(api.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == owner.UID })
	}
	pod.api = api
	return true
}

// patiently are tolerations of a pod that a silent node keeps: silence is no end of what
// runs there.
func patiently(all []corev1.Toleration) []corev1.Toleration {
	all = slices.Clone(all)
	for i := range all {
		if key := all[i].Key; key == corev1.TaintNodeNotReady || key == corev1.TaintNodeUnreachable {
			all[i].TolerationSeconds = nil
		}
	}
	return all
}

func subset(m, of map[string]string) map[string]string {
	s := map[string]string{}
	for k := range of {
		if v, ok := m[k]; ok {
			s[k] = v
		}
	}
	return s
}

func (p *Pods) api(pod *pod) *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return pod.api
}

func (p *Pods) phase(pod *pod) corev1.PodPhase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return pod.status.Phase
}

// usable reports whether a claimed sandbox answers.
func usable(sb *nodeapi.Sandbox) bool { return sandbox.State(sb.GetState()) == sandbox.Running }
