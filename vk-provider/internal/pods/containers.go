package pods

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/vk-provider/internal/podspec"
)

// container is one container of a pod that is no pool's: a session of its sandbox.
type container struct {
	spec    corev1.Container
	init    bool
	stopped chan struct{} // closed when its session has ended for good, or is not followed any more

	// Pods.mu guards what follows.
	session string                        // empty before it has one
	waits   *corev1.ContainerStateWaiting // why it has none, if that is known
	env     map[string]string
	now     procapi.Session
	told    uint64                           // the last of its events that was there when this process found it
	last    *corev1.ContainerStateTerminated // how the attempt before ended
}

// Pauses between attempts, as a kubelet has them.
const firstBackoff, lastBackoff = 10 * time.Second, 5 * time.Minute

func secondsOf(n int64) time.Duration { return time.Duration(n) * time.Second }

func containersOf(api *corev1.Pod) []*container {
	var all []*container
	for _, c := range api.Spec.InitContainers {
		all = append(all, &container{spec: c, init: true, stopped: make(chan struct{})})
	}
	for _, c := range api.Spec.Containers {
		all = append(all, &container{spec: c, stopped: make(chan struct{})})
	}
	return all
}

// startContainer makes a container's session, or finds it, and has it followed; false: it
// has none, and the pod is to go or its sandbox has ended.
func (p *Pods) startContainer(ctx context.Context, pod *pod, c *container, env []variable) bool {
	if p.sessionOf(c) != "" { // of a process before this one
		return true
	}
	p.mu.Lock()
	sb, api := pod.sandbox, pod.api
	c.env = asMap(env)
	p.mu.Unlock()
	spec := sessionOf(api, c, env)
	ok := p.attempt(ctx, pod, func() bool {
		s, err := p.cfg.Node.EnsureSession(ctx, instance(sb), string(pod.uid)+"/"+c.spec.Name, spec)
		if err != nil {
			const reason = "CreateContainerError"
			p.mu.Lock()
			c.waits = &corev1.ContainerStateWaiting{Reason: reason, Message: text(err)}
			p.mu.Unlock()
			p.notYet(ctx, pod, reason, err)
			return true
		}
		p.follow(pod, c, s)
		return false
	})
	if !ok || p.sessionOf(c) == "" {
		return false
	}
	p.event(pod, corev1.EventTypeNormal, "Started", "Started container "+c.spec.Name)
	return true
}

// follow has a session be a container, and follows it.
func (p *Pods) follow(pod *pod, c *container, s procapi.Session) {
	p.mu.Lock()
	c.session, c.now, c.told = s.ID, s, s.Cursor.Latest
	p.mu.Unlock()
	p.background(func(ctx context.Context) {
		defer close(c.stopped)
		p.followContainer(ctx, pod, c)
	})
}

// sessionOf is what supervises a container's command.
func sessionOf(api *corev1.Pod, c *container, env []variable) procapi.SessionSpec {
	expand := expander(env)
	grace := int64(gracePeriod(api) / time.Second)
	spec := procapi.SessionSpec{
		Name: c.spec.Name, Cwd: c.spec.WorkingDir, Env: asMap(env),
		Lifecycle: procapi.SessionLifecycle{
			DesiredState: procapi.DesiredRunning, RuntimeRecovery: procapi.RecoveryRestart, GraceSeconds: &grace,
			Restart: procapi.SessionRestart{
				Policy: restartPolicy(api.Spec.RestartPolicy, c.init), InitialBackoffMS: firstBackoff.Milliseconds(), MaxBackoffMS: lastBackoff.Milliseconds(),
			},
		},
	}
	spec.Probes, _ = podspec.ProbesOf(&c.spec) // it was checked with the pod
	for _, arg := range slices.Concat(c.spec.Command, c.spec.Args) {
		spec.Command = append(spec.Command, expand(arg))
	}
	if c.spec.TTY {
		spec.IO.Mode = procapi.IOPTY
	}
	return spec
}

func restartPolicy(policy corev1.RestartPolicy, init bool) string {
	switch {
	case policy == corev1.RestartPolicyNever:
		return procapi.RestartNever
	case policy == corev1.RestartPolicyOnFailure, init: // one that succeeded is done
		return procapi.RestartOnFailure
	}
	return procapi.RestartAlways
}

// followContainer takes note of what becomes of a container until its session has ended
// for good, its sandbox has, or ctx does.
func (p *Pods) followContainer(ctx context.Context, pod *pod, c *container) {
	after := uint64(0)
	retry(ctx, func() bool {
		p.mu.Lock()
		sb, gone, id := pod.sandbox, pod.gone, c.session
		p.mu.Unlock()
		if gone != "" || sb == nil {
			return false
		}
		err := p.cfg.Node.FollowSession(ctx, instance(sb), id, after, func(e procapi.SessionEvent) bool {
			after = e.Seq
			return e.Type == procapi.SessionOutput || p.containerChanged(ctx, pod, c, e)
		})
		if err != nil {
			p.cfg.Log.Debug("lost a container's stream", "sandbox", sb.GetId(), "container", c.spec.Name, "error", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		return !ended(c.now.Phase)
	})
}

// containerChanged reads a session again after something became of it; false: it has
// ended for good.
func (p *Pods) containerChanged(ctx context.Context, pod *pod, c *container, e procapi.SessionEvent) bool {
	p.mu.Lock()
	sb, told := pod.sandbox, c.told
	p.mu.Unlock()
	if sb == nil {
		return false
	}
	if e.Seq > told {
		p.tellProbe(pod, c, e)
	}
	s, err := p.cfg.Node.Session(ctx, instance(sb), c.session)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		c.now = s
	}
	if e.Type == procapi.AttemptExited && (err != nil || !ended(s.Phase)) {
		c.last = &corev1.ContainerStateTerminated{Reason: "Error", FinishedAt: metav1.NewTime(e.OccurredAt).Rfc3339Copy()}
		if e.ExitCode != nil {
			c.last.ExitCode = int32(*e.ExitCode)
		}
		if c.last.ExitCode == 0 {
			c.last.Reason = "Completed"
		}
	}
	pod.kick()
	return !ended(c.now.Phase)
}

// tellProbe says as an event what probes have done, as a kubelet does.
func (p *Pods) tellProbe(pod *pod, c *container, e procapi.SessionEvent) {
	switch {
	case e.Type == procapi.ProbeFailed:
		p.event(pod, corev1.EventTypeWarning, "Unhealthy", nodeapi.Text(e.Reason))
	case e.Type == "session."+procapi.PhaseStopping && (e.Reason == procapi.EndedByLiveness || e.Reason == procapi.EndedByStartup):
		message := "Container " + c.spec.Name + " failed " + strings.ReplaceAll(e.Reason, "_", " ")
		if p.api(pod).Spec.RestartPolicy != corev1.RestartPolicyNever {
			message += ", will be restarted"
		}
		p.event(pod, corev1.EventTypeNormal, "Killing", message)
	}
}

// ended reports whether nothing follows by itself.
func ended(phase string) bool {
	return phase == procapi.PhaseExited || phase == procapi.PhaseFailed || phase == procapi.PhaseStopped
}

// finishInit waits for an init container; false: it failed for good, or the pod is to go.
func (p *Pods) finishInit(ctx context.Context, pod *pod, c *container) bool {
	p.mu.Lock()
	done := c.now.Phase == procapi.PhaseExited // under a process before this one
	p.mu.Unlock()
	if done {
		return true
	}
	p.tellContainers(pod)
	for {
		select {
		case <-c.stopped:
			p.mu.Lock()
			defer p.mu.Unlock()
			return c.now.Phase == procapi.PhaseExited
		case <-ctx.Done():
			return false
		case <-pod.wake:
			p.tellContainers(pod)
		}
	}
}

func (p *Pods) tellContainers(pod *pod) {
	p.set(pod, func() corev1.PodStatus { return podStatus(pod, p.cfg.HostIP, pod.sandbox, pod.containers) })
}

func (p *Pods) sessionOf(c *container) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return c.session
}

// status is what Kubernetes is told of a container. It is called with Pods.mu held.
func (c *container) status(id string) corev1.ContainerStatus {
	s := corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, ImageID: c.spec.Image, RestartCount: int32(c.now.RestartCount), Started: new(bool),
	}
	if c.last != nil {
		s.LastTerminationState.Terminated = c.last
	}
	if c.session == "" {
		if s.State.Waiting = c.waits; c.waits == nil {
			s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
		}
		return s
	}
	s.ContainerID = containerID(id + "/" + c.session)
	a := c.now.Attempt
	switch phase := c.now.Phase; {
	case phase == procapi.PhaseBackoff:
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: reasonOf(a)}
	case ended(phase):
		s.State.Terminated = terminated(c.now, s.ContainerID)
	case phase == procapi.PhasePending || a == nil || a.StartedAt.IsZero():
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	default:
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(a.StartedAt).Rfc3339Copy()}
		probed := procapi.SessionProbed{Started: true, Ready: true}
		if c.now.Probed != nil {
			probed = *c.now.Probed
		}
		s.Ready, s.Started = !c.init && probed.Ready, &probed.Started
	}
	return s
}

func reasonOf(a *procapi.SessionAttempt) string {
	if a == nil {
		return ""
	}
	return nodeapi.Text(a.Reason)
}

// terminated is how a session's last attempt ended. One that could not be started has no
// exit code of its own.
func terminated(s procapi.Session, id string) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{ExitCode: 128, Reason: "Error", ContainerID: id, FinishedAt: metav1.NewTime(s.UpdatedAt).Rfc3339Copy()}
	if s.Phase == procapi.PhaseStopped {
		t.ExitCode = 137
	}
	a := s.Attempt
	if a == nil {
		t.Reason = "StartError"
		return t
	}
	t.StartedAt, t.Message = metav1.NewTime(a.StartedAt).Rfc3339Copy(), nodeapi.Text(a.Reason)
	if !a.FinishedAt.IsZero() {
		t.FinishedAt = metav1.NewTime(a.FinishedAt).Rfc3339Copy()
	}
	if a.ExitCode != nil {
		t.ExitCode = int32(*a.ExitCode)
	}
	if t.ExitCode == 0 {
		t.Reason, t.Message = "Completed", ""
	}
	return t
}
