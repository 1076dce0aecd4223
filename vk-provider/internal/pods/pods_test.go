package pods

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	corev1listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/vk-provider/internal/noded"
	"s0.run/vk-provider/internal/podspec"
)

func TestExpansion(t *testing.T) {
	t.Parallel()
	expand := expander([]variable{{"A", "1"}, {"B", "$(A)"}})
	for in, want := range map[string]string{
		"": "", "a": "a", "$": "$", "$(A)": "1", "x$(A)y$(B)": "x1y$(A)", "$$(A)": "$(A)", "$(C)": "$(C)", "$(A": "$(A", "$A": "$A", "$$$(A)": "$1",
	} {
		if got := expand(in); got != want {
			t.Errorf("%q became %q, not %q", in, got, want)
		}
	}
}

func TestOwnResources(t *testing.T) {
	t.Parallel()
	c := &corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1500m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
	}}}
	for name, want := range map[string]string{"limits.cpu/": "2", "limits.cpu/1m": "1500", "limits.memory/1Mi": "64", "limits.memory/": "67108864"} {
		ref := &corev1.ResourceFieldSelector{}
		var divisor string
		if _, err := fmt.Sscanf(replaceSlash(name), "%s %s", &ref.Resource, &divisor); err == nil {
			ref.Divisor = resource.MustParse(divisor)
		}
		if got, err := resourceOf(c, ref); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %s", name, got, err, want)
		}
	}
	if _, err := resourceOf(c, &corev1.ResourceFieldSelector{Resource: "requests.cpu"}); err == nil {
		t.Error("what it does not request has a value")
	}
}

// Files of the downward API are fields of the pod, and resources of any container.
func TestDownwardFiles(t *testing.T) {
	t.Parallel()
	limits := corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}}
	r := resolver{api: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}, {Name: "b", Resources: limits}}}}}
	got := map[string]string{}
	add := func(name, content string, _ *int32) { got[name] = content }
	memory := func(container string) *corev1.ResourceFieldSelector {
		return &corev1.ResourceFieldSelector{ContainerName: container, Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}
	}
	items := []corev1.DownwardAPIVolumeFile{{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}, {Path: "memory", ResourceFieldRef: memory("b")}}
	if err := r.downwardFiles(items, add); err != nil || got["name"] != "p" || got["memory"] != "64" {
		t.Errorf("%v, %v", got, err)
	}
	for _, of := range []corev1.DownwardAPIVolumeFile{{Path: "x", ResourceFieldRef: memory("a")}, {Path: "x", ResourceFieldRef: memory("c")}, {Path: "x"}} {
		if err := r.downwardFiles([]corev1.DownwardAPIVolumeFile{of}, add); err == nil {
			t.Errorf("%+v has content", of)
		}
	}
}

func replaceSlash(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '/' {
			b[i] = ' '
		}
	}
	return string(b)
}

// lister lists pods that Kubernetes has.
func lister(t *testing.T, known ...*corev1.Pod) (corev1listers.PodLister, cache.Indexer) {
	t.Helper()
	index := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for _, api := range known {
		if err := index.Add(api); err != nil {
			t.Fatal(err)
		}
	}
	return corev1listers.NewPodLister(index), index
}

// known is Pods with a whole picture of a node.
func known(slots ...*nodeapi.PodSlot) *Pods {
	p := New(Config{Warmups: 1})
	picture := noded.Picture{Slots: map[string]*nodeapi.PodSlot{}, Sandboxes: map[string]*nodeapi.Sandbox{}}
	for _, s := range slots {
		picture.Slots[s.GetPod()] = s
	}
	p.Synced(picture)
	return p
}

func free(n int) (all []*nodeapi.PodSlot) {
	for i := range n {
		all = append(all, &nodeapi.PodSlot{Pod: fmt.Sprint("uid-", i), Id: fmt.Sprint("slot-", i), State: nodeapi.PodSlotFree})
	}
	return all
}

// What has no pod ends only after a grace, in part, and when both lists are whole.
func TestG09_H06_OrphansHaveAGrace(t *testing.T) {
	t.Parallel()
	p := known(free(30)...)
	now := time.Now()
	mine := []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{UID: "uid-0"}}}
	if got := p.forgotten(mine, now); len(got) != 0 {
		t.Fatalf("at the first look %d end", len(got))
	}
	if got := p.forgotten(mine, now.Add(orphanGrace-time.Second)); len(got) != 0 {
		t.Fatalf("within the grace %d end", len(got))
	}
	got := p.forgotten(mine, now.Add(orphanGrace))
	if len(got) != 3 {
		t.Fatalf("%d of 30 end at once", len(got))
	}
	for _, req := range got {
		if req.GetId() == "slot-0" {
			t.Error("one that has a pod ends")
		}
		if req.GetClaimId() == "" {
			t.Error("one that is claimed meanwhile would end, too")
		}
	}
	// A pod that comes back, late, begins a new grace.
	all := append(mine, corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid-1"}})
	p.forgotten(all, now.Add(orphanGrace))
	for _, req := range p.forgotten(mine, now.Add(orphanGrace)) {
		if req.GetId() == "slot-1" {
			t.Error("one ends whose pod was just there")
		}
	}
	p.Lost(fmt.Errorf("gone"))
	if got := p.forgotten(nil, now.Add(2*orphanGrace)); len(got) != 0 {
		t.Errorf("while the node can't be heard %d end", len(got))
	}
}

// A tenant's sandbox has no pod to lose.
func TestG09_ClaimedSandboxesAreNoOrphans(t *testing.T) {
	t.Parallel()
	p := known(&nodeapi.PodSlot{Pod: "uid", Id: "s", State: nodeapi.PodSlotClaimed})
	p.Sandbox(&nodeapi.Sandbox{Id: "s", Pod: "uid", ClaimId: "a tenant's", State: "running"})
	p.Sandbox(&nodeapi.Sandbox{Id: "p", ClaimId: nodeapi.PodClaim("other"), State: "running"})
	now := time.Now()
	p.forgotten(nil, now)
	got := p.forgotten(nil, now.Add(orphanGrace))
	if len(got) != 1 || got[0].GetClaimId() != nodeapi.PodClaim("other") {
		t.Fatalf("these end: %v", got)
	}
}

// claimed is a pod that Kubernetes says a tenant has, and a ReplicaSet still.
func claimed() *pod {
	controller := true
	return &pod{uid: "uid", namespace: "pools", name: "p", pooled: true, wake: make(chan struct{}, 1), api: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		UID: "uid", Namespace: "pools", Name: "p", Labels: map[string]string{podspec.LabelState: podspec.StateClaimed},
		OwnerReferences: []metav1.OwnerReference{{UID: "set", Kind: "ReplicaSet", Name: "s", Controller: &controller}, {UID: "other", Kind: "Other", Name: "o"}},
	}}}
}

// A pod whose sandbox ended while nobody looked has ended: no slot is made for it.
func TestH06_AClaimedPodGetsNoOtherSlot(t *testing.T) {
	t.Parallel()
	for id, gone := range map[string]bool{"": true, "s": false} {
		p, pod := New(Config{Warmups: 1}), claimed()
		p.byUID[pod.uid] = pod
		found := make(chan bool)
		go func() { found <- p.findClaimed(t.Context(), pod) }()
		picture := noded.Picture{Slots: map[string]*nodeapi.PodSlot{}, Sandboxes: map[string]*nodeapi.Sandbox{}}
		if id != "" {
			picture.Slots["uid"] = &nodeapi.PodSlot{Pod: "uid", Id: id, State: nodeapi.PodSlotClaimed}
			picture.Sandboxes[id] = &nodeapi.Sandbox{Id: id, Pod: "uid", State: "running"}
		}
		p.Synced(picture)
		if !<-found || (pod.gone != "") != gone || pod.sandbox.GetId() != id {
			t.Errorf("with %q: gone is %q, the sandbox %v", id, pod.gone, pod.sandbox)
		}
	}
}

// A claim's one write takes the pod from its ReplicaSet, too; before it, who deletes the
// pod does not mean the sandbox.
func TestG09_AClaimedPodIsNoReplicaSets(t *testing.T) {
	t.Parallel()
	pod := claimed()
	pod.api.Labels = nil
	kube := fake.NewClientset(pod.api)
	p := New(Config{Warmups: 1, Kube: kube, Log: slog.New(slog.DiscardHandler)})
	if !p.label(t.Context(), pod, &nodeapi.Sandbox{Id: "s", Team: "t"}) {
		t.Fatal("it was not labelled")
	}
	now, err := kube.CoreV1().Pods("pools").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for what, api := range map[string]*corev1.Pod{"Kubernetes": now, "what is known of it": pod.api} {
		if !released(api) || len(api.OwnerReferences) != 1 || api.Labels[podspec.LabelSandbox] != "s" {
			t.Errorf("%s has %v, %v", what, api.Labels, api.OwnerReferences)
		}
	}
	if n := len(kube.Actions()); n != 2 { // with ours
		t.Errorf("it cost %d calls", n-1)
	}
	if !p.label(t.Context(), pod, &nodeapi.Sandbox{Id: "s", Team: "t"}) || len(kube.Actions()) != 2 {
		t.Error("it was labelled again")
	}
	if released(claimed().api) {
		t.Error("a ReplicaSet's pod is released")
	}
}

// After a restart, VK is told of no pods to compare with its cache.
func TestH06_ARestartListsNothingToEnd(t *testing.T) {
	t.Parallel()
	p := known(free(3)...)
	if list, err := p.GetPods(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("it lists %v, %v", list, err)
	}
}

func TestContainerStatuses(t *testing.T) {
	t.Parallel()
	seven, start := 7, time.Now().Add(-time.Minute)
	attempt := &procapi.SessionAttempt{ID: "a", Number: 2, StartedAt: start, FinishedAt: start.Add(time.Second), ExitCode: &seven}
	for phase, check := range map[string]func(corev1.ContainerStatus) bool{
		procapi.PhaseRunning: func(s corev1.ContainerStatus) bool { return s.Ready && s.State.Running != nil && s.RestartCount == 1 },
		procapi.PhaseBackoff: func(s corev1.ContainerStatus) bool { return !s.Ready && s.State.Waiting.Reason == "CrashLoopBackOff" },
		procapi.PhaseFailed: func(s corev1.ContainerStatus) bool {
			return s.State.Terminated.ExitCode == 7 && s.State.Terminated.Reason == "Error"
		},
		procapi.PhasePending: func(s corev1.ContainerStatus) bool { return s.State.Waiting != nil && !s.Ready },
	} {
		c := &container{spec: corev1.Container{Name: "c"}, session: "s", now: procapi.Session{Phase: phase, Attempt: attempt, RestartCount: 1}}
		if s := c.status("id"); !check(s) {
			t.Errorf("%s: %+v", phase, s)
		}
	}
	c := &container{spec: corev1.Container{Name: "c"}}
	if s := c.status("id"); s.State.Waiting == nil || s.State.Waiting.Reason != "PodInitializing" {
		t.Errorf("before it is started: %+v", s)
	}
}

// Between the claim and the first word of its sandbox a pod is as ready as it was.
func TestAClaimIsNoUnreadiness(t *testing.T) {
	t.Parallel()
	p := claimed()
	p.api.Spec.Containers = []corev1.Container{{Name: "c"}}
	slot, sb := &nodeapi.PodSlot{Id: "s", Ip: "10.0.0.1", State: nodeapi.PodSlotFree}, &nodeapi.Sandbox{Id: "s", Ip: "10.0.0.1", State: "running"}
	p.status = slotStatus(p, "1.2.3.4", slot, nil)
	slot.State = nodeapi.PodSlotClaimed
	for _, sb := range []*nodeapi.Sandbox{nil, sb} {
		next := slotStatus(p, "1.2.3.4", slot, sb)
		keepTransitions(p.status.Conditions, next.Conditions)
		if !equality.Semantic.DeepEqual(p.status, next) {
			t.Errorf("the status became %+v, was %+v", next, p.status)
		}
	}
}

// What somebody else writes of a pod is put right, and what is right is left alone.
func TestStatusesAreToldAgain(t *testing.T) {
	t.Parallel()
	list, index := lister(t)
	p, pod := New(Config{Warmups: 1, Lister: list}), claimed()
	pod.api.Spec.Containers = []corev1.Container{{Name: "c"}}
	p.byUID[pod.uid] = pod
	var told []*corev1.Pod
	p.NotifyPods(t.Context(), func(o *corev1.Pod) { told = append(told, o) })
	set := func() {
		p.set(pod, func() corev1.PodStatus {
			return slotStatus(pod, "1.2.3.4", &nodeapi.PodSlot{State: nodeapi.PodSlotFree}, nil)
		})
	}
	set()
	set() // which is no news
	if len(told) != 1 {
		t.Fatalf("told %d times", len(told))
	}
	known := told[0].DeepCopy()
	known.ResourceVersion = "7"
	if err := index.Add(known); err != nil {
		t.Fatal(err)
	}
	if p.retell(); len(told) != 1 {
		t.Error("told again of what is known")
	}
	spoilt := known.DeepCopy()
	spoilt.Status.Conditions[2].Status, spoilt.ResourceVersion = corev1.ConditionFalse, "8"
	if err := index.Update(spoilt); err != nil {
		t.Fatal(err)
	}
	for n := 2; n < 4; n++ { // again while the write fails: VK drops what it was told before
		if p.retell(); len(pod.wake) != 1 || len(told) != n-1 {
			t.Fatalf("told %d times, not by the pod's own goroutine", len(told))
		}
		<-pod.wake
		set()
		if len(told) != n || equality.Semantic.DeepEqual(told[n-1], told[n-2]) || told[n-1].Status.Conditions[2].Status != corev1.ConditionTrue {
			t.Errorf("told %+v", told)
		}
	}
	if err := index.Update(known); err != nil {
		t.Fatal(err)
	}
	if p.retell(); len(pod.wake) != 0 {
		t.Error("told again of what is known by now")
	}
}

// What has ended is told again as well.
func TestEndsAreToldAgain(t *testing.T) {
	t.Parallel()
	api := needy("main")
	api.Spec.HostNetwork, api.Status = true, corev1.PodStatus{} // which is refused
	p, told := started(t, &node{}, api)
	if err := p.CreatePod(t.Context(), api.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if s := <-told; s.Phase != corev1.PodFailed {
			t.Fatalf("told of %+v", s)
		}
		p.retell()
	}
}

// Ready and started are what probes say, where there are some.
func TestProbedContainers(t *testing.T) {
	t.Parallel()
	for _, probed := range []procapi.SessionProbed{{}, {Started: true}, {Started: true, Ready: true}} {
		c := &container{spec: corev1.Container{Name: "c"}, session: "s", now: procapi.Session{Phase: procapi.PhaseRunning, Probed: &probed, Attempt: &procapi.SessionAttempt{StartedAt: time.Now()}}}
		if s := c.status("id"); s.Ready != probed.Ready || *s.Started != probed.Started || s.State.Running == nil {
			t.Errorf("%+v: %+v", probed, s)
		}
	}
}

// What probes find is told as a kubelet tells it.
func TestProbesAreEvents(t *testing.T) {
	t.Parallel()
	events := record.NewFakeRecorder(8)
	p := New(Config{Warmups: 1, Events: events})
	pod, c := &pod{api: &corev1.Pod{}}, &container{spec: corev1.Container{Name: "c"}}
	p.tellProbe(pod, c, procapi.SessionEvent{Type: procapi.ProbeFailed, Reason: "Liveness probe failed: port 80: connection refused"})
	p.tellProbe(pod, c, procapi.SessionEvent{Type: "session." + procapi.PhaseStopping, Reason: procapi.EndedByLiveness})
	pod.api = &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever}}
	p.tellProbe(pod, c, procapi.SessionEvent{Type: "session." + procapi.PhaseStopping, Reason: procapi.EndedByStartup})
	p.tellProbe(pod, c, procapi.SessionEvent{Type: "session." + procapi.PhaseStopping, Reason: "stopped"})
	close(events.Events)
	var got []string
	for e := range events.Events {
		got = append(got, e)
	}
	if want := []string{
		"Warning Unhealthy Liveness probe failed: port 80: connection refused", "Normal Killing Container c failed liveness probe, will be restarted", "Normal Killing Container c failed startup probe",
	}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestPodPhases(t *testing.T) {
	t.Parallel()
	zero, one := 0, 1
	in := func(phase string, code *int, init bool) *container {
		return &container{init: init, session: "s", now: procapi.Session{Phase: phase, Attempt: &procapi.SessionAttempt{StartedAt: time.Now(), ExitCode: code}}}
	}
	p := &pod{uid: types.UID("u"), api: &corev1.Pod{}}
	for name, c := range map[string]struct {
		containers []*container
		want       corev1.PodPhase
	}{
		"runs":            {[]*container{in(procapi.PhaseRunning, nil, false)}, corev1.PodRunning},
		"half":            {[]*container{in(procapi.PhaseRunning, nil, false), in(procapi.PhaseExited, &zero, false)}, corev1.PodRunning},
		"done":            {[]*container{in(procapi.PhaseExited, &zero, false)}, corev1.PodSucceeded},
		"failed":          {[]*container{in(procapi.PhaseFailed, &one, false), in(procapi.PhaseExited, &zero, false)}, corev1.PodFailed},
		"initialises":     {[]*container{in(procapi.PhaseRunning, nil, true), {}}, corev1.PodPending},
		"init has failed": {[]*container{in(procapi.PhaseFailed, &one, true), {}}, corev1.PodFailed},
		"init is done":    {[]*container{in(procapi.PhaseExited, &zero, true), in(procapi.PhaseRunning, nil, false)}, corev1.PodRunning},
	} {
		if s := podStatus(p, "1.2.3.4", &nodeapi.Sandbox{Id: "i", Ip: "10.0.0.1"}, c.containers); s.Phase != c.want {
			t.Errorf("%s: %s, not %s", name, s.Phase, c.want)
		}
	}
}
