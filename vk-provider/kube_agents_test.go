package vkprovider_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"s0.run/internal/s0test/kubetest"
)

const (
	agentsModule    = "sigs.k8s.io/agent-sandbox"
	agentsNamespace = "agent-sandbox-system"
	agentsAccount   = "agent-sandbox-controller"
	agentsWebhook   = "agent-sandbox-webhook-service"
)

// agent is a Sandbox whose pod is a sandbox, because its class says so.
const agent = `{"apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "metadata": {"name": "agent", "namespace": "default"}, "spec": {"operatingMode": %[2]q,
	"podTemplate": {"metadata": {"labels": {"app": "agent"}}, "spec": {"runtimeClassName": "s0", "terminationGracePeriodSeconds": 5,
		"containers": [{"name": "main", "image": %[1]q, "command": ["sh", "-c", "echo an agent; exec sleep infinity"], "resources": {"limits": {"memory": "256Mi", "cpu": "500m"}}}]}}}}`

// agentPool is a template of such, a pool of one, and who claims one of them.
const agentPool = `{"apiVersion": "v1", "kind": "List", "items": [
	{"apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxTemplate", "metadata": {"name": "agents", "namespace": "default"}, "spec": {
		"podTemplate": {"metadata": {"labels": {"app": "pooled"}}, "spec": {"runtimeClassName": "s0", "terminationGracePeriodSeconds": 5,
			"containers": [{"name": "main", "image": %[1]q, "command": ["sleep", "infinity"], "resources": {"limits": {"memory": "256Mi", "cpu": "500m"}}}]}}}},
	{"apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxWarmPool", "metadata": {"name": "agents", "namespace": "default"}, "spec": {"replicas": 1, "sandboxTemplateRef": {"name": "agents"}}}]}`

const agentClaim = `{"apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxClaim", "metadata": {"name": "mine", "namespace": "default"}, "spec": {"warmPoolRef": {"name": "agents"}}}`

// What the public controller of agents.x-k8s.io makes of its objects runs here as it is:
// a Sandbox, which is suspended and goes on, and one of a warm pool that is claimed.
func (s *stack) testAgents(t *testing.T) {
	s.startAgents(t)
	s.eventually(t, fmt.Sprintf(agent, s.image, "Running")) // its API needs the controller
	first := s.until("default", "app=agent", "the Sandbox's pod", oneReady)[0]
	if len(first.OwnerReferences) != 1 || first.OwnerReferences[0].Kind != "Sandbox" || first.Spec.NodeName != "sandboxes" {
		t.Errorf("the pod is on %q and belongs to %v", first.Spec.NodeName, first.OwnerReferences)
	}
	s.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "sandboxes.agents.x-k8s.io/agent")
	if out := s.kubectl("exec", first.Name, "--", "sh", "-c", "echo answers; dmesg 2>/dev/null | head -1"); !strings.HasPrefix(out, "answers\n") {
		t.Errorf("exec printed %q", out)
	}
	if out := s.kubectl("logs", first.Name); out != "an agent\n" {
		t.Errorf("it printed %q", out)
	}
	s.apply(t, fmt.Sprintf(agent, s.image, "Suspended"))
	s.until("default", "app=agent", "the suspension", func(p []corev1.Pod) bool { return len(p) == 0 })
	s.apply(t, fmt.Sprintf(agent, s.image, "Running"))
	if again := s.until("default", "app=agent", "the pod after it", oneReady)[0]; again.UID == first.UID {
		t.Error("it went on as the pod that had ended")
	}
	s.claimAgent(t)
	s.kubectl("delete", "--wait=false", "sandboxclaims.extensions.agents.x-k8s.io/mine", "sandboxwarmpools.extensions.agents.x-k8s.io/agents", "sandboxtemplates.extensions.agents.x-k8s.io/agents", "sandboxes.agents.x-k8s.io/agent")
	s.until("default", "app in (agent,pooled)", "the end of all", func(p []corev1.Pod) bool { return len(p) == 0 })
}

func (s *stack) claimAgent(t *testing.T) {
	t.Helper()
	s.apply(t, fmt.Sprintf(agentPool, s.image))
	warm := s.until("default", "app=pooled", "the warm pod", oneReady)[0]
	s.apply(t, agentClaim)
	s.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "sandboxclaims.extensions.agents.x-k8s.io/mine")
	// The claim took the warm one, and another took its place.
	two := s.until("default", "app=pooled", "the claimed pod and another", func(p []corev1.Pod) bool { return len(p) == 2 && ready(p[0]) && ready(p[1]) })
	if two[0].UID != warm.UID && two[1].UID != warm.UID {
		t.Error("the warm pod was not claimed")
	}
	if out := s.kubectl("exec", warm.Name, "--", "echo", "answers"); out != "answers\n" {
		t.Errorf("exec printed %q", out)
	}
}

// startAgents installs the controller's manifests and runs it, with the rights that they
// give it, where a Deployment would: there is no ordinary node here.
func (s *stack) startAgents(t *testing.T) {
	t.Helper()
	s.apply(t, `{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "s0"}, "handler": "s0", "scheduling": {
		"nodeSelector": {"runtime.s0.run/gvisor": "true"}, "tolerations": [{"key": "s0.run/sandbox", "operator": "Exists"}]}}`)
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", agentsModule)
	list.Dir = filepath.Join("..", "hack", "tools", "agent-sandbox")
	list.Env = append(os.Environ(), "GOFLAGS=-mod=mod")
	module, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	s.kubectl("apply", "--server-side", "-k", filepath.Join(strings.TrimSpace(string(module)), "k8s"))
	kubeconfig, err := s.cluster.Kubeconfig("system:serviceaccount:"+agentsNamespace+":"+agentsAccount, "system:serviceaccounts", "system:serviceaccounts:"+agentsNamespace, "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	_, webhook, _ := net.SplitHostPort(freePort(t))
	_, probe, _ := net.SplitHostPort(freePort(t))
	log, err := os.Create(filepath.Join(t.TempDir(), "controller.log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, kubetest.Binary(t, "agent-sandbox-controller"), "--kubeconfig="+kubeconfig, "--extensions",
		"--leader-election-namespace="+agentsNamespace, "--metrics-bind-address=0", "--health-probe-bind-address=127.0.0.1:"+probe,
		"--webhook-port="+webhook, "--webhook-cert-dir="+t.TempDir())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		log.Close()
		if b, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("the controller said: %s", b[max(0, len(b)-8000):])
		}
	})
	s.proxyService(t, "127.0.0.1:"+webhook)
}

// proxyService is the part of kube-proxy that the API server needs: it has the Service of
// the controller's webhook lead to where the controller listens.
func (s *stack) proxyService(t *testing.T, to string) {
	t.Helper()
	ip := s.kubectl("get", "service", "-n", agentsNamespace, agentsWebhook, "-o", "jsonpath={.spec.clusterIP}")
	unbindLeft(t)
	t.Cleanup(func() { unbindLeft(t) })
	if out, err := exec.Command("ip", "address", "add", ip+"/32", "dev", "lo", "label", serviceLabel).CombinedOutput(); err != nil {
		t.Fatalf("ip address add: %v: %s", err, out)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "443"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go splice(c, to) // ends with its connection, and that with the API server's
		}
	}()
}

// serviceLabel marks the addresses that tests give the loopback device.
const serviceLabel = "lo:s0kube"

// unbindLeft takes them away again, and those that a test left which was killed.
func unbindLeft(t *testing.T) {
	t.Helper()
	// With nothing to flush it succeeds as well.
	if out, err := exec.Command("ip", "address", "flush", "dev", "lo", "label", serviceLabel).CombinedOutput(); err != nil {
		t.Errorf("ip address flush: %v: %s", err, out)
	}
}

func splice(a net.Conn, to string) {
	defer a.Close()
	b, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer b.Close()
	go func() {
		defer b.Close()
		_, _ = io.Copy(b, a)
	}()
	_, _ = io.Copy(a, b)
}

// eventually applies what can't be applied before its controller serves.
func (s *stack) eventually(t *testing.T, object string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		out, err := s.tryKubectl(strings.NewReader(object), "apply", "-f", "-")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("kubectl apply: %v: %s", err, out)
		}
	}
}
