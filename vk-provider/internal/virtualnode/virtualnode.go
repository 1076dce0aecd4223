// Package virtualnode is the node that Kubernetes sees: its labels, taint, capacity,
// addresses, and whether it is ready, which is whether its noded answers.
//
// It asks noded nothing by itself but when it is pinged, and keeps only what it last told.
package virtualnode

import (
	"context"
	"runtime"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/vk-provider/internal/podspec"
)

// Labels of nodes.
const (
	LabelRuntime = "runtime.s0.run/" // and a runtime class that the node offers
	labelType    = "type"
)

// KubeletVersion is the Kubernetes whose kubelet API this node has.
const KubeletVersion = "v1.36.3"

// Config says what the node is.
type Config struct {
	Name        string
	Address     string // where the kubelet API answers
	Port        int32
	CPUMillis   int64 // what pods may have together
	MemoryBytes int64
	DiskBytes   int64
	Labels      map[string]string // beside the node's own
	Version     string            // of this program
}

// Node implements node.NodeProvider.
type Node struct {
	rpc nodeapiconnect.NodeClient
	cfg Config

	mu     sync.Mutex
	object *corev1.Node
	notify func(*corev1.Node)
}

// New makes the node from what its noded says of itself.
func New(cfg Config, info *nodeapi.InfoResponse, rpc nodeapiconnect.NodeClient) *Node {
	return &Node{rpc: rpc, cfg: cfg, object: object(cfg, info), notify: func(*corev1.Node) {}}
}

// Object is the node as it was last told.
func (n *Node) Object() *corev1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.object.DeepCopy()
}

// Ping says whether the node is alive: its lease is renewed after it.
func (n *Node) Ping(ctx context.Context) error {
	_, err := n.rpc.Info(ctx, &nodeapi.InfoRequest{})
	n.Ready(err == nil, reason(err))
	return err
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	return nodeapi.Text("noded does not answer: " + err.Error())
}

// NotifyNodeStatus sets who is told of changes.
func (n *Node) NotifyNodeStatus(_ context.Context, notify func(*corev1.Node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notify = notify
}

// Ready tells whether the node takes pods.
func (n *Node) Ready(ready bool, message string) {
	n.mu.Lock()
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	c := &n.object.Status.Conditions[0]
	if c.Status == status {
		n.mu.Unlock()
		return
	}
	c.Status, c.Message, c.LastTransitionTime, c.LastHeartbeatTime = status, message, metav1.Now(), metav1.Now()
	if c.Reason = "NodedReady"; !ready {
		c.Reason = "NodedNotReady"
	}
	told, notify := n.object.DeepCopy(), n.notify
	n.mu.Unlock()
	notify(told)
}

func object(cfg Config, info *nodeapi.InfoResponse) *corev1.Node {
	labels := map[string]string{
		labelType: "virtual-kubelet", corev1.LabelHostname: cfg.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH,
		"kubernetes.io/role": "sandboxes",
	}
	for _, class := range info.GetRuntimeClasses() {
		labels[LabelRuntime+class] = "true"
	}
	for k, v := range cfg.Labels {
		labels[k] = v
	}
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: *resource.NewMilliQuantity(cfg.CPUMillis, resource.DecimalSI), corev1.ResourceMemory: *resource.NewQuantity(cfg.MemoryBytes, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(cfg.DiskBytes, resource.BinarySI), corev1.ResourcePods: *resource.NewQuantity(int64(info.GetMaxSandboxes()), resource.DecimalSI),
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: cfg.Name, Labels: labels},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: podspec.Taint, Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity.DeepCopy(), Conditions: conditions(),
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: cfg.Address}, {Type: corev1.NodeHostName, Address: cfg.Name}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: cfg.Port}},
			NodeInfo: corev1.NodeSystemInfo{
				KubeletVersion: KubeletVersion, Architecture: runtime.GOARCH, OperatingSystem: "linux", OSImage: "s0 sandboxes",
				ContainerRuntimeVersion: "s0://" + cfg.Version,
			},
		},
	}
}

func conditions() []corev1.NodeCondition {
	now := metav1.NewTime(time.Now())
	all := []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "NodedReady"}}
	for _, pressure := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure, corev1.NodeNetworkUnavailable} {
		all = append(all, corev1.NodeCondition{Type: pressure, Status: corev1.ConditionFalse, Reason: "NodedReady"})
	}
	for i := range all {
		all[i].LastHeartbeatTime, all[i].LastTransitionTime = now, now
	}
	return all
}
