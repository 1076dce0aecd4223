package kubelet

import (
	"context"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"s0.run/internal/nodeapi"
)

// usage is what one pod's sandbox uses now. What is read on the host counts the whole
// sandbox, its kernel included.
type usage struct {
	pod    *corev1.Pod
	sample *nodeapi.StatsSample
}

// usages asks for every running sandbox that a pod stands for. One that ended meanwhile
// is left out.
func (s *Server) usages(ctx context.Context) []usage {
	var all []usage
	for pod, sb := range s.cfg.Pods.Claimed() {
		resp, err := s.cfg.Node.RPC().Stats(ctx, &nodeapi.StatsRequest{Id: sb.ID, Generation: sb.Generation, SinceUnixNano: time.Now().UnixNano()})
		if err != nil || len(resp.GetSamples()) == 0 {
			continue
		}
		all = append(all, usage{pod, resp.GetSamples()[len(resp.GetSamples())-1]})
	}
	return all
}

// summary is GET /stats/summary.
func (s *Server) summary(ctx context.Context) (*v1alpha1.Summary, error) {
	all := s.usages(ctx)
	now := metav1.Now()
	out := &v1alpha1.Summary{Node: v1alpha1.NodeStats{NodeName: s.cfg.NodeName, CPU: cpuOf(now, total(all, cpuNanos)), Memory: memoryOf(now, total(all, memory), total(all, workingSet))}}
	for _, u := range all {
		at := metav1.NewTime(time.Unix(0, u.sample.GetUnixNano()))
		cpu, mem := cpuOf(at, uint64(cpuNanos(u.sample))), memoryOf(at, uint64(memory(u.sample)), uint64(workingSet(u.sample)))
		p := v1alpha1.PodStats{
			PodRef: v1alpha1.PodReference{Name: u.pod.Name, Namespace: u.pod.Namespace, UID: string(u.pod.UID)}, CPU: cpu, Memory: mem,
			Containers: []v1alpha1.ContainerStats{{Name: u.pod.Spec.Containers[0].Name, CPU: cpu, Memory: mem}},
		}
		if n := u.sample.GetNetwork(); n != nil {
			p.Network = &v1alpha1.NetworkStats{Time: at, InterfaceStats: v1alpha1.InterfaceStats{Name: "eth0", RxBytes: &n.RxBytes, TxBytes: &n.TxBytes, RxErrors: &n.RxErrors, TxErrors: &n.TxErrors}}
		}
		out.Pods = append(out.Pods, p)
	}
	return out, nil
}

func cpuNanos(s *nodeapi.StatsSample) int64   { return s.GetCpuNanos() }
func memory(s *nodeapi.StatsSample) int64     { return s.GetMemoryBytes() }
func workingSet(s *nodeapi.StatsSample) int64 { return s.GetMemoryWorkingSetBytes() }

func total(all []usage, of func(*nodeapi.StatsSample) int64) (sum uint64) {
	for _, u := range all {
		sum += uint64(of(u.sample))
	}
	return sum
}

func cpuOf(at metav1.Time, nanos uint64) *v1alpha1.CPUStats {
	return &v1alpha1.CPUStats{Time: at, UsageCoreNanoSeconds: &nanos}
}

func memoryOf(at metav1.Time, bytes, working uint64) *v1alpha1.MemoryStats {
	return &v1alpha1.MemoryStats{Time: at, UsageBytes: &bytes, WorkingSetBytes: &working}
}

// resource is GET /metrics/resource: what metrics-server reads for kubectl top.
func (s *Server) resource(ctx context.Context) ([]*dto.MetricFamily, error) {
	all := s.usages(ctx)
	podCPU := family("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", dto.MetricType_COUNTER)
	podMemory := family("pod_memory_working_set_bytes", "Current working set of the pod in bytes", dto.MetricType_GAUGE)
	cpu := family("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", dto.MetricType_COUNTER)
	mem := family("container_memory_working_set_bytes", "Current working set of the container in bytes", dto.MetricType_GAUGE)
	start := family("container_start_time_seconds", "Start time of the container since unix epoch in seconds", dto.MetricType_GAUGE)
	for _, u := range all {
		pod := []string{"namespace", u.pod.Namespace, "pod", u.pod.Name}
		container := append([]string{"container", u.pod.Spec.Containers[0].Name}, pod...)
		seconds, at := float64(cpuNanos(u.sample))/1e9, u.sample.GetUnixNano()/1e6
		add(podCPU, seconds, at, pod)
		add(podMemory, float64(workingSet(u.sample)), at, pod)
		add(cpu, seconds, at, container)
		add(mem, float64(workingSet(u.sample)), at, container)
		if t := u.pod.Status.StartTime; t != nil {
			add(start, float64(t.Unix()), at, container)
		}
	}
	nodeCPU := family("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", dto.MetricType_COUNTER)
	nodeMemory := family("node_memory_working_set_bytes", "Current working set of the node in bytes", dto.MetricType_GAUGE)
	now := time.Now().UnixMilli()
	add(nodeCPU, float64(total(all, cpuNanos))/1e9, now, nil)
	add(nodeMemory, float64(total(all, workingSet)), now, nil)
	families := []*dto.MetricFamily{cpu, mem, start, nodeCPU, nodeMemory, podCPU, podMemory}
	// One that is empty can't be written, and would be an error of all.
	return slices.DeleteFunc(families, func(f *dto.MetricFamily) bool { return len(f.Metric) == 0 }), nil
}

func family(name, help string, t dto.MetricType) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &t}
}

func add(f *dto.MetricFamily, value float64, at int64, labels []string) {
	m := &dto.Metric{TimestampMs: &at}
	for i := 0; i+1 < len(labels); i += 2 {
		m.Label = append(m.Label, &dto.LabelPair{Name: &labels[i], Value: &labels[i+1]})
	}
	if f.GetType() == dto.MetricType_COUNTER {
		m.Counter = &dto.Counter{Value: &value}
	} else {
		m.Gauge = &dto.Gauge{Value: &value}
	}
	f.Metric = append(f.Metric, m)
}
