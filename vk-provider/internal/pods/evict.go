package pods

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	// pauseTimeout is for sandboxes with all the memory that one may have.
	pauseTimeout = 10 * time.Minute
	// pauseGrace is for how long at least a pause that fails is tried again: an eviction in a
	// hurry has no grace period.
	pauseGrace = time.Minute
)

// evicted reports whether a pod goes because its place is wanted back, not because somebody
// wants the end of what it stands for: of evictions, taints and nodes that are removed
// Kubernetes says so before it deletes.
func evicted(api *corev1.Pod) bool {
	return slices.ContainsFunc(disruptions(api), func(c corev1.PodCondition) bool { return c.Status == corev1.ConditionTrue })
}

func disruption(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }

// disruptions are what a pod's status says of its disruption: nothing, or that it is one or
// is none any more.
func disruptions(api *corev1.Pod) (all []corev1.PodCondition) {
	for _, c := range api.Status.Conditions {
		if disruption(c) {
			all = append(all, c)
		}
	}
	return all
}

// Changed takes note of what Kubernetes says of a pod, state by state, in its order: VK hears
// of no status, and of a deletion without a grace period it hears before or after [Pods.Deleted].
func (p *Pods) Changed(api *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pod := p.byUID[api.UID]
	switch {
	case pod == nil:
	case evicted(api):
		pod.evicted = true
	case len(disruptions(api)) > 0 && pod.api.DeletionTimestamp == nil: // the disruption did not come
		pod.evicted = false
	}
}

// withTheirs are a pod's conditions with those that others have set: a status that is told
// must not take them back. It is called with mu held, and asks a cache.
func (p *Pods) withTheirs(pod *pod, ours []corev1.PodCondition) []corev1.PodCondition {
	all := slices.DeleteFunc(slices.Clone(ours), disruption)
	if known := p.listed(pod.namespace, pod.name, pod.uid); known != nil {
		all = append(all, disruptions(known)...)
	}
	return all
}

// evict makes room where a pool's pod was: a slot that nobody has claimed ends, and a
// tenant's sandbox is paused. It goes on when somebody needs it, without a pod.
func (p *Pods) evict(ctx context.Context, pod *pod) (done bool) {
	p.mu.Lock()
	sb, slot, gone := pod.sandbox, pod.slot, pod.gone
	p.mu.Unlock()
	if gone != "" {
		return true
	}
	if sb == nil {
		if !p.endSandbox(ctx, pod) { // as who has no claim on it
			return false
		}
		return p.pauseClaimed(ctx, pod, slot)
	}
	if sandbox.State(sb.GetState()) == sandbox.Failed {
		return p.endSandbox(ctx, pod)
	}
	return p.pauseSandbox(ctx, pod, sb)
}

// pauseClaimed pauses what was claimed a moment before its slot would have ended.
func (p *Pods) pauseClaimed(ctx context.Context, pod *pod, slot *nodeapi.PodSlot) (done bool) {
	if slot == nil {
		return true
	}
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	sb, err := p.cfg.Node.RPC().Get(asking, &nodeapi.GetRequest{Id: slot.GetId()})
	if connect.CodeOf(err) == connect.CodeNotFound {
		return true
	}
	if err != nil {
		return false
	}
	return !usable(sb) || p.pauseSandbox(ctx, pod, sb)
}

// pauseSandbox answers false when it is to be tried again. What can't be paused runs on, as long
// as its machine does: that it ends is nobody's wish yet.
func (p *Pods) pauseSandbox(ctx context.Context, pod *pod, sb *nodeapi.Sandbox) (done bool) {
	asking, cancel := context.WithTimeout(ctx, pauseTimeout)
	defer cancel()
	_, err := p.cfg.Node.RPC().Pause(asking, &nodeapi.PauseRequest{Id: sb.GetId()})
	log := p.cfg.Log.With("sandbox", sb.GetId(), "gen", sb.GetGeneration(), "team", sb.GetTeam(), "pod", key(pod.namespace, pod.name), "uid", pod.uid)
	switch {
	case err == nil:
		log.Info("paused a sandbox whose pod was evicted")
		p.event(pod, corev1.EventTypeNormal, "SandboxPaused", "its pod was evicted: sandbox "+sb.GetId()+" is paused")
		return true
	case connect.CodeOf(err) == connect.CodeNotFound:
		return true
	}
	log.Warn("a sandbox whose pod was evicted could not be paused", "error", err)
	p.event(pod, corev1.EventTypeWarning, "FailedPause", text(err))
	return time.Since(pod.ending) > max(gracePeriod(p.api(pod)), pauseGrace)
}
