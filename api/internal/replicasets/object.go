package replicasets

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"s0.run/api/internal/templates"
)

// Words that vk-provider reads: see its package podspec.
const (
	annotationPool = "s0.run/pool"
	annotationTeam = "s0.run/pool-team"
	annotationSpec = "s0.run/spec"
	labelPool      = "s0.run/pool"
	labelState     = "s0.run/state"
	labelTemplate  = "s0.run/template"
	labelCluster   = "s0.run/cluster"
	labelRuntime   = "runtime.s0.run/"
	taint          = "s0.run/sandbox"
	container      = "sandbox"
	free           = "free"
)

// The parts of Kubernetes' objects that we have a say in, or read.
type (
	meta struct {
		Name              string            `json:"name,omitempty"`
		UID               string            `json:"uid,omitempty"`
		Labels            map[string]string `json:"labels,omitempty"`
		Annotations       map[string]string `json:"annotations,omitempty"`
		CreationTimestamp time.Time         `json:"creationTimestamp,omitzero"`
	}
	replicaSet struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   meta   `json:"metadata"`
		Spec       struct {
			Replicas int32 `json:"replicas"`
			Selector struct {
				MatchLabels map[string]string `json:"matchLabels"`
			} `json:"selector"`
			Template struct {
				Metadata meta    `json:"metadata"`
				Spec     podSpec `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
		Status struct {
			ReadyReplicas int32 `json:"readyReplicas,omitempty"`
		} `json:"status,omitzero"`
	}
	podSpec struct {
		Containers                   []podContainer    `json:"containers"`
		NodeSelector                 map[string]string `json:"nodeSelector"`
		Tolerations                  []toleration      `json:"tolerations"`
		AutomountServiceAccountToken bool              `json:"automountServiceAccountToken"`
		EnableServiceLinks           bool              `json:"enableServiceLinks"`
		GraceSeconds                 int64             `json:"terminationGracePeriodSeconds"`
	}
	podContainer struct {
		Name      string `json:"name"`
		Image     string `json:"image"`
		Resources struct {
			Limits   map[string]string `json:"limits"`
			Requests map[string]string `json:"requests"`
		} `json:"resources"`
	}
	toleration struct {
		Key      string `json:"key"`
		Operator string `json:"operator"`
		Effect   string `json:"effect,omitempty"`
		Seconds  *int64 `json:"tolerationSeconds,omitempty"`
	}
	list struct {
		Items []*replicaSet `json:"items"`
	}
)

// replicaSet is what a template's pool is in Kubernetes. Its name is the pool's key, and
// with it the spec's version: a changed template is another ReplicaSet.
func (k *Keeper) replicaSet(t *templates.Template) (*replicaSet, error) {
	spec, err := json.Marshal(t.Slot)
	if err != nil {
		return nil, err
	}
	rs := &replicaSet{APIVersion: "apps/v1", Kind: "ReplicaSet"}
	name, id := strings.ReplaceAll(t.PoolKey, ":", "-"), t.Row.ID.String()
	rs.Metadata = meta{Name: name, Labels: map[string]string{labelCluster: k.cfg.Cluster, labelTemplate: id}}
	rs.Spec.Replicas = t.MinIdle
	// A claimed pod says another state: it is let go, and another one is made.
	rs.Spec.Selector.MatchLabels = map[string]string{labelPool: name, labelState: free}
	pod := &rs.Spec.Template
	pod.Metadata.Labels = map[string]string{labelPool: name, labelState: free, labelTemplate: id}
	pod.Metadata.Annotations = map[string]string{annotationPool: t.PoolKey, annotationSpec: string(spec)}
	if t.Row.TeamID != nil {
		pod.Metadata.Annotations[annotationTeam] = t.Row.TeamID.String()
	}
	c := podContainer{Name: container, Image: t.Slot.Image}
	c.Resources.Limits = map[string]string{"cpu": strconv.FormatInt(t.Slot.CPUMillis, 10) + "m", "memory": strconv.FormatInt(t.Slot.MemoryBytes, 10)}
	c.Resources.Requests = c.Resources.Limits
	pod.Spec = podSpec{
		Containers: []podContainer{c}, Tolerations: tolerations(),
		NodeSelector: map[string]string{labelRuntime + string(t.Slot.RuntimeClass): "true"}, GraceSeconds: int64(pauseTime / time.Second),
	}
	return rs, nil
}

const (
	// pauseTime is what the pause of a claimed sandbox may take whose pod is evicted: a pod's
	// object is there as long, and with it whoever waits for a drain.
	pauseTime = 10 * time.Minute
	// silence is how long a free slot of a node that Kubernetes can't hear counts as one:
	// nobody can claim it, and another node has room. Claimed pods stay, whatever it takes.
	silence = time.Minute
)

func tolerations() []toleration {
	seconds := int64(silence / time.Second)
	return []toleration{
		{Key: taint, Operator: "Exists"},
		{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute", Seconds: &seconds},
		{Key: "node.kubernetes.io/unreachable", Operator: "Exists", Effect: "NoExecute", Seconds: &seconds},
	}
}
