package vkprovider_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What no sandbox may have is refused, and describe says why.
func (s *stack) testRefusals(t *testing.T) {
	for name, c := range map[string]struct{ spec, container, says string }{
		"hostnetwork": {spec: `"hostNetwork": true`, says: "spec.hostNetwork"},
		"hostpid":     {spec: `"hostPID": true`, says: "spec.hostPID"},
		"hostipc":     {spec: `"hostIPC": true`, says: "spec.hostIPC"},
		"hostpath":    {spec: `"volumes": [{"name": "v", "hostPath": {"path": "/"}}]`, container: `"volumeMounts": [{"name": "v", "mountPath": "/host"}]`, says: "spec.volumes[].hostPath.path"},
		"token":       {spec: `"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]`, says: "serviceAccountToken"},
		"sysctl":      {spec: `"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}`, says: "spec.securityContext.sysctls"},
		"privileged":  {container: `"securityContext": {"privileged": true}`, says: "spec.containers[].securityContext.privileged"},
		"caps":        {container: `"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}`, says: "spec.containers[].securityContext.capabilities.add"},
		"procmount":   {spec: `"hostUsers": false`, container: `"securityContext": {"procMount": "Unmasked"}`, says: "spec.containers[].securityContext.procMount"},
		"subpath":     {spec: `"volumes": [{"name": "v", "emptyDir": {}}]`, container: `"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "s"}]`, says: "spec.containers[].volumeMounts[].subPath"},
		"hostport":    {container: `"ports": [{"containerPort": 80, "hostPort": 8099}]`, says: "spec.containers[].ports[].hostPort"},
		"probehost":   {container: `"livenessProbe": {"httpGet": {"port": 80, "host": "169.254.169.254"}}`, says: "spec.containers[].livenessProbe.httpGet.host"},
	} {
		t.Run(name, func(t *testing.T) {
			s.apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": "default", "labels": {"app": %q}}, "spec": {
				"restartPolicy": "Never", "nodeName": "sandboxes", %s "containers": [{"name": "main", "image": %q, "command": ["true"] %s}]}}`,
				name, name, and(c.spec, "", ","), s.image, and(c.container, ",", "")))
			s.untilEvent(t, name, "NotAllowed", c.says)
			pod := s.until("default", "app="+name, "the refusal", func(p []corev1.Pod) bool { return len(p) == 1 && p[0].Status.Phase == corev1.PodFailed })[0]
			if pod.Status.Reason != "NotAllowed" || !strings.Contains(pod.Status.Message, c.says) || pod.Status.PodIP != "" {
				t.Errorf("its status is %+v", pod.Status)
			}
			if out := s.kubectl("describe", "pod", name); !strings.Contains(out, "a sandbox can't have spec.") || !strings.Contains(out, c.says) {
				t.Errorf("described as %s", out)
			}
			s.kubectl("delete", "pod", name)
		})
	}
	t.Run("ephemeral", s.testEphemeral)
}

func and(s, before, after string) string {
	if s == "" {
		return ""
	}
	return before + s + after
}

// A container that is put into a pod that runs is refused as well, and the pod runs on.
func (s *stack) testEphemeral(t *testing.T) {
	s.apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "debugged", "namespace": "default", "labels": {"app": "debugged"}}, "spec": {
		"tolerations": [{"key": "s0.run/sandbox", "operator": "Exists"}], "containers": [{"name": "main", "image": %q, "command": ["sleep", "100000"], "resources": {"limits": {"memory": "256Mi", "cpu": "500m"}}}]}}`, s.image))
	s.until("default", "app=debugged", "the pod", oneReady)
	s.kubectl("debug", "debugged", "--image="+s.image, "--container=shell", "--attach=false", "--", "sh")
	s.untilEvent(t, "debugged", "NotAllowed", "spec.ephemeralContainers")
	pod := s.until("default", "app=debugged", "the refusal", func(p []corev1.Pod) bool {
		return len(p) == 1 && len(p[0].Status.EphemeralContainerStatuses) == 1
	})[0]
	if c := pod.Status.EphemeralContainerStatuses[0]; c.State.Terminated == nil || c.State.Terminated.Reason != "NotAllowed" || !ready(pod) {
		t.Errorf("its status is %+v", pod.Status)
	}
	s.kubectl("delete", "pod", "debugged")
}

// A pod that says it is a pool's, outside the pools' namespace, gets nothing: whoever may
// make pods somewhere decides nothing of what tenants get.
func (s *stack) testOthersPools(t *testing.T) {
	free := s.until(namespace, "s0.run/state=free", "a free pod", oneReady)[0]
	annotations, err := json.Marshal(free.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	s.apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rogue", "namespace": "default", "labels": {"app": "rogue"}, "annotations": %s}, "spec": {
		"restartPolicy": "Never", "nodeName": "sandboxes", "containers": [{"name": "sandbox", "image": %q}]}}`, annotations, s.image))
	s.untilEvent(t, "rogue", "NotAllowed", "pods of pools are in namespace")
	s.until("default", "app=rogue", "the refusal", func(p []corev1.Pod) bool { return len(p) == 1 && p[0].Status.Phase == corev1.PodFailed })
	s.kubectl("delete", "pod", "rogue")
}

// Health and pprof are on a unix socket that belongs to root; the kubelet API has neither,
// not even for who may do everything.
func (s *stack) testNoAdmin(t *testing.T) {
	base, token := s.kubeletURL(t), s.operator()
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/metrics", "/configz", "/healthz", "/readyz"} {
		if got := s.ask(t, http.MethodGet, base+path, token); got != http.StatusNotFound {
			t.Errorf("%s is answered with %d", path, got)
		}
		if got := s.ask(t, http.MethodGet, base+path, ""); got != http.StatusUnauthorized {
			t.Errorf("%s is answered to nobody with %d", path, got)
		}
	}
	info, err := os.Stat(filepath.Join(s.dir, "vk.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode()&os.ModeSocket == 0 || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("the admin socket is %s", info.Mode())
	}
}
