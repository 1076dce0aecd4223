package pods

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"s0.run/internal/nodeapi"
)

// end ends what a pod is backed by, then its object, then what is known of it here.
func (p *Pods) end(ctx context.Context, pod *pod) {
	if !pod.pooled {
		p.stopContainers(ctx, pod)
	}
	pod.ending = time.Now()
	p.mu.Lock()
	end := p.endSandbox
	if pod.pooled && pod.evicted {
		end = p.evict
	}
	p.mu.Unlock()
	if !retry(ctx, func() bool { return !end(ctx, pod) }) {
		return
	}
	p.removeObject(ctx, pod)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byUID, pod.uid)
	if k := key(pod.namespace, pod.name); p.byKey[k] == pod {
		delete(p.byKey, k)
	}
}

// endSandbox decides what of a pod ends with it: its own sandbox, or a slot that nobody
// has claimed. A claimed one ends only with a pod that says so and is no ReplicaSet's any
// more: one that shrinks or goes may not have heard of the claim, and its choice was about
// a free slot.
func (p *Pods) endSandbox(ctx context.Context, pod *pod) bool {
	p.mu.Lock()
	api, slot, sb := pod.api, pod.slot, pod.sandbox
	p.mu.Unlock()
	req := &nodeapi.DeleteRequest{ClaimId: nodeapi.PodClaim(string(pod.uid)), Reason: "its pod was deleted"}
	switch {
	case pod.pooled && slot == nil:
		return true
	case pod.pooled && sb != nil && released(api):
		req = &nodeapi.DeleteRequest{Id: sb.GetId(), Generation: sb.GetGeneration(), ClaimId: sb.GetClaimId(), Reason: "its pod was deleted"}
	case pod.pooled:
		req.Id = slot.GetId() // as who has no claim on it: what is claimed is left alone
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := p.cfg.Node.RPC().Delete(ctx, req); err != nil {
		p.cfg.Log.Warn("a pod's sandbox could not be ended yet", "pod", key(pod.namespace, pod.name), "uid", pod.uid, "sandbox", req.GetId(), "error", err)
		return false
	}
	return true
}

// removeObject removes a pod's object at once, not after its grace period: nothing of it
// runs any more. Another pod of that name is left alone.
func (p *Pods) removeObject(ctx context.Context, pod *pod) {
	retry(ctx, func() bool {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		err := p.cfg.Kube.CoreV1().Pods(pod.namespace).Delete(ctx, pod.name, metav1.DeleteOptions{
			GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(pod.uid)),
		})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return false
		}
		p.cfg.Log.Warn("a pod that has ended could not be removed yet", "pod", key(pod.namespace, pod.name), "uid", pod.uid, "error", err)
		return true
	})
}

// stopContainers ends a pod's commands: TERM, then KILL when its grace period is over.
func (p *Pods) stopContainers(ctx context.Context, pod *pod) {
	p.mu.Lock()
	api, sb, containers := pod.api, pod.sandbox, pod.containers
	p.mu.Unlock()
	grace := gracePeriod(api)
	if sb == nil || grace == 0 || !usable(sb) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, grace+stopMargin)
	defer cancel()
	stopping := containers[:0:0]
	for _, c := range containers {
		if id := p.sessionOf(c); id != "" && p.cfg.Node.StopSession(ctx, instance(sb), id) == nil {
			stopping = append(stopping, c)
		}
	}
	for _, c := range stopping {
		select {
		case <-c.stopped:
		case <-ctx.Done():
			return
		}
	}
}

// stopMargin is what a command's KILL may take.
const stopMargin = 5 * time.Second

func gracePeriod(api *corev1.Pod) time.Duration {
	if s := api.DeletionGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	if s := api.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}
