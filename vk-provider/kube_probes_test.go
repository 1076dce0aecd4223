package vkprovider_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// probed is a server with one probe of each sort. Failures are instant; what is slow on a
// machine that does much else has its time.
const probed = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probed", "namespace": "default", "labels": {"app": "probed"}}, "spec": {
	"tolerations": [{"key": "s0.run/sandbox", "operator": "Exists"}], "terminationGracePeriodSeconds": 60,
	"containers": [{"name": "main", "image": %q, "command": ["sh", "-c", "mkdir -p /work && echo ok > /work/healthz && exec python3 -m http.server 8080 --directory /work"],
		"ports": [{"name": "http", "containerPort": 8080}], "resources": {"limits": {"memory": "256Mi", "cpu": "500m"}},
		"startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": 600},
		"readinessProbe": {"exec": {"command": ["test", "-e", "/work/ready"]}, "periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": 1},
		"livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": 2, "terminationGracePeriodSeconds": 1}}]}}`

// Probes say when a pod has started, whether it is ready, and when it begins again.
func (s *stack) testProbes(t *testing.T) {
	s.apply(t, fmt.Sprintf(probed, s.image))
	started := func(p []corev1.Pod) bool {
		c := p[0].Status.ContainerStatuses
		return len(c) == 1 && c[0].Started != nil && *c[0].Started
	}
	pod := s.until("default", "app=probed", "the start", func(p []corev1.Pod) bool { return len(p) == 1 && started(p) })[0]
	if ready(pod) || pod.Status.ContainerStatuses[0].Ready {
		t.Errorf("it is ready: %+v", pod.Status)
	}
	s.untilEvent(t, "probed", "Unhealthy", `Readiness probe failed: command "test": exited with code 1`)
	s.kubectl("exec", "probed", "--", "touch", "/work/ready")
	s.until("default", "app=probed", "the pod", oneReady)
	s.kubectl("exec", "probed", "--", "rm", "/work/ready")
	s.until("default", "app=probed", "what is not ready", func(p []corev1.Pod) bool {
		return len(p) == 1 && !ready(p[0]) && started(p) && p[0].Status.ContainerStatuses[0].RestartCount == 0
	})
	s.kubectl("exec", "probed", "--", "touch", "/work/ready")
	s.until("default", "app=probed", "the pod", oneReady)
	s.kubectl("exec", "probed", "--", "rm", "/work/healthz") // which its next start makes again
	s.untilEvent(t, "probed", "Killing", "Container main failed liveness probe, will be restarted")
	again := s.until("default", "app=probed", "its second attempt", func(p []corev1.Pod) bool {
		return oneReady(p) && p[0].Status.ContainerStatuses[0].RestartCount > 0
	})[0]
	if last := again.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode == 0 {
		t.Errorf("its first attempt ended as %+v", last)
	}
	if out := s.kubectl("describe", "pod", "probed"); !strings.Contains(out, "Liveness probe failed: GET http://localhost:8080/healthz: status 404") {
		t.Errorf("described as %s", out)
	}
	s.kubectl("delete", "pod", "probed")
}

// untilEvent waits for an event of a pod's in the default namespace.
func (s *stack) untilEvent(t *testing.T, pod, reason, says string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events := s.kube.CoreV1().Events("default")
	of := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("involvedObject.name", pod).String()}
	list, err := events.List(ctx, of)
	if err != nil {
		t.Fatal(err)
	}
	is := func(e *corev1.Event) bool { return e.Reason == reason && strings.Contains(e.Message, says) }
	for i := range list.Items {
		if is(&list.Items[i]) {
			return
		}
	}
	of.ResourceVersion = list.ResourceVersion
	w, err := events.Watch(ctx, of)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for change := range w.ResultChan() {
		if e, ok := change.Object.(*corev1.Event); ok && is(e) {
			return
		}
	}
	t.Fatalf("no event %s of %s says %q: %s", reason, pod, says, s.kubectl("describe", "pod", pod))
}
