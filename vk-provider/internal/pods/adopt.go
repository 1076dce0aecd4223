package pods

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

// adopt finds what a process before this one has brought up: the pod's sandbox, and in it
// its containers' sessions. They stay what they were made of, whatever has become of that
// in Kubernetes. false: something is yet to be made, or the pod is to go.
func (p *Pods) adopt(ctx context.Context, pod *pod, containers []*container) bool {
	found := false
	if !p.findSandbox(ctx, pod, func() { found = pod.sandbox != nil }) || !found {
		return false
	}
	p.mu.Lock()
	pod.containers = containers
	p.mu.Unlock()
	var sessions []procapi.Session
	if !p.attempt(ctx, pod, func() bool {
		p.mu.Lock()
		sb := pod.sandbox
		p.mu.Unlock()
		var err error
		if sessions, err = p.cfg.Node.Sessions(ctx, instance(sb)); err != nil {
			p.notYet(ctx, pod, "ContainerCreating", err)
		}
		return err != nil
	}) {
		return false
	}
	return p.adoptSessions(pod, containers, sessions) || p.over(pod)
}

// adoptSessions makes sessions the containers of their names; false: some have none.
func (p *Pods) adoptSessions(pod *pod, containers []*container, sessions []procapi.Session) bool {
	named := map[string]procapi.Session{}
	for _, s := range slices.Backward(sessions) { // the oldest of a name is the container's
		named[s.Spec.Name] = s
	}
	whole := true
	for _, c := range containers {
		s, ok := named[c.spec.Name]
		if whole = whole && ok; !ok {
			continue
		}
		p.mu.Lock()
		c.env = s.Spec.Env
		p.mu.Unlock()
		p.follow(pod, c, s)
	}
	return whole
}

// attempt is retry for as long as the pod's sandbox has not ended: who goes on finds out
// that it has. In its pauses it tells what becomes of what is there already.
func (p *Pods) attempt(ctx context.Context, pod *pod, f func() (again bool)) bool {
	for pause := firstRetry; !p.over(pod) && f(); pause = min(2*pause, lastRetry) {
		if !p.pause(ctx, pod, pause) {
			return false
		}
	}
	return ctx.Err() == nil
}

// pause lets time pass, or ends early with the pod's sandbox; false: with ctx.
func (p *Pods) pause(ctx context.Context, pod *pod, length time.Duration) bool {
	for passed := time.After(length); !p.over(pod); {
		select {
		case <-ctx.Done():
			return false
		case <-passed:
			return true
		case <-pod.wake:
			p.set(pod, func() corev1.PodStatus {
				s, _ := lives(pod, p.cfg.HostIP, p.synced)
				return s
			})
		}
	}
	return true
}

func (p *Pods) over(pod *pod) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return over(pod.gone, pod.sandbox)
}

// over reports whether a pod's sandbox has ended.
func over(gone string, sb *nodeapi.Sandbox) bool {
	return gone != "" || sandbox.State(sb.GetState()) == sandbox.Failed
}
