package vkprovider_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"s0.run/internal/s0test/kubetest"
)

// claim claims a sandbox of a template.
func (s *stack) claim(t *testing.T, template string) (id string) {
	t.Helper()
	began := time.Now()
	status, sb := s.call(http.MethodPost, "/api/v1/sandboxes", map[string]any{"template": template})
	if status != http.StatusCreated {
		t.Fatalf("the claim was answered with %d", status)
	}
	t.Logf("claimed in %s", time.Since(began))
	id, _ = sb["sandbox_id"].(string)
	return id
}

// running reports whether a tenant's sandbox is there.
func (s *stack) running(t *testing.T, id string) bool {
	t.Helper()
	status, sb := s.call(http.MethodGet, "/api/v1/sandboxes/"+id, nil)
	return status == http.StatusOK && sb["status"] == "running"
}

// end deletes a sandbox, and waits for its pod to go.
func (s *stack) end(t *testing.T, id string) {
	t.Helper()
	if status, _ := s.call(http.MethodDelete, "/api/v1/sandboxes/"+id, nil); status >= 300 {
		t.Errorf("the delete was answered with %d", status)
	}
	s.until(namespace, "s0.run/sandbox="+id, "the end of the pod", func(p []corev1.Pod) bool { return len(p) == 0 })
}

// writes are what the virtual node has changed of a pod, since a moment. Statuses are not
// among them: others write them as well, of a node that was silent, and it puts them right.
func (s *stack) writes(t *testing.T, since int, pod string) (mine []kubetest.Write, now int) {
	t.Helper()
	all, err := s.cluster.Writes()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range all[since:] {
		if w.Agent == "s0-vk" && w.Resource == "pods" && w.Name == pod && w.Subresource != "status" && w.OK() {
			mine = append(mine, w)
		}
	}
	return mine, len(all)
}

// While nobody answers for Kubernetes a claim is what it always is; what it writes
// follows, once. (X45)
func (s *stack) testOutage(t *testing.T) {
	free := s.until(namespace, "s0.run/state=free", "a free pod", oneReady)[0]
	_, before := s.writes(t, 0, free.Name)
	s.cluster.KillAPIServer()
	id := s.claim(t, "default")
	if !s.running(t, id) {
		t.Error("what was claimed does not run")
	}
	if err := s.cluster.RestartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	claimed := s.until(namespace, "s0.run/sandbox="+id, "the claim's label", oneReady)[0]
	if claimed.UID != free.UID || claimed.Labels["s0.run/state"] != "claimed" || metav1.GetControllerOf(&claimed) != nil {
		t.Errorf("claimed is %s with %v, free was %s", claimed.Name, claimed.ObjectMeta, free.Name)
	}
	s.until(namespace, "s0.run/state=free", "another free pod", oneReady)
	if mine, _ := s.writes(t, before, free.Name); len(mine) != 1 || mine[0].Verb != "patch" {
		t.Errorf("the claim cost these writes: %+v", mine)
	}
	s.end(t, id)
}

// A virtual node that begins while nobody answers for Kubernetes has seen no pods, and
// ends nothing for that (H06, G09).
func (s *stack) testRestartUnsynced(t *testing.T) {
	free := s.until(namespace, "s0.run/state=free", "a free pod", oneReady)[0]
	id := s.claim(t, "default")
	claimed := s.until(namespace, "s0.run/sandbox="+id, "the claim's label", oneReady)[0]
	if claimed.UID != free.UID {
		t.Errorf("claimed is %s, free was %s", claimed.Name, free.Name)
	}
	next := s.until(namespace, "s0.run/state=free", "another free pod", oneReady)[0]
	_, before := s.writes(t, 0, "")
	s.cluster.KillAPIServer()
	s.stopVK()
	await := s.beginVK()
	if !s.running(t, id) {
		t.Error("what was claimed does not run")
	}
	if err := s.cluster.RestartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	await()
	if again := s.until(namespace, "s0.run/sandbox="+id, "the claimed pod", oneReady)[0]; again.UID != claimed.UID || !s.running(t, id) {
		t.Error("after the restart it is another pod")
	}
	if again := s.until(namespace, "s0.run/state=free", "the free pod", oneReady)[0]; again.UID != next.UID {
		t.Error("after the restart another pod is free")
	}
	s.claimedAgain(t, next) // its slot is the same as well
	mine, _ := s.writes(t, before, claimed.Name)
	for _, w := range mine {
		if w.Verb == "delete" {
			t.Errorf("the restart wrote %+v", w)
		}
	}
	s.end(t, id)
}

// claimedAgain claims a free pod that must be the one.
func (s *stack) claimedAgain(t *testing.T, free corev1.Pod) {
	t.Helper()
	id := s.claim(t, "default")
	if claimed := s.until(namespace, "s0.run/sandbox="+id, "the claim's label", oneReady)[0]; claimed.UID != free.UID {
		t.Errorf("claimed is %s, free was %s", claimed.Name, free.Name)
	}
	s.until(namespace, "s0.run/state=free", "another free pod", oneReady)
	s.end(t, id)
}

// What others change of a pool is put back, and what is claimed is none of it.
func (s *stack) testDrift(t *testing.T) {
	id := s.claim(t, "default")
	claimed := s.until(namespace, "s0.run/sandbox="+id, "the claim's label", oneReady)[0]
	s.kubectl("label", "pod", "-n", namespace, claimed.Name, "s0.run/team-", "s0.run/sandbox=sb-other", "--overwrite")
	s.until(namespace, "s0.run/sandbox="+id+",s0.run/team", "the labels again", oneReady)
	s.until(namespace, "s0.run/state=free", "a free pod", oneReady)
	sets := s.kubectl("get", "replicasets", "-n", namespace, "-o", "name")
	for _, set := range strings.Fields(sets) {
		s.kubectl("delete", "-n", namespace, set)
	}
	s.until(namespace, "s0.run/state=free", "a free pod of another set", func(p []corev1.Pod) bool {
		return oneReady(p) && metav1.GetControllerOf(&p[0]) != nil && p[0].DeletionTimestamp == nil
	})
	if !s.running(t, id) {
		t.Error("what was claimed has gone with the ReplicaSet")
	}
	// Who deletes a claimed pod means its sandbox.
	s.kubectl("delete", "pod", "-n", namespace, claimed.Name)
	s.until(namespace, "s0.run/sandbox="+id, "the end of the pod", func(p []corev1.Pod) bool { return len(p) == 0 })
	s.untilEnded(t, id)
}

// untilStatus waits until a tenant's sandbox is what it shall be.
func (s *stack) untilStatus(t *testing.T, id, want string) {
	t.Helper()
	for late := time.After(patience); ; {
		_, sb := s.call(http.MethodGet, "/api/v1/sandboxes/"+id, nil)
		if sb["status"] == want {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-late:
			t.Fatalf("%s is %v", id, sb)
		}
	}
}

// untilEnded waits until a tenant's sandbox has ended.
func (s *stack) untilEnded(t *testing.T, id string) {
	t.Helper()
	for late := time.After(patience); s.running(t, id); {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-late:
			t.Fatalf("%s runs on", id)
		}
	}
}

// A template's change rolls its pool; what is claimed stays what it was.
func (s *stack) testRollout(t *testing.T) {
	spec := func(value string) map[string]any {
		return map[string]any{
			"mainContainer": map[string]any{"image": s.image, "resources": map[string]any{"memory": "256Mi"}}, "envVars": map[string]string{"WHICH": value},
			"pool": map[string]int{"minIdle": 1, "maxIdle": 1},
		}
	}
	if status, _ := s.call(http.MethodPost, "/api/v1/templates", map[string]any{"template_id": "rolled", "spec": spec("one")}); status != http.StatusCreated {
		t.Fatalf("the template was answered with %d", status)
	}
	made := func(p corev1.Pod) bool { return strings.Contains(p.Annotations["s0.run/spec"], "WHICH") }
	all := s.until(namespace, "s0.run/state=free", "a pod of the template", func(p []corev1.Pod) bool { return slices.ContainsFunc(p, made) })
	of := "s0.run/template=" + all[slices.IndexFunc(all, made)].Labels["s0.run/template"]
	first := s.until(namespace, "s0.run/state=free,"+of, "a free pod", oneReady)[0]
	id := s.claim(t, "rolled")
	s.until(namespace, "s0.run/sandbox="+id, "the claim's label", oneReady)
	s.until(namespace, "s0.run/state=free,"+of, "another free pod", oneReady)
	if status, _ := s.call(http.MethodPut, "/api/v1/templates/rolled", map[string]any{"spec": spec("two")}); status != http.StatusOK {
		t.Fatalf("the change was answered with %d", status)
	}
	s.until(namespace, "s0.run/state=free,"+of, "a pod of the new spec alone", func(p []corev1.Pod) bool {
		return oneReady(p) && p[0].Annotations["s0.run/spec"] != first.Annotations["s0.run/spec"]
	})
	if !s.running(t, id) {
		t.Error("what was claimed before has gone")
	}
	if out := s.kubectl("exec", "-n", namespace, first.Name, "--", "sh", "-c", "echo $WHICH"); out != "one\n" {
		t.Errorf("it has %q", out)
	}
	s.end(t, id)
	if status, _ := s.call(http.MethodDelete, "/api/v1/templates/rolled", nil); status != http.StatusOK {
		t.Errorf("the template's end was answered with %d", status)
	}
	s.until(namespace, of, "the end of the pool", func(p []corev1.Pod) bool { return len(p) == 0 })
}

// drainArgs are what an administrator types.
func drainArgs(more ...string) []string {
	return append([]string{"drain", "sandboxes", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=" + fmt.Sprint(patience)}, more...)
}

// A drain takes free pods, and no claimed one unless it is told to: then what a tenant has
// is paused, and nothing begins or goes on here before the node is uncordoned.
func (s *stack) testDrain(t *testing.T) {
	id := s.claim(t, "default")
	claimed := s.until(namespace, "s0.run/sandbox="+id, "the claim's label", oneReady)[0]
	s.until(namespace, "s0.run/state=free", "a free pod", oneReady)
	s.kubectl("exec", "-n", namespace, claimed.Name, "--", "sh", "-c", "echo kept > /tmp/kept")
	if out, err := s.tryKubectl(nil, drainArgs()...); err == nil || !strings.Contains(out, claimed.Name) {
		t.Errorf("the drain ended with %v: %s", err, out)
	}
	if !s.running(t, id) {
		t.Error("what was claimed has gone")
	}
	s.kubectl(drainArgs("--force")...)
	s.until(namespace, "s0.run/sandbox="+id, "the end of the pod", func(p []corev1.Pod) bool { return len(p) == 0 })
	s.untilStatus(t, id, "paused")
	s.until(namespace, "s0.run/state=free", "a free pod that has no place", func(p []corev1.Pod) bool {
		return len(p) == 1 && p[0].Spec.NodeName == "" && p[0].Status.Phase == corev1.PodPending
	})
	if status, _ := s.call(http.MethodPost, "/api/v1/sandboxes/"+id+"/resume", nil); status < 300 {
		t.Errorf("resumed on a cordoned node: %d", status)
	}
	if status, _ := s.call(http.MethodPost, "/api/v1/sandboxes", map[string]any{"template": "default"}); status < 300 {
		t.Errorf("claimed on a cordoned node: %d", status)
	}
	s.kubectl("uncordon", "sandboxes")
	s.until(namespace, "s0.run/state=free", "a free pod", oneReady)
	for late := time.After(patience); ; {
		if status, _ := s.call(http.MethodPost, "/api/v1/sandboxes/"+id+"/resume", nil); status == http.StatusOK {
			break
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-late:
			t.Fatal("it can't be resumed")
		}
	}
	status, done := s.call(http.MethodPost, "/api/v1/sandboxes/"+id+"/contexts", map[string]any{
		"type": "cmd", "cmd": map[string]any{"command": []string{"cat", "/tmp/kept"}}, "wait_until_done": true,
	})
	if status >= 300 || done["stdout"] != "kept\n" {
		t.Errorf("resumed it answers %d %v", status, done)
	}
	s.end(t, id)
}
