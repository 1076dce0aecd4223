package vkprovider_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"s0.run/internal/s0test/kubetest"
	"s0.run/internal/sandbox"
	"s0.run/vk-provider/internal/podspec"
)

// number is what the environment says, or else the default.
func number(b *testing.B, name string, def int) int {
	b.Helper()
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		b.Fatalf("%s: want a number above 0, not %q", name, v)
	}
	return n
}

// report gives the median and the 95th percentile, in milliseconds.
func report(b *testing.B, name string, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	ms := func(i int) float64 { return float64(took[min(i, len(took)-1)].Microseconds()) / 1000 }
	b.ReportMetric(ms(len(took)/2), name+"-p50-ms")
	b.ReportMetric(ms(len(took)*95/100), name+"-p95-ms")
}

// BenchmarkKubeReal is a pod's way to Ready with real sandboxes: one of its own, and a
// pool's slot; and claims, with what they write.
func BenchmarkKubeReal(b *testing.B) {
	s := newStack(b)
	n := number(b, "S0_BENCH_RUNS", 10)
	s.image = s.until(namespace, "s0.run/state=free", "a free pod", oneReady)[0].Spec.Containers[0].Image
	var cold, slot, claims []time.Duration
	wrote := 0
	for b.Loop() {
		for i := range n {
			cold = append(cold, s.coldPod(b, i))
			slot = append(slot, s.freshSlot())
			took, writes := s.benchClaim(b)
			claims = append(claims, took)
			wrote += writes
		}
	}
	b.ReportMetric(0, "ns/op")
	report(b, "pod-to-ready", cold)
	report(b, "slot-to-ready", slot)
	report(b, "claim", claims)
	b.ReportMetric(float64(wrote)/float64(len(claims)), "writes/claim")
}

// coldPod is how long a pod that is no pool's takes from its creation to Ready.
func (s *stack) coldPod(b *testing.B, i int) time.Duration {
	b.Helper()
	name := fmt.Sprintf("cold-%d", i)
	limits := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi"), corev1.ResourceCPU: resource.MustParse("500m")}
	pods := s.kube.CoreV1().Pods("default")
	began := time.Now()
	_, err := pods.Create(b.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{
		Tolerations: []corev1.Toleration{{Key: podspec.Taint, Operator: corev1.TolerationOpExists}}, TerminationGracePeriodSeconds: new(int64),
		Containers: []corev1.Container{{Name: "main", Image: s.image, Command: []string{"sleep", "1000"}, Resources: corev1.ResourceRequirements{Limits: limits}}},
	}}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	s.until("default", "app="+name, "the pod", oneReady)
	took := time.Since(began)
	if err := pods.Delete(b.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		b.Fatal(err)
	}
	return took
}

// freshSlot is how long a pool's next pod takes from the deletion of the one before.
func (s *stack) freshSlot() time.Duration {
	free := s.until(namespace, "s0.run/state=free", "a free pod", oneReady)[0]
	began := time.Now()
	s.kubectl("delete", "pod", "--wait=false", "-n", namespace, free.Name)
	s.until(namespace, "s0.run/state=free", "another free pod", func(p []corev1.Pod) bool { return oneReady(p) && p[0].UID != free.UID })
	return time.Since(began)
}

// benchClaim claims a sandbox, and counts what the virtual node wrote of its pod.
func (s *stack) benchClaim(b *testing.B) (took time.Duration, writes int) {
	b.Helper()
	free := s.until(namespace, "s0.run/state=free", "a free pod", oneReady)[0]
	before, err := s.cluster.Writes()
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	status, sb := s.call(http.MethodPost, "/api/v1/sandboxes", map[string]any{"template": "default"})
	took = time.Since(began)
	if status != http.StatusCreated {
		b.Fatalf("the claim was answered with %d", status)
	}
	s.until(namespace, fmt.Sprintf("s0.run/sandbox=%s", sb["sandbox_id"]), "the claim's label", oneReady)
	s.until(namespace, "s0.run/state=free", "another free pod", oneReady)
	after, err := s.cluster.Writes()
	if err != nil {
		b.Fatal(err)
	}
	for _, w := range after[len(before):] {
		if w.Agent == "s0-vk" && w.Resource == "pods" && w.Name == free.Name {
			writes++
		}
	}
	s.call(http.MethodDelete, fmt.Sprintf("/api/v1/sandboxes/%s", sb["sandbox_id"]), nil)
	return took, writes
}

// BenchmarkKubeMany is s0-vk as a process of its own with many pods, whose noded makes
// slots of nothing: what it takes is the virtual node's own.
func BenchmarkKubeMany(b *testing.B) {
	if testing.Short() {
		b.Skip("needs a control plane: see make bench-kube")
	}
	pods, claims := number(b, "S0_BENCH_PODS", 1000), number(b, "S0_BENCH_CLAIMS", 100)
	m := newMany(b)
	for b.Loop() {
		m.measure(b, pods, claims)
	}
	b.ReportMetric(0, "ns/op")
}

// many is a control plane and a virtual node of a noded that is none.
type many struct {
	cluster *kubetest.Cluster
	kube    kubernetes.Interface
	node    *nothing
	vk      *exec.Cmd
}

func newMany(b *testing.B) *many {
	b.Helper()
	dir := b.TempDir()
	m := &many{cluster: kubetest.New(b), node: serveNothing(b, filepath.Join(dir, "n.sock"))}
	rc, err := clientcmd.BuildConfigFromFlags("", m.cluster.Admin())
	if err != nil {
		b.Fatal(err)
	}
	rc.QPS, rc.Burst = 500, 1000
	if m.kube, err = kubernetes.NewForConfig(rc); err != nil {
		b.Fatal(err)
	}
	if _, err := m.kube.CoreV1().Namespaces().Create(b.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "vk.log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	m.vk = exec.Command(kubetest.Binary(b, "s0-vk"), "--kubeconfig", m.cluster.Admin(), "--node-socket", filepath.Join(dir, "n.sock"), "--node-name", "sandboxes",
		"--listen", "127.0.0.1:0", "--cpu-millis", "100000000", "--memory-bytes", strconv.Itoa(1<<50), "--disk-bytes", strconv.Itoa(1<<50), "--log-level", "warn")
	m.vk.Stderr = log
	if err := m.vk.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = m.vk.Process.Kill()
		_ = m.vk.Wait()
	})
	return m
}

// measure brings up pods, looks what they take at rest, and claims some.
func (m *many) measure(b *testing.B, pods, claims int) {
	b.Helper()
	began := time.Now()
	m.scale(b, pods)
	all := m.until(b, "s0.run/state=free", func(p []corev1.Pod) bool {
		return len(p) == pods && !slices.ContainsFunc(p, func(p corev1.Pod) bool { return !ready(p) })
	})
	b.ReportMetric(time.Since(began).Seconds()*1000/float64(pods), "ms/pod-to-ready")
	b.ReportMetric(m.cpu(b).Seconds()*1000/float64(pods), "cpu-ms/pod")
	b.ReportMetric(m.memory(b), "MiB")
	rest := m.cpu(b)
	<-time.After(restTime)
	b.ReportMetric((m.cpu(b)-rest).Seconds()/restTime.Seconds()*100, "cpu-%-at-rest")

	before, err := m.cluster.Writes()
	if err != nil {
		b.Fatal(err)
	}
	busy, began := m.cpu(b), time.Now()
	claimed := map[string]bool{}
	for _, p := range all[:claims] {
		claimed[p.Name] = true
		m.node.claim(string(p.UID))
	}
	m.until(b, "s0.run/state=claimed", func(p []corev1.Pod) bool { return len(p) == claims })
	b.ReportMetric(time.Since(began).Seconds()*1000/float64(claims), "ms/claim-to-label")
	m.until(b, "s0.run/state=free", func(p []corev1.Pod) bool {
		return len(p) == pods && !slices.ContainsFunc(p, func(p corev1.Pod) bool { return !ready(p) })
	})
	b.ReportMetric((m.cpu(b)-busy).Seconds()*1000/float64(claims), "cpu-ms/claim")
	after, err := m.cluster.Writes()
	if err != nil {
		b.Fatal(err)
	}
	writes := 0
	for _, w := range after[len(before):] {
		if w.Agent == "s0-vk" && w.Resource == "pods" && claimed[w.Name] {
			writes++
		}
	}
	b.ReportMetric(float64(writes)/float64(claims), "writes/claim")
}

// restTime is how long it is looked what nothing costs.
const restTime = 30 * time.Second

// scale makes a pool of so many slots.
func (m *many) scale(b *testing.B, pods int) {
	b.Helper()
	spec, err := json.Marshal(sandbox.Spec{Image: "example.com/nothing", MemoryBytes: 128 << 20, CPUMillis: 31, RuntimeClass: sandbox.GVisor})
	if err != nil {
		b.Fatal(err)
	}
	labels := map[string]string{"s0.run/pool": "p-v", podspec.LabelState: podspec.StateFree}
	limits := corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(128<<20, resource.BinarySI), corev1.ResourceCPU: *resource.NewMilliQuantity(31, resource.DecimalSI)}
	no := false
	_, err = m.kube.AppsV1().ReplicaSets(namespace).Create(b.Context(), &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{GenerateName: "pool-"}, Spec: appsv1.ReplicaSetSpec{
		Replicas: new(int32(pods)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{podspec.AnnotationPool: "p:v", podspec.AnnotationSpec: string(spec)}},
			Spec: corev1.PodSpec{
				AutomountServiceAccountToken: &no, Tolerations: []corev1.Toleration{{Key: podspec.Taint, Operator: corev1.TolerationOpExists}},
				Containers: []corev1.Container{{Name: podspec.PoolContainer, Image: "example.com/nothing", Resources: corev1.ResourceRequirements{Limits: limits, Requests: limits}}},
			},
		},
	}}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
}

// until waits for pods to be something, and looks no oftener than it takes.
func (m *many) until(b *testing.B, selector string, is func([]corev1.Pod) bool) []corev1.Pod {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*patience)
	defer cancel()
	for {
		list, err := m.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			b.Fatal(err)
		}
		if is(list.Items) {
			return list.Items
		}
		<-time.After(100 * time.Millisecond)
	}
}

// cpu is what s0-vk has used so far.
func (m *many) cpu(b *testing.B) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.vk.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // a hundred ticks a second
}

// memory is its resident set, in MiB.
func (m *many) memory(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.vk.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kib) / 1024
}
