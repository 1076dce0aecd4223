package vkprovider_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// fed is a pod whose environment and files come from elsewhere, and which says what it got.
const fed = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fed", "namespace": "default", "labels": {"app": "fed"}}, "spec": {
	"tolerations": [{"key": "s0.run/sandbox", "operator": "Exists"}], "terminationGracePeriodSeconds": 1,
	"containers": [{"name": "main", "image": %[1]q, "command": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"],
		"env": [{"name": "ONE", "valueFrom": {"configMapKeyRef": {"name": "feed", "key": "a"}}}, {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "nobody", "key": "k", "optional": true}}}],
		"envFrom": [{"prefix": "FEED_", "configMapRef": {"name": "feed"}}],
		"resources": {"limits": {"memory": "256Mi", "cpu": "500m"}},
		"volumeMounts": [{"name": "conf", "mountPath": "/etc/feed"}, {"name": "some", "mountPath": "/etc/some"}, {"name": "work", "mountPath": "/work"}]},
		{"name": "other", "image": %[1]q, "command": ["sleep", "100000"], "resources": {"limits": {"memory": "256Mi", "cpu": "500m"}}, "volumeMounts": [{"name": "work", "mountPath": "/shared"}]}],
	"volumes": [{"name": "work", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "feed", "defaultMode": 256}},
		{"name": "some", "projected": {"sources": [{"configMap": {"name": "feed", "items": [{"key": "a", "path": "deep/a", "mode": 448}]}},
			{"downwardAPI": {"items": [{"path": "notes", "fieldRef": {"fieldPath": "metadata.annotations['note']"}}]}}]}}]}}`

// What a pod takes from config maps is waited for. Files have their modes and follow; what
// containers began with stays.
func (s *stack) testInputs(t *testing.T) {
	s.apply(t, fmt.Sprintf(fed, s.image))
	s.untilEvent(t, "fed", "MandatoryConfigMapNotFound", `ConfigMap "feed" not found`)
	s.kubectl("create", "configmap", "feed", "--from-literal=a=one", "--from-literal=b=gone")
	s.until("default", "app=fed", "the pod", oneReady)
	const show = `stat -Lc "%a" /etc/feed/a /etc/some/deep/a; cat /etc/feed/a /etc/feed/b /etc/some/deep/a; echo; echo $ONE $FEED_b $NONE`
	if out := s.inFed(show); out != "400\n700\nonegoneone\none gone\n" {
		t.Errorf("it has %q", out)
	}
	s.kubectl("exec", "fed", "-c", "main", "--", "sh", "-c", "echo both > /work/f")
	if out := s.kubectl("exec", "fed", "-c", "other", "--", "cat", "/shared/f"); out != "both\n" {
		t.Errorf("the other container has %q", out)
	}
	s.kubectl("patch", "configmap", "feed", "--type=merge", "--patch", `{"data": {"a": "two", "b": null}}`)
	s.kubectl("annotate", "pod", "fed", "note=look") // which has it looked after at once
	s.untilFed(t, "cat /etc/feed/a /etc/some/deep/a /etc/some/notes; ls /etc/feed", "twotwolooka\n")
	if out := s.inFed("echo $ONE"); out != "one\n" {
		t.Errorf("its environment became %q", out)
	}
	s.kubectl("patch", "configmap", "feed", "--type=merge", "--patch", `{"data": {"a": "three", "b": null}}`)
}

// testInputsLater is the end of it: what nobody hurried comes as well. A command that does
// not care for TERM ends when its grace is over.
func (s *stack) testInputsLater(t *testing.T) {
	s.untilFed(t, "cat /etc/feed/a /etc/some/deep/a", "threethree")
	s.kubectl("delete", "pod", "fed")
	s.until("default", "app=fed", "its end", func(p []corev1.Pod) bool { return len(p) == 0 })
}

func (s *stack) inFed(script string) string {
	s.t.Helper()
	return s.kubectl("exec", "fed", "-c", "main", "--", "sh", "-c", script)
}

func (s *stack) untilFed(t *testing.T, script, want string) {
	t.Helper()
	got := ""
	for late := time.Now().Add(patience); time.Now().Before(late); {
		if got = s.inFed(script); got == want {
			return
		}
	}
	t.Errorf("%s: %q, not %q", script, got, want)
}

// How pods end by their restart policies, and when what runs before them fails.
func (s *stack) testEnds(t *testing.T) {
	s.apply(t, manifest("done", s.image, "OnFailure", "exit 0", ""))
	s.apply(t, manifest("late", s.image, "Never", "sleep 1000", `, "activeDeadlineSeconds": 1`))
	s.apply(t, manifest("uninit", s.image, "Never", "echo never", fmt.Sprintf(`, "initContainers": [{"name": "first", "image": %q, "command": ["sh", "-c", "echo no >&2; exit 9"], "resources": {"limits": {"memory": "256Mi", "cpu": "500m"}}}]`, s.image)))
	ended := func(phase corev1.PodPhase) func(p []corev1.Pod) bool {
		return func(p []corev1.Pod) bool { return len(p) == 1 && p[0].Status.Phase == phase }
	}
	if c := s.until("default", "app=done", "success", ended(corev1.PodSucceeded))[0].Status.ContainerStatuses[0]; c.State.Terminated == nil || c.State.Terminated.Reason != "Completed" || c.RestartCount != 0 {
		t.Errorf("what succeeded is %+v", c)
	}
	if late := s.until("default", "app=late", "the deadline", ended(corev1.PodFailed))[0]; late.Status.Reason != "DeadlineExceeded" {
		t.Errorf("what is over is %+v", late.Status)
	}
	failed := s.until("default", "app=uninit", "the failure", ended(corev1.PodFailed))[0]
	if end := failed.Status.InitContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 9 || failed.Status.ContainerStatuses[0].State.Waiting == nil {
		t.Errorf("it is %+v", failed.Status)
	}
	if out := s.kubectl("logs", "uninit", "-c", "first"); out != "no\n" {
		t.Errorf("its init container printed %q", out)
	}
	s.kubectl("delete", "pod", "done", "late", "uninit")
}

// logsSince looks at logs from a moment on.
func (s *stack) logsSince(t *testing.T) {
	t.Helper()
	if out := s.kubectl("logs", "web", "--since=1h"); !strings.HasPrefix(out, "started") {
		t.Errorf("in the last hour it printed %q", out)
	}
	if out := s.kubectl("logs", "web", "--since-time=2100-01-01T00:00:00Z"); out != "" {
		t.Errorf("in the next century it printed %q", out)
	}
	if out := s.kubectl("logs", "web", "--limit-bytes=7"); out != "started" {
		t.Errorf("its first bytes are %q", out)
	}
}
