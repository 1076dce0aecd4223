package pods

import (
	"context"
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	corev1 "k8s.io/api/core/v1"

	"s0.run/internal/nodeapi"
)

const (
	// collectInterval is how often it is looked for what no pod stands for any more.
	collectInterval = 2 * time.Minute
	// retellInterval is how often statuses are compared with Kubernetes', in memory.
	retellInterval = 10 * time.Second
	// orphanGrace is how long it must have had none, in every look.
	orphanGrace = 10 * time.Minute
	// orphanShare bounds what one look may end: one in ten, and one at least.
	orphanShare = 10
)

// keepCollecting makes good what was missed: it tells of pods again, and ends what pods left behind that were deleted while nobody looked.
func (p *Pods) keepCollecting(ctx context.Context) {
	ticker, again := time.NewTicker(collectInterval), time.NewTicker(retellInterval)
	defer ticker.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			p.retell()
		case now := <-ticker.C:
			p.collect(ctx, now)
		}
	}
}

// collect looks once. Which pods there are is asked of Kubernetes itself, not of a cache,
// and an answer that did not come, or a node that can't be heard, ends nothing (G09, H06).
func (p *Pods) collect(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := p.cfg.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", p.cfg.NodeName).String(),
	})
	if err != nil {
		p.cfg.Log.Warn("could not look for pods that were forgotten", "error", err)
		return
	}
	for _, req := range p.forgotten(list.Items, now) {
		p.cfg.Log.Warn("ending what no pod stands for any more", "sandbox", req.GetId(), "claim", req.GetClaimId())
		if _, err := p.cfg.Node.RPC().Delete(ctx, req); err != nil {
			p.cfg.Log.Warn("could not end it yet", "sandbox", req.GetId(), "error", err)
		}
	}
}

// forgotten says what to end of what has had no pod for long enough.
func (p *Pods) forgotten(pods []corev1.Pod, now time.Time) (all []*nodeapi.DeleteRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.synced {
		return nil
	}
	backed := p.backed()
	for _, api := range pods {
		delete(backed, string(api.UID))
	}
	for uid := range p.byUID { // whose own goroutines see to it
		delete(backed, string(uid))
	}
	maps.DeleteFunc(p.orphans, func(uid string, _ time.Time) bool { return backed[uid] == nil })
	budget := max(1, len(p.slots)/orphanShare)
	for _, uid := range slices.Sorted(maps.Keys(backed)) {
		since, known := p.orphans[uid]
		if !known {
			p.orphans[uid] = now
			continue
		}
		if now.Sub(since) >= orphanGrace && len(all) < budget {
			all = append(all, backed[uid])
		}
	}
	return all
}

// backed is what noded has for pods, and how to end it, by the pod's UID. What a tenant
// has claimed is not among it: it is the API server's to end. It is called with mu held.
func (p *Pods) backed() map[string]*nodeapi.DeleteRequest {
	all := map[string]*nodeapi.DeleteRequest{}
	for uid, slot := range p.slots {
		if slot.GetState() != nodeapi.PodSlotClaimed {
			all[uid] = &nodeapi.DeleteRequest{Id: slot.GetId(), ClaimId: nodeapi.PodClaim(uid), Reason: "its pod is gone"}
		}
	}
	for _, sb := range p.sandboxes {
		if uid, ok := nodeapi.ClaimedPod(sb.GetClaimId()); ok {
			all[uid] = &nodeapi.DeleteRequest{ClaimId: sb.GetClaimId(), Reason: "its pod is gone"}
		}
	}
	return all
}

// Deleted takes note that Kubernetes has no such pod any more, which is the one proof of
// it: what is left of a pod that had ended before this process began ends now. last is what
// it was.
func (p *Pods) Deleted(last *corev1.Pod) {
	p.mu.Lock()
	pod := p.byUID[last.UID]
	if pod != nil {
		pod.evicted = pod.evicted || evicted(last)
	}
	req := p.backed()[string(last.UID)]
	p.mu.Unlock()
	if pod != nil {
		pod.stop()
		return
	}
	if req == nil {
		return
	}
	p.background(func(ctx context.Context) {
		retry(ctx, func() bool {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			_, err := p.cfg.Node.RPC().Delete(ctx, req)
			return err != nil
		})
	})
}
