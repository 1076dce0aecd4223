package pods

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/vk-provider/internal/noded"
	"s0.run/vk-provider/internal/podspec"
)

// ends is a noded that has one sandbox or slot and notes what becomes of it.
type ends struct {
	nodeapiconnect.UnimplementedNodeHandler
	has *nodeapi.Sandbox // nil: nothing

	mu     sync.Mutex
	calls  []string
	refuse int // pauses that fail
}

func (e *ends) note(call string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, call)
}

func (e *ends) noted() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.calls)
}

func (e *ends) Pause(_ context.Context, req *nodeapi.PauseRequest) (*nodeapi.Sandbox, error) {
	e.note("pause " + req.GetId())
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refuse--; e.refuse >= 0 {
		return nil, connect.NewError(connect.CodeUnavailable, nil)
	}
	return &nodeapi.Sandbox{Id: req.GetId(), State: "paused"}, nil
}

func (e *ends) Delete(_ context.Context, req *nodeapi.DeleteRequest) (*nodeapi.DeleteResponse, error) {
	e.note("delete " + req.GetId())
	return &nodeapi.DeleteResponse{}, nil
}

func (e *ends) Get(_ context.Context, req *nodeapi.GetRequest) (*nodeapi.Sandbox, error) {
	if e.has == nil {
		return nil, connect.NewError(connect.CodeNotFound, nil)
	}
	return e.has, nil
}

func (e *ends) client(t *testing.T) *noded.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "s0p-") // short, for a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "n"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(nodeapiconnect.NewNodeHandler(e))
	server := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return noded.New(filepath.Join(dir, "n"), slog.New(slog.DiscardHandler))
}

var disrupted = corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI"}

// An eviction pauses what a tenant has, tries again when that fails, and ends what nobody
// has; a deletion of a claimed pod is another matter.
func TestEvictionsPause(t *testing.T) {
	t.Parallel()
	running := &nodeapi.Sandbox{Id: "s", Generation: 3, State: "running", Pod: "uid", ClaimId: "a tenant's"}
	for name, c := range map[string]struct {
		sandbox *nodeapi.Sandbox // what is known of the pod's
		node    *ends
		evicted bool
		want    []string
	}{
		"claimed":           {running, &ends{}, true, []string{"pause s"}},
		"at the second try": {running, &ends{refuse: 1}, true, []string{"pause s", "pause s"}},
		"free":              {nil, &ends{}, true, []string{"delete s"}},
		"claimed meanwhile": {nil, &ends{has: running}, true, []string{"delete s", "pause s"}},
		"ending meanwhile":  {nil, &ends{has: &nodeapi.Sandbox{Id: "s", State: "terminating"}}, true, []string{"delete s"}},
		"failed":            {&nodeapi.Sandbox{Id: "s", State: "failed"}, &ends{}, true, []string{"delete s"}},
		"deleted":           {running, &ends{}, false, []string{"delete s"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, pod, up := leased(t, c.node)
			pod.sandbox = c.sandbox
			deleted := pod.api.DeepCopy()
			now := metav1.Now()
			deleted.DeletionTimestamp, deleted.DeletionGracePeriodSeconds = &now, new(int64)
			if c.evicted {
				deleted.Status.Conditions = append(deleted.Status.Conditions, disrupted)
			}
			if err := p.DeletePod(t.Context(), deleted); err != nil {
				t.Fatal(err)
			}
			if up.Err() == nil {
				t.Error("it goes on")
			}
			p.end(t.Context(), pod)
			if got := c.node.noted(); !slices.Equal(got, c.want) {
				t.Errorf("the node was asked for %q, not %q", got, c.want)
			}
			if left, err := p.cfg.Kube.CoreV1().Pods(pod.namespace).List(t.Context(), metav1.ListOptions{}); err != nil || len(left.Items) != 0 {
				t.Errorf("the pod's object is there still: %v", err)
			}
		})
	}
}

// leased is a pod that a tenant has and no ReplicaSet any more; up ends when it is to go.
func leased(t *testing.T, node *ends) (p *Pods, pod *pod, up context.Context) {
	t.Helper()
	pod = claimed()
	pod.api.OwnerReferences = nil
	list, _ := lister(t, pod.api)
	p = New(Config{
		Warmups: 1, Node: node.client(t), Kube: fake.NewClientset(pod.api.DeepCopy()), Lister: list, Events: record.NewFakeRecorder(100), Log: slog.New(slog.DiscardHandler),
	})
	pod.sandbox = &nodeapi.Sandbox{Id: "s", Generation: 3, State: "running", Pod: "uid", ClaimId: "a tenant's"}
	pod.slot = &nodeapi.PodSlot{Pod: "uid", Id: "s", State: nodeapi.PodSlotClaimed}
	up, pod.stop = context.WithCancel(t.Context())
	p.byUID[pod.uid] = pod
	return p, pod, up
}

// A pod that goes without a grace period is gone before VK asks for its end, with what it
// was told: that it was evicted, Kubernetes' last word says, or one before it.
func TestEvictionsWithoutAGracePeriodPause(t *testing.T) {
	t.Parallel()
	with := func(status corev1.ConditionStatus) func(*corev1.Pod) *corev1.Pod {
		return func(api *corev1.Pod) *corev1.Pod {
			api, c := api.DeepCopy(), disrupted
			c.Status = status
			api.Status.Conditions = []corev1.PodCondition{c}
			return api
		}
	}
	evicted, not := with(corev1.ConditionTrue), with(corev1.ConditionFalse)
	without := (*corev1.Pod).DeepCopy
	type states []func(*corev1.Pod) *corev1.Pod
	for name, c := range map[string]struct {
		changed states
		last    func(*corev1.Pod) *corev1.Pod
		want    string
	}{
		"the last word":                      {nil, evicted, "pause s"},
		"a word before":                      {states{evicted, without}, without, "pause s"},
		"nothing":                            {states{without}, without, "delete s"},
		"an eviction that came to nothing":   {states{evicted, not}, not, "delete s"},
		"the second eviction that was tried": {states{evicted, not, evicted}, evicted, "pause s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := &ends{}
			p, pod, up := leased(t, node)
			api := pod.api
			for _, change := range c.changed {
				p.Changed(change(api))
			}
			if err := p.DeletePod(t.Context(), api); err != nil {
				t.Fatal(err)
			}
			if up.Err() != nil {
				t.Error("it ends before it is known why")
			}
			p.Deleted(c.last(api))
			if err := p.DeletePod(t.Context(), api); err != nil {
				t.Fatal(err)
			}
			if up.Err() == nil {
				t.Error("it goes on")
			}
			p.end(t.Context(), pod)
			if got := node.noted(); !slices.Equal(got, []string{c.want}) {
				t.Errorf("the node was asked for %q, not %q", got, c.want)
			}
		})
	}
}

// What Kubernetes has no more is not taken on again, and of what it has its own word counts.
func TestWhatIsGoneIsNotTakenOn(t *testing.T) {
	t.Parallel()
	api := claimed().api
	list, index := lister(t)
	p := New(Config{Warmups: 1, Lister: list, Log: slog.New(slog.DiscardHandler)})
	now := metav1.Now()
	going := api.DeepCopy()
	going.DeletionTimestamp = &now
	other := api.DeepCopy()
	other.UID = "another"
	for _, there := range []*corev1.Pod{nil, other} {
		if there != nil {
			if err := index.Add(there); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.DeletePod(t.Context(), going); err != nil {
			t.Error(err)
		}
		if err := p.CreatePod(t.Context(), api); err != nil {
			t.Error(err)
		}
		if all, err := p.GetPods(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("it has %d pods, %v", len(all), err)
		}
	}
	known := api.DeepCopy()
	known.Status.Conditions = []corev1.PodCondition{disrupted}
	if err := index.Update(known); err != nil {
		t.Fatal(err)
	}
	pod, _ := p.takeOn(going)
	if pod == nil || !pod.evicted {
		t.Fatalf("%+v", pod)
	}
	if again, _ := p.takeOn(going); again != nil || !pod.evicted {
		t.Error("an older word took the eviction back")
	}
	pod.api = known
	if o := pod.object(); !evicted(o) || len(disruptions(o)) != 1 {
		t.Errorf("what is told of it has %+v", o.Status.Conditions)
	}
	pod.status.Conditions = append(pod.status.Conditions, disrupted)
	if o := pod.object(); len(disruptions(o)) != 1 {
		t.Errorf("what is told of it has %+v", o.Status.Conditions)
	}
}

// What Kubernetes says of a pod's eviction outlives the statuses that are told meanwhile.
func TestStatusesKeepADisruption(t *testing.T) {
	t.Parallel()
	pod := claimed()
	pod.api.Spec.Containers = []corev1.Container{{Name: "c"}}
	known := pod.api.DeepCopy()
	known.Status.Conditions = []corev1.PodCondition{disrupted}
	list, _ := lister(t, known)
	p := New(Config{Warmups: 1, Lister: list})
	var told []*corev1.Pod
	p.NotifyPods(t.Context(), func(o *corev1.Pod) { told = append(told, o) })
	p.set(pod, func() corev1.PodStatus {
		return slotStatus(pod, "1.2.3.4", &nodeapi.PodSlot{State: nodeapi.PodSlotFree}, nil)
	})
	p.set(pod, func() corev1.PodStatus { return pod.status }) // once more
	if len(told) != 1 || !evicted(told[0]) || len(told[0].Status.Conditions) != 6 {
		t.Errorf("told of %+v", told)
	}
}

// A claimed pod stays on a node that is silent, whatever the silence of free ones costs.
func TestX45_ClaimedPodsArePatient(t *testing.T) {
	t.Parallel()
	thirty := int64(30)
	pod := claimed()
	pod.api.Labels = nil
	pod.api.Spec.Tolerations = []corev1.Toleration{
		{Key: podspec.Taint, Operator: corev1.TolerationOpExists},
		{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &thirty},
		{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &thirty},
	}
	kube := fake.NewClientset(pod.api)
	p := New(Config{Warmups: 1, Kube: kube, Log: slog.New(slog.DiscardHandler)})
	if !p.label(t.Context(), pod, &nodeapi.Sandbox{Id: "s", Team: "t"}) {
		t.Fatal("it was not labelled")
	}
	now, err := kube.CoreV1().Pods("pools").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for what, all := range map[string][]corev1.Toleration{"Kubernetes": now.Spec.Tolerations, "what is known of it": pod.api.Spec.Tolerations} {
		if len(all) != 3 || all[1].TolerationSeconds != nil || all[2].TolerationSeconds != nil {
			t.Errorf("%s has %+v", what, all)
		}
	}
}

// A pod that was evicted under a process before this one is paused by this one.
func TestEvictionsOutliveARestart(t *testing.T) {
	t.Parallel()
	api, node := claimed().api, &ends{}
	now := metav1.Now()
	api.DeletionTimestamp, api.Annotations = &now, map[string]string{podspec.AnnotationPool: "k"}
	api.Status.Conditions = []corev1.PodCondition{disrupted}
	list, _ := lister(t, api)
	kube := fake.NewClientset()
	p := New(Config{Warmups: 1, Node: node.client(t), Kube: kube, Lister: list, Events: record.NewFakeRecorder(100), Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	if err := p.DeletePod(t.Context(), api); err != nil {
		t.Fatal(err)
	}
	if got := node.noted(); len(got) != 0 {
		t.Errorf("before it is known what there is, the node was asked for %q", got)
	}
	p.Synced(noded.Picture{
		Slots:     map[string]*nodeapi.PodSlot{"uid": {Pod: "uid", Id: "s", State: nodeapi.PodSlotClaimed}},
		Sandboxes: map[string]*nodeapi.Sandbox{"s": {Id: "s", State: "running", Pod: "uid", ClaimId: "a tenant's"}},
	})
	for late := time.After(time.Minute); ; {
		if pods, err := p.GetPods(t.Context()); err == nil && len(pods) == 0 {
			break
		}
		select {
		case <-late:
			t.Fatal("it is known still")
		case <-time.After(time.Millisecond):
		}
	}
	if got := node.noted(); !slices.Equal(got, []string{"pause s"}) {
		t.Errorf("the node was asked for %q", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := p.DeletePod(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "other"}}); err == nil {
		t.Error("what nobody knows, and Kubernetes does not end, has ended")
	}
}
