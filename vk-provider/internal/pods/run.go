package pods

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/vk-provider/internal/noded"
	"s0.run/vk-provider/internal/podspec"
)

// runPod looks after a pod that is no pool's until it is to go, or has ended. Every step
// may be taken again by the next process: the sandbox is the one of the pod's claim, a
// container the session of its name.
func (p *Pods) runPod(ctx context.Context, pod *pod) {
	api := p.api(pod)
	spec, refusal := podspec.SpecOf(api)
	if refusal != nil {
		p.refuse(pod, refusal)
		return
	}
	containers, in := containersOf(api), inputs{}
	if !p.adopt(ctx, pod, containers) {
		var ok bool
		if in, ok = p.prepare(ctx, pod, spec); !ok {
			return
		}
	}
	p.mu.Lock()
	pod.containers = containers
	p.mu.Unlock()
	work, done := context.WithCancel(ctx)
	defer done()
	work, expired := p.deadline(work, pod)
	if mountsFiles(api) {
		p.background(func(context.Context) { p.keepFresh(work, pod) }) // work ends with Run's, too
	}
	for _, c := range containers {
		if !p.startContainer(work, pod, c, in.env[c.spec.Name]) {
			break
		}
		if c.init && !p.finishInit(work, pod, c) {
			break
		}
	}
	p.followPod(work, pod, expired)
}

// prepare makes what containers are started in, unless that has ended under a process
// before this one.
func (p *Pods) prepare(ctx context.Context, pod *pod, spec sandbox.Spec) (inputs, bool) {
	in, ok := p.resolve(ctx, pod)
	return in, ok && (p.over(pod) || p.claim(ctx, pod, spec) && p.fill(ctx, pod, in.mounts))
}

// claim has noded start the pod's sandbox, as often as it takes.
func (p *Pods) claim(ctx context.Context, pod *pod, spec sandbox.Spec) bool {
	failed := false
	ok := retry(ctx, func() bool {
		leave, err := p.seat(ctx)
		if err != nil {
			return false
		}
		defer leave()
		resp, err := p.cfg.Node.RPC().Claim(ctx, &nodeapi.ClaimRequest{
			ClaimId: nodeapi.PodClaim(string(pod.uid)), Spec: nodeapi.SpecToWire(spec), Team: "k8s/" + pod.namespace, User: p.cfg.NodeName,
		})
		if err != nil && connect.CodeOf(err) == connect.CodeInvalidArgument {
			p.refuse(pod, &podspec.Refusal{Reason: podspec.ReasonInvalid, Message: text(err)})
			failed = true
			return false
		}
		if err != nil {
			p.notYet(ctx, pod, "ContainerCreating", err)
			return true
		}
		p.mu.Lock()
		pod.sandbox = resp.GetSandbox()
		p.mu.Unlock()
		return false
	})
	return ok && !failed
}

var errDeadline = errors.New("the pod's active deadline has passed")

// deadline bounds a pod's life where its spec does.
func (p *Pods) deadline(ctx context.Context, pod *pod) (context.Context, func() bool) {
	p.mu.Lock()
	seconds, began := pod.api.Spec.ActiveDeadlineSeconds, pod.status.StartTime
	p.mu.Unlock()
	if seconds == nil {
		return ctx, func() bool { return false }
	}
	ctx, cancel := context.WithDeadlineCause(ctx, began.Add(secondsOf(*seconds)), errDeadline)
	context.AfterFunc(ctx, func() {
		cancel()
		pod.kick()
	})
	return ctx, func() bool { return errors.Is(context.Cause(ctx), errDeadline) }
}

// followPod tells what a pod is until it has ended or is to go.
func (p *Pods) followPod(ctx context.Context, pod *pod, expired func() bool) {
	for {
		p.mu.Lock()
		sb, gone := pod.sandbox, pod.gone
		p.mu.Unlock()
		if expired() {
			p.event(pod, corev1.EventTypeNormal, "DeadlineExceeded", errDeadline.Error())
			p.stopContainers(context.WithoutCancel(ctx), pod)
			p.setFailed(pod, "DeadlineExceeded", errDeadline.Error())
			return
		}
		if over(gone, sb) {
			reason := orElse(gone, sb.GetReason())
			p.event(pod, corev1.EventTypeWarning, "SandboxFailed", reason)
			p.setFailed(pod, "SandboxFailed", reason)
			return
		}
		phase := p.set(pod, func() corev1.PodStatus { return podStatus(pod, p.cfg.HostIP, sb, pod.containers) })
		if phase == corev1.PodSucceeded || phase == corev1.PodFailed {
			return
		}
		select {
		case <-ctx.Done():
			if !expired() {
				return
			}
		case <-pod.wake:
		}
	}
}

func instance(sb *nodeapi.Sandbox) noded.Sandbox {
	return noded.Sandbox{ID: sb.GetId(), Generation: sb.GetGeneration()}
}

// Target is what a container of a pod is reached by.
type Target struct {
	Sandbox noded.Sandbox
	Session string            // of a container that is one; empty: a pool's
	Env     map[string]string // of its commands
	Dir     string            // where they run
	TTY     bool
}

// Find says where a container is, or why nobody may reach it now. A free slot is
// nobody's, and what is done to it would be done to whoever claims it next.
func (p *Pods) Find(namespace, name, containerName string) (Target, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pod := p.byKey[key(namespace, name)]
	switch {
	case pod == nil:
		return Target{}, fmt.Errorf("pod %s/%s is not on this node", namespace, name)
	case pod.sandbox == nil && pod.pooled:
		return Target{}, fmt.Errorf("pod %s/%s is a free slot of a pool: it can be reached when somebody has claimed it", namespace, name)
	case pod.sandbox == nil:
		return Target{}, fmt.Errorf("pod %s/%s has no sandbox yet", namespace, name)
	case pod.pooled:
		return Target{Sandbox: instance(pod.sandbox)}, nil
	}
	for _, c := range pod.containers {
		if c.spec.Name == containerName || containerName == "" && !c.init {
			return Target{Sandbox: instance(pod.sandbox), Session: c.session, Env: c.env, Dir: c.spec.WorkingDir, TTY: c.spec.TTY}, nil
		}
	}
	return Target{}, fmt.Errorf("pod %s/%s has no container %q that has been started", namespace, name, containerName)
}

// Claimed lists the pods whose sandboxes run, for what they use.
func (p *Pods) Claimed() map[*corev1.Pod]noded.Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[*corev1.Pod]noded.Sandbox{}
	for _, pod := range p.byUID {
		if pod.sandbox != nil && usable(pod.sandbox) {
			all[pod.object()] = instance(pod.sandbox)
		}
	}
	return all
}
