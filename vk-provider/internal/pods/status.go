package pods

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/vk-provider/internal/podspec"
)

// The functions here say what a pod's status is of what is known. They are called with
// Pods.mu held.

// baseStatus is what all statuses have.
func baseStatus(pod *pod, hostIP string) corev1.PodStatus {
	now := metav1.Now().Rfc3339Copy() // as Kubernetes keeps it
	s := corev1.PodStatus{
		ObservedGeneration: pod.api.Generation, HostIP: hostIP, HostIPs: []corev1.HostIP{{IP: hostIP}},
		StartTime: &now, QOSClass: pod.api.Status.QOSClass,
	}
	if pod.status.StartTime != nil {
		s.StartTime = pod.status.StartTime
	} else if pod.api.Status.StartTime != nil {
		s.StartTime = pod.api.Status.StartTime
	}
	for _, c := range pod.api.Spec.EphemeralContainers {
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 128, Reason: podspec.ReasonNotAllowed, Message: noEphemeral}},
		})
	}
	return s
}

// noEphemeral is said of containers that are put into a pod that runs.
const noEphemeral = "a sandbox can't have spec.ephemeralContainers: what it runs is started by kubectl exec"

// conditions are those that kubectl and controllers look at.
func conditions(pod *pod, initialized, ready bool, reason string) []corev1.PodCondition {
	now := metav1.Now().Rfc3339Copy()
	all := []corev1.PodCondition{
		{Type: corev1.PodReadyToStartContainers, Status: truth(initialized)},
		{Type: corev1.PodInitialized, Status: truth(initialized)},
		{Type: corev1.PodReady, Status: truth(ready), Reason: reason},
		{Type: corev1.ContainersReady, Status: truth(ready), Reason: reason},
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	for i := range all {
		all[i].LastTransitionTime, all[i].ObservedGeneration = now, pod.api.Generation
	}
	return all
}

func truth(b bool) corev1.ConditionStatus {
	if b {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

// keepTransitions keeps the times of conditions that are as they were.
func keepTransitions(old, new []corev1.PodCondition) {
	for i := range new {
		for _, was := range old {
			if was.Type == new[i].Type && was.Status == new[i].Status {
				new[i].LastTransitionTime = was.LastTransitionTime
			}
		}
	}
}

func pendingStatus(pod *pod, hostIP, reason, message string) corev1.PodStatus {
	s := baseStatus(pod, hostIP)
	s.Phase, s.Conditions = corev1.PodPending, conditions(pod, false, false, "ContainersNotReady")
	for _, c := range pod.api.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, waiting(c, reason, message))
	}
	for _, c := range pod.api.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, waiting(c, reason, message))
	}
	return s
}

// lives is the status of a pod of which something runs, though it can't be brought up
// (R6): containers that are there are told of; one that ran under a process before this
// one is what it was, unless the whole node's picture has nothing for it.
func lives(pod *pod, hostIP string, synced bool) (corev1.PodStatus, bool) {
	if slices.ContainsFunc(pod.containers, func(c *container) bool { return c.session != "" }) {
		return podStatus(pod, hostIP, pod.sandbox, pod.containers), true
	}
	had := !synced || pod.slot != nil || pod.sandbox != nil
	return pod.status, had && pod.status.Phase == corev1.PodRunning
}

func waiting(c corev1.Container, reason, message string) corev1.ContainerStatus {
	return corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, Started: new(bool),
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
	}
}

func failedStatus(pod *pod, hostIP, reason, message string) corev1.PodStatus {
	s := pendingStatus(pod, hostIP, reason, message)
	s.Phase, s.Reason, s.Message = corev1.PodFailed, reason, message
	return s
}

// slotStatus is the status of a pool's pod: ready is what may be claimed, or answers
// whoever has claimed it.
func slotStatus(pod *pod, hostIP string, slot *nodeapi.PodSlot, sb *nodeapi.Sandbox) corev1.PodStatus {
	if sb != nil && sandbox.State(sb.GetState()) == sandbox.Failed {
		return failedStatus(pod, hostIP, "SandboxFailed", sb.GetReason())
	}
	s := baseStatus(pod, hostIP)
	setIP(&s, slot.GetIp())
	// One that was just claimed is as ready as it was; its sandbox is what is told next.
	ready, reason := slot.GetState() == nodeapi.PodSlotFree || slot.GetState() == nodeapi.PodSlotClaimed, "Warming"
	if sb != nil {
		setIP(&s, sb.GetIp())
		ready, reason = usable(sb), sb.GetState()
	}
	if ready {
		reason = ""
	}
	s.Phase, s.Conditions = corev1.PodRunning, conditions(pod, true, ready, reason)
	c := pod.api.Spec.Containers[0]
	status := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: c.Image, ContainerID: containerID(slot.GetId()), Ready: ready, Started: &ready}
	if sb == nil || usable(sb) {
		status.State.Running = &corev1.ContainerStateRunning{StartedAt: *s.StartTime}
	} else { // asleep, or nobody knows: there may be no process now
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: sb.GetState()}
	}
	s.ContainerStatuses = []corev1.ContainerStatus{status}
	return s
}

func setIP(s *corev1.PodStatus, ip string) {
	if ip != "" {
		s.PodIP, s.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	}
}

func containerID(id string) string {
	if id == "" {
		return ""
	}
	return "s0://" + id
}

// podStatus is the status of a pod whose containers are sessions.
func podStatus(pod *pod, hostIP string, sb *nodeapi.Sandbox, containers []*container) corev1.PodStatus {
	s := baseStatus(pod, hostIP)
	setIP(&s, sb.GetIp())
	initialized, ready, running, failed := true, true, false, false
	for _, c := range containers {
		status := c.status(sb.GetId())
		if c.init {
			initialized = initialized && status.State.Terminated != nil && status.State.Terminated.ExitCode == 0
			s.InitContainerStatuses = append(s.InitContainerStatuses, status)
			continue
		}
		s.ContainerStatuses = append(s.ContainerStatuses, status)
		ready = ready && status.Ready
		running = running || status.State.Terminated == nil
		failed = failed || status.State.Terminated != nil && status.State.Terminated.ExitCode != 0
	}
	s.Phase = corev1.PodRunning
	switch {
	case !initialized && initFailed(containers):
		s.Phase = corev1.PodFailed
	case !initialized:
		s.Phase = corev1.PodPending
	case !running && failed:
		s.Phase = corev1.PodFailed
	case !running:
		s.Phase = corev1.PodSucceeded
	}
	reason := ""
	if !ready || !initialized {
		reason = "ContainersNotReady"
		if s.Phase == corev1.PodSucceeded {
			reason = "PodCompleted"
		}
	}
	s.Conditions = conditions(pod, initialized, ready && initialized, reason)
	return s
}

// initFailed reports whether an init container has failed for good.
func initFailed(containers []*container) bool {
	for _, c := range containers {
		if t := c.status("").State.Terminated; c.init && t != nil && t.ExitCode != 0 {
			return true
		}
	}
	return false
}

// podClaimed reports whether a pod's object says that a tenant has it.
func podClaimed(api *corev1.Pod) bool {
	return api.Labels[podspec.LabelState] == podspec.StateClaimed
}

// released reports whether a claimed pod's object is its ReplicaSet's no more.
func released(api *corev1.Pod) bool {
	return podClaimed(api) && metav1.GetControllerOf(api) == nil
}
