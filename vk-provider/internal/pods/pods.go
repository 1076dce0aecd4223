// Package pods backs this node's pods by sandboxes of its noded.
//
// It is what package node of virtual-kubelet calls a provider. Nothing is kept that
// could be wrong after a restart: what a pod is, is asked of noded again, by the pod's
// UID; a second CreatePod finds the same slot or sandbox. Each pod has one goroutine
// ([Pods.live]) that brings it up, follows it and ends it; VK's calls and noded's
// stream only change the table and wake that goroutine. States are told, never polled.
//
// A sandbox that a tenant has claimed is never ended because Kubernetes lacks a pod:
// only a pod that says who claimed it takes its sandbox with it.
package pods

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"

	"s0.run/internal/nodeapi"
	"s0.run/vk-provider/internal/noded"
	"s0.run/vk-provider/internal/podspec"
)

const (
	// What fails is tried again, from the first pause to the longest.
	firstRetry, lastRetry = 500 * time.Millisecond, 30 * time.Second
	// callTimeout bounds calls that start nothing.
	callTimeout = 15 * time.Second
)

// Config wires Pods. Every field is required.
type Config struct {
	Node          *noded.Client
	Kube          kubernetes.Interface
	Lister        corev1listers.PodLister // of this node's pods
	Events        record.EventRecorder
	NodeName      string
	HostIP        string
	PoolNamespace string // the one namespace whose pods may be slots of pools
	Warmups       int    // pods that are brought up at a time
	Log           *slog.Logger
}

// Pods implements node.PodLifecycleHandler and node.PodNotifier. It is safe for
// concurrent use.
type Pods struct {
	cfg     Config
	tasks   chan func(context.Context)
	stopped chan struct{} // closed when Run takes no more tasks
	seats   chan struct{} // holds a value for each pod that is being brought up

	mu        sync.Mutex
	byKey     map[string]*pod // namespace/name
	byUID     map[types.UID]*pod
	slots     map[string]*nodeapi.PodSlot // what noded has told, by pod
	sandboxes map[string]*nodeapi.Sandbox // by id
	synced    bool                        // slots and sandboxes are what noded has
	notify    func(*corev1.Pod)
	orphans   map[string]time.Time // since when a pod of noded's has had none in Kubernetes
}

// pod is one pod and what it is backed by.
type pod struct {
	uid             types.UID
	namespace, name string
	pooled          bool
	wake            chan struct{}      // holds a value when something was told
	stop            context.CancelFunc // ends bringing up and following: the pod is to go
	ending          time.Time          // since when it goes; its goroutine's alone
	changed         chan struct{}      // holds a value when its volumes' files may be others
	published       map[string]string  // the versions of volumes, by path; of who fills them alone

	// Pods.mu guards what follows. api is replaced whole.
	api        *corev1.Pod // as Kubernetes has it
	status     corev1.PodStatus
	told       bool             // VK was told of status, and Kubernetes does not have another one
	retold     int              // how often it was told what it had been told before
	slot       *nodeapi.PodSlot // of a pool's pod; nil before it has one
	sandbox    *nodeapi.Sandbox // nil before it is claimed
	warmed     bool             // its slot was warm once; one that never was is made again
	ended      string           // the slot of it that ended last
	gone       string           // why noded has nothing for it any more
	evicted    bool             // its node is to be emptied: a tenant's sandbox is paused
	containers []*container     // of a pod that is no pool's
}

// New makes Pods that know nothing yet.
func New(cfg Config) *Pods {
	return &Pods{
		cfg: cfg, tasks: make(chan func(context.Context)), stopped: make(chan struct{}), seats: make(chan struct{}, cfg.Warmups),
		byKey: map[string]*pod{}, byUID: map[types.UID]*pod{}, slots: map[string]*nodeapi.PodSlot{}, sandboxes: map[string]*nodeapi.Sandbox{},
		orphans: map[string]time.Time{}, notify: func(*corev1.Pod) {},
	}
}

// Run looks after pods until ctx ends, and returns when everything that it started has
// ended. Sandboxes go on living.
func (p *Pods) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(p.stopped)
	wg.Go(func() { p.keepCollecting(ctx) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case task := <-p.tasks:
			wg.Go(func() { task(ctx) })
		}
	}
}

func (p *Pods) background(task func(context.Context)) {
	select {
	case p.tasks <- task:
	case <-p.stopped:
	}
}

func key(namespace, name string) string { return namespace + "/" + name }

// CreatePod takes a pod on, and returns at once: whatever comes of it is told.
func (p *Pods) CreatePod(_ context.Context, api *corev1.Pod) error {
	if new, up := p.takeOn(api); new != nil {
		p.background(func(ctx context.Context) {
			defer context.AfterFunc(ctx, new.stop)()
			p.live(ctx, up, new)
		})
	}
	return nil
}

// takeOn begins to know a pod that Kubernetes has; nil: it is known, or Kubernetes has it no
// more, of which nobody is told again. What it answers ends when the pod is to go.
func (p *Pods) takeOn(api *corev1.Pod) (*pod, context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.byUID[api.UID]; old != nil {
		old.api, old.evicted = api, old.evicted || evicted(api)
		return nil, nil
	}
	known := p.listed(api.Namespace, api.Name, api.UID)
	if known == nil {
		return nil, nil
	}
	up, stop := context.WithCancel(context.Background()) // ended by DeletePod, or with Run
	new := &pod{
		uid: api.UID, namespace: api.Namespace, name: api.Name, pooled: podspec.Pooled(api),
		wake: make(chan struct{}, 1), changed: make(chan struct{}, 1), published: map[string]string{}, stop: stop, api: api, slot: p.slots[string(api.UID)],
		evicted: evicted(api) || evicted(known),
	}
	if new.slot != nil {
		new.sandbox = p.sandboxes[new.slot.GetId()]
	}
	if new.status = pendingStatus(new, p.cfg.HostIP, "ContainerCreating", ""); api.Status.Phase == corev1.PodRunning {
		new.status, new.told = *api.Status.DeepCopy(), true // this process is not its first: nothing says otherwise yet
	}
	keepTransitions(api.Status.Conditions, new.status.Conditions)
	p.byKey[key(api.Namespace, api.Name)], p.byUID[api.UID] = new, new
	return new, up
}

// UpdatePod takes note of what changed: labels, annotations, a deadline.
func (p *Pods) UpdatePod(_ context.Context, api *corev1.Pod) error {
	p.mu.Lock()
	pod := p.byUID[api.UID]
	if pod == nil {
		p.mu.Unlock()
		return errdefs.NotFoundf("pod %s/%s", api.Namespace, api.Name)
	}
	more := len(api.Spec.EphemeralContainers) > len(pod.api.Spec.EphemeralContainers)
	pod.api = api
	pod.kick()
	select {
	case pod.changed <- struct{}{}:
	default:
	}
	p.mu.Unlock()
	if more {
		p.event(pod, corev1.EventTypeWarning, podspec.ReasonNotAllowed, noEphemeral)
	}
	return nil
}

// listed is a pod as Kubernetes has it; nil: it has none, or another one of that name. It
// asks a cache, and may be called with mu held.
func (p *Pods) listed(namespace, name string, uid types.UID) *corev1.Pod {
	known, err := p.cfg.Lister.Pods(namespace).Get(name)
	if err != nil || known.UID != uid {
		return nil
	}
	return known
}

// DeletePod has a pod end. It returns at once; the pod's object goes when its sandbox
// has ended, or at the latest when its grace period is over. Of a pod whose object is gone
// VK hands back what we told it, which says nothing of why: [Pods.Deleted] hears that.
func (p *Pods) DeletePod(_ context.Context, api *corev1.Pod) error {
	p.mu.Lock()
	pod := p.byUID[api.UID]
	if pod != nil && api.DeletionTimestamp != nil {
		pod.api, pod.evicted = api, pod.evicted || evicted(api)
		pod.stop()
	}
	p.mu.Unlock()
	if pod != nil {
		return nil
	}
	if api.DeletionTimestamp == nil {
		return errdefs.NotFoundf("pod %s/%s", api.Namespace, api.Name)
	}
	p.endAnothers(api)
	return nil
}

// endAnothers ends a pod that was to go before this process began.
func (p *Pods) endAnothers(api *corev1.Pod) {
	pod, _ := p.takeOn(api)
	if pod == nil {
		return
	}
	p.background(func(ctx context.Context) {
		defer pod.stop()
		if !p.findSandbox(ctx, pod, func() {}) {
			return
		}
		if !pod.pooled {
			p.adopt(ctx, pod, containersOf(api))
		}
		p.end(ctx, pod)
	})
}

// GetPod is what this provider has of a pod, unless Kubernetes has another one of that
// name by now.
func (p *Pods) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	known, err := p.cfg.Lister.Pods(namespace).Get(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	pod := p.byKey[key(namespace, name)]
	if pod == nil || err == nil && known.UID != pod.uid {
		return nil, errdefs.NotFoundf("pod %s/%s", namespace, name)
	}
	return pod.object(), nil
}

// GetPodStatus is GetPod's status.
func (p *Pods) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	pod, err := p.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &pod.Status, nil
}

// GetPods are the pods that this process was given. After a restart there are none:
// VK ends what this lists and its lister lacks, and an informer's word is no reason to
// end anything (G09, H06). What was forgotten while nobody looked, [Pods.collect] finds.
func (p *Pods) GetPods(context.Context) ([]*corev1.Pod, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*corev1.Pod, 0, len(p.byUID))
	for _, pod := range p.byUID {
		all = append(all, pod.object())
	}
	return all, nil
}

// NotifyPods sets who is told of changes.
func (p *Pods) NotifyPods(_ context.Context, notify func(*corev1.Pod)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notify = notify
}

// object is the pod as this provider sees it, with what it was given of its disruption. It
// is called with Pods.mu held.
func (pod *pod) object() *corev1.Pod {
	o := pod.api.DeepCopy()
	pod.status.DeepCopyInto(&o.Status)
	if !slices.ContainsFunc(o.Status.Conditions, disruption) {
		o.Status.Conditions = append(o.Status.Conditions, disruptions(pod.api)...)
	}
	return o
}

func (pod *pod) kick() {
	select {
	case pod.wake <- struct{}{}:
	default:
	}
}

// set changes a pod's status and tells of it if that is news. Only the pod's own
// goroutine calls it; build is called with mu held.
func (p *Pods) set(pod *pod, build func() corev1.PodStatus) corev1.PodPhase {
	p.mu.Lock()
	status := build()
	keepTransitions(pod.status.Conditions, status.Conditions)
	status.Conditions = p.withTheirs(pod, status.Conditions)
	same := pod.told && equality.Semantic.DeepEqual(pod.status, status)
	pod.status, pod.told = status, true
	object, notify := pod.object(), p.notify
	if pod.retold > 0 { // VK drops what it was told before; what it writes has Kubernetes' own version
		object.ResourceVersion = fmt.Sprint("retold-", pod.retold)
	}
	p.mu.Unlock()
	if !same {
		notify(object)
	}
	return status.Phase
}

// retell has pods told again that Kubernetes has otherwise: others write statuses as well,
// of a node that was silent for a while for one, and VK gives up on a write that fails for
// long. Each pod's own goroutine tells: it knows what is the newest.
func (p *Pods) retell() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range p.byUID {
		known := p.listed(pod.namespace, pod.name, pod.uid)
		if pod.told && known != nil && !equality.Semantic.DeepEqual(known.Status, pod.status) {
			pod.told = false
			pod.retold++
			pod.kick()
		}
	}
}

// setPending and setFailed set a status in which nothing runs.
func (p *Pods) setPending(pod *pod, reason, message string) {
	p.set(pod, func() corev1.PodStatus { return pendingStatus(pod, p.cfg.HostIP, reason, message) })
}

func (p *Pods) setFailed(pod *pod, reason, message string) {
	p.set(pod, func() corev1.PodStatus { return failedStatus(pod, p.cfg.HostIP, reason, message) })
}

// live is a pod's life: up ends when it is to go, ctx when this process does.
func (p *Pods) live(ctx, up context.Context, pod *pod) {
	if pod.pooled {
		p.keepSlot(up, pod)
	} else {
		p.runPod(up, pod)
	}
	for up.Err() == nil { // what has ended by itself stays until somebody deletes it
		select {
		case <-up.Done(): // with ctx, too
		case <-pod.wake:
			p.set(pod, func() corev1.PodStatus { return pod.status })
		}
	}
	if ctx.Err() != nil {
		return
	}
	p.end(ctx, pod)
}

// refuse says for good that a pod can't be one of ours.
func (p *Pods) refuse(pod *pod, r *podspec.Refusal) {
	p.event(pod, corev1.EventTypeWarning, r.Reason, r.Message)
	p.cfg.Log.Info("refusing a pod", "pod", key(pod.namespace, pod.name), "uid", pod.uid, "reason", r.Reason, "message", r.Message)
	p.setFailed(pod, r.Reason, r.Message)
}

func (p *Pods) event(pod *pod, kind, reason, message string) {
	p.mu.Lock()
	object := pod.api
	p.mu.Unlock()
	p.cfg.Events.Event(object, kind, reason, message)
}

// seat waits for a place among those that are brought up.
func (p *Pods) seat(ctx context.Context) (leave func(), err error) {
	select {
	case p.seats <- struct{}{}:
		return func() { <-p.seats }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// retry repeats f, ever more seldom, until it succeeds or says that it never will.
func retry(ctx context.Context, f func() (again bool)) bool {
	for pause := firstRetry; f(); pause = min(2*pause, lastRetry) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
	return ctx.Err() == nil
}
