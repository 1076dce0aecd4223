// Package podspec translates pods into what noded is asked for, and says why a pod
// can't be one of ours.
//
// There are two kinds. A pod of a pool stands for a slot that tenants claim: what the
// slot is made from is in its annotations, put there by who made the ReplicaSet. Any
// other pod is a sandbox of its own, whose containers are supervised commands in one
// root filesystem. The package is pure: it asks nobody and keeps nothing. What it
// does not know it refuses.
package podspec

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"s0.run/internal/sandbox"
)

// Labels of pods. The first is the ReplicaSets' selector, too: a pod that is claimed
// is none of theirs any more.
const (
	LabelState    = "s0.run/state"
	LabelSandbox  = "s0.run/sandbox"
	LabelTeam     = "s0.run/team"
	LabelTemplate = "s0.run/template"

	StateFree    = "free"
	StateClaimed = "claimed"
)

// Annotations of pods.
const (
	AnnotationPool = "s0.run/pool" // the key of the pool that the pod is a slot of
	AnnotationTeam = "s0.run/pool-team"
	AnnotationSpec = "s0.run/spec"          // of the slot: JSON of sandbox.Spec
	AnnotationRun  = "s0.run/runtime-class" // of any other pod; default gvisor
)

// PoolContainer is the name of the one container of a pool's pod.
const PoolContainer = "sandbox"

// Taint keeps pods away that don't ask for a sandbox.
const Taint = "s0.run/sandbox"

// RuntimeClass is the name of the class whose pods are scheduled to nodes like this one.
const RuntimeClass = "s0"

// Refusal says why a pod can't be a sandbox. Its text is for who made the pod.
type Refusal struct {
	Reason  string // one word, of the pod's status and event
	Message string
}

// Reasons of refusals.
const (
	ReasonNotAllowed  = "NotAllowed"  // it asks for what no sandbox has
	ReasonUnsupported = "Unsupported" // it asks for what this node can't do
	ReasonInvalid     = "InvalidSpec"
)

func (r *Refusal) Error() string { return r.Message }

func refuse(reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Slot is what a pool's pod asks for.
type Slot struct {
	PoolKey string
	Team    string // whose the pool is; empty: everybody's
	Spec    sandbox.Spec
}

// Pooled reports whether a pod says that it stands for a slot.
func Pooled(pod *corev1.Pod) bool { return pod.Annotations[AnnotationPool] != "" }

// SlotOf reads a pool's pod. Only those of the pools' own namespace count: whoever may
// make pods there decides what tenants get.
func SlotOf(pod *corev1.Pod, namespace string) (Slot, *Refusal) {
	if pod.Namespace != namespace {
		return Slot{}, refuse(ReasonNotAllowed, "pods of pools are in namespace %q alone: remove annotation %s", namespace, AnnotationPool)
	}
	if r := Check(pod); r != nil {
		return Slot{}, r
	}
	slot := Slot{PoolKey: pod.Annotations[AnnotationPool], Team: pod.Annotations[AnnotationTeam]}
	if err := json.Unmarshal([]byte(pod.Annotations[AnnotationSpec]), &slot.Spec); err != nil {
		return Slot{}, refuse(ReasonInvalid, "annotation %s: %v", AnnotationSpec, err)
	}
	if err := slot.Spec.Validate(); err != nil {
		return Slot{}, refuse(ReasonInvalid, "annotation %s: %v", AnnotationSpec, err)
	}
	if len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) != 0 {
		return Slot{}, refuse(ReasonInvalid, "a pod of a pool has one container and no init containers")
	}
	if c := pod.Spec.Containers[0]; c.StartupProbe != nil || c.ReadinessProbe != nil || c.LivenessProbe != nil {
		return Slot{}, refuse(ReasonInvalid, "a pod of a pool has no probes: its template's processes have their own")
	}
	// The scheduler counts what the container asks for, the node gives what the slot's spec says.
	c := pod.Spec.Containers[0]
	if memory, cpu := limitsOf(&c); c.Image != slot.Spec.Image || memory != slot.Spec.MemoryBytes || cpu != slot.Spec.CPUMillis {
		return Slot{}, refuse(ReasonInvalid, "image, memory and cpu of the container are not those of annotation %s", AnnotationSpec)
	}
	return slot, nil
}

// Defaults of containers that name no limits.
const (
	defaultMemoryBytes = 512 << 20
	defaultCPUMillis   = 1000
)

// SpecOf is what the sandbox of a pod is made from that is no pool's. Its containers
// share the sandbox and so one image; memory and cpu are what they may have together.
func SpecOf(pod *corev1.Pod) (sandbox.Spec, *Refusal) {
	if r := Check(pod); r != nil {
		return sandbox.Spec{}, r
	}
	spec := sandbox.Spec{RuntimeClass: sandbox.GVisor}
	if class := pod.Annotations[AnnotationRun]; class != "" {
		spec.RuntimeClass = sandbox.RuntimeClass(class)
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		memory, cpu := limitsOf(c)
		spec.MemoryBytes += orDefault(memory, defaultMemoryBytes)
		spec.CPUMillis += orDefault(cpu, defaultCPUMillis)
		spec.DiskBytes += c.Resources.Limits.StorageEphemeral().Value()
	}
	for _, c := range append(pod.Spec.InitContainers[:len(pod.Spec.InitContainers):len(pod.Spec.InitContainers)], pod.Spec.Containers...) {
		switch {
		case spec.Image == "":
			spec.Image = c.Image
		case spec.Image != c.Image:
			return sandbox.Spec{}, refuse(ReasonUnsupported, "containers of one sandbox share its root filesystem: image %q of container %s is not %q", c.Image, c.Name, spec.Image)
		}
	}
	spec.MemoryBytes = max(spec.MemoryBytes, sandbox.MinMemoryBytes)
	if err := spec.Validate(); err != nil {
		return sandbox.Spec{}, refuse(ReasonInvalid, "%v", err)
	}
	return spec, nil
}

func orDefault(v, def int64) int64 {
	if v == 0 {
		return def
	}
	return v
}

// limitsOf are a container's limits, or else what it requests; 0: it names none.
func limitsOf(c *corev1.Container) (memoryBytes, cpuMillis int64) {
	of := func(name corev1.ResourceName) *resource.Quantity {
		if q, ok := c.Resources.Limits[name]; ok {
			return &q
		}
		q := c.Resources.Requests[name]
		return &q
	}
	return of(corev1.ResourceMemory).Value(), of(corev1.ResourceCPU).MilliValue()
}
