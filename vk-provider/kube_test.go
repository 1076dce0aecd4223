package vkprovider_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"s0.run/internal/s0test/freeport"
	"s0.run/internal/s0test/kubetest"
	vkprovider "s0.run/vk-provider"
)

// patience is how long a test waits for what must happen on a machine that does much else.
const patience = 3 * time.Minute

const namespace = "s0-pools"

// stack is a Kubernetes control plane, one machine's s0 beside it, and its virtual node.
type stack struct {
	root    testing.TB // that everything lives as long as
	t       testing.TB // that is running
	cluster *kubetest.Cluster
	kube    kubernetes.Interface
	dir     string
	api     string // of s0
	key     string
	image   string
	stopVK  func()
}

func newStack(t testing.TB) *stack {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root, containerd and a control plane: see make test-kube")
	}
	s := &stack{root: t, t: t, cluster: kubetest.New(t)}
	rc, err := clientcmd.BuildConfigFromFlags("", s.cluster.Admin())
	if err != nil {
		t.Fatal(err)
	}
	rc.QPS, rc.Burst = 200, 400
	if s.kube, err = kubernetes.NewForConfig(rc); err != nil {
		t.Fatal(err)
	}
	if _, err := s.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.grant(t)
	s.up()
	s.startVK()
	return s
}

// up starts one machine's s0, whose pools are ReplicaSets.
func (s *stack) up() {
	s.t.Helper()
	dir, err := os.MkdirTemp("", "s0k-") // short, for sockets live in it
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // PostgreSQL's user crosses it
		s.t.Fatal(err)
	}
	s.dir = dir
	listen, registry := freePort(s.t), freePort(s.t)
	bin := filepath.Dir(kubetest.Binary(s.t, "s0d"))
	flags := []string{
		"--data-dir", dir + "/d", "--run-dir", dir + "/r", "--listen", listen, "--registry-listen", registry, "--cgroup-parent", "/" + filepath.Base(dir),
		"--cluster", "kube", "--image-dir", filepath.Join(bin, "..", "images", "default"), "--pool-min", "1", "--pool-max", "2",
		"--sandbox-cidr", "10.183.0.0/16", "--sandbox-cidr6", "fd83::/64",
	}
	s.t.Cleanup(func() {
		out, err := exec.Command(bin+"/s0d", append([]string{"reset", "--yes"}, flags...)...).CombinedOutput()
		if err != nil {
			s.t.Errorf("s0d reset: %v: %s", err, out)
		}
		os.RemoveAll(dir)
	})
	out, err := exec.Command(bin+"/s0d", append([]string{"up", "--pool-namespace", namespace, "--kubeconfig", s.as(apiUser)}, flags...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("s0d up: %v: %s", err, out)
	}
	key, err := os.ReadFile(dir + "/d/admin.key")
	if err != nil {
		s.t.Fatal(err)
	}
	s.api, s.key = "http://"+listen, strings.TrimSpace(string(key))
}

func freePort(t testing.TB) string {
	t.Helper()
	port, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// startVK shows the machine to Kubernetes, until stopVK.
func (s *stack) startVK() {
	s.t.Helper()
	s.beginVK()()
}

// beginVK is startVK; what it returns waits until the node is registered.
func (s *stack) beginVK() (await func()) {
	s.t.Helper()
	config := vkprovider.Default()
	config.NodeSocket, config.Kubeconfig, config.ClientCAFile = s.dir+"/r/noded.sock", s.as(vkUser), s.cluster.CAFile()
	config.NodeName, config.Listen, config.PoolNamespace = "sandboxes", "127.0.0.1:0", namespace
	config.AdminSocket = s.dir + "/vk.sock"
	config.Log = slog.New(slog.NewTextHandler(testWriter{s.root}, nil))
	ready := make(chan string, 1)
	config.Ready = func(at string) { ready <- at }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- vkprovider.Run(ctx, config) }()
	s.stopVK = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.root.Error(err)
		}
	})
	s.root.Cleanup(s.stopVK)
	return func() {
		s.t.Helper()
		select {
		case <-ready:
		case err := <-done:
			done <- nil
			s.t.Fatal(err)
		case <-time.After(patience):
			s.t.Fatal("the node was not registered")
		}
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (s *stack) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.tryKubectl(nil, args...)
	if err != nil {
		s.t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *stack) tryKubectl(stdin io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	cmd := s.cluster.Kubectl(ctx, args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// until waits for a pod to be something.
func (s *stack) until(namespace, selector, what string, is func([]corev1.Pod) bool) []corev1.Pod {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for {
		list, err := s.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err == nil && is(list.Items) {
			return list.Items
		}
		w, werr := s.kube.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{LabelSelector: selector, ResourceVersion: list.ResourceVersion})
		if err != nil || werr != nil {
			s.t.Fatalf("%s: %v, %v; pods: %s", what, err, werr, s.kubectl("get", "pods", "-A", "-o", "wide"))
		}
		select {
		case <-w.ResultChan():
		case <-ctx.Done():
			s.t.Fatalf("%s did not come; %s\n%s", what, s.kubectl("get", "pods", "-A", "-o", "wide", "--show-labels"), s.kubectl("describe", "pods", "-A"))
		}
		w.Stop()
	}
}

func ready(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func oneReady(pods []corev1.Pod) bool { return len(pods) == 1 && ready(pods[0]) }

// call makes a call of s0's API and answers its data.
func (s *stack) call(method, path string, in any) (status int, data map[string]any) {
	s.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.api+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var envelope struct {
		Data map[string]any `json:"data"`
	}
	b, _ := io.ReadAll(resp.Body)
	_ = json.Unmarshal(b, &envelope)
	if resp.StatusCode >= 300 {
		s.t.Logf("%s %s: %s", method, path, b)
	}
	return resp.StatusCode, envelope.Data
}

// TestKubernetes is the virtual node on a real control plane, with real sandboxes.
func TestKubernetes(t *testing.T) {
	s := newStack(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"node", s.testNode}, {"claim", s.testClaim}, {"pod", s.testPod}, {"life", s.testLife}, {"inputs", s.testInputs}, {"ends", s.testEnds}, {"restart", s.testRestart}, {"terminal", s.testTerminal}, {"probes", s.testProbes},
		{"H01_refusals", s.testRefusals}, {"H02_kubelet", s.testKubeletAuth}, {"H04_others_pools", s.testOthersPools}, {"H05_admin", s.testNoAdmin},
		{"X45_outage", s.testOutage}, {"H06_restart", s.testRestartUnsynced}, {"drift", s.testDrift}, {"rollout", s.testRollout}, {"inputs_later", s.testInputsLater}, {"drain", s.testDrain},
		{"H03_rights", s.testRights}, {"agents", s.testAgents},
	} {
		t.Run(part.name, func(t *testing.T) {
			s.t = t
			defer func() { s.t = s.root }()
			part.run(t)
		})
	}
}

func (s *stack) testNode(t *testing.T) {
	if out := s.kubectl("get", "node", "sandboxes", "-o", "jsonpath={.spec.taints[*].key} {.status.conditions[?(@.type=='Ready')].status} {.metadata.labels['runtime\\.s0\\.run/gvisor']}"); !strings.HasPrefix(out, "s0.run/sandbox") || !strings.HasSuffix(out, "True true") {
		t.Errorf("the node is %q", out)
	}
	node, err := s.kube.CoreV1().Nodes().Get(t.Context(), "sandboxes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range node.Status.Conditions {
		if want := corev1.ConditionFalse; c.Type != corev1.NodeReady && c.Status != want {
			t.Errorf("condition %s is %s", c.Type, c.Status)
		}
	}
	if len(node.Status.Conditions) != 5 || len(node.Status.Addresses) != 2 || node.Status.Allocatable.Pods().Value() == 0 || node.Status.Allocatable.Memory().IsZero() {
		t.Errorf("its status is %+v", node.Status)
	}
	lease, err := s.lease(t)
	if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != "sandboxes" || lease.Spec.RenewTime == nil {
		t.Errorf("its lease is %+v, %v", lease, err)
	}
}

// lease is the node's, which comes some time after the node.
func (s *stack) lease(t *testing.T) (*coordinationv1.Lease, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		lease, err := s.kube.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, "sandboxes", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return lease, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// A pool is a ReplicaSet; a claim's pod leaves it, and another takes its place.
func (s *stack) testClaim(t *testing.T) {
	free := s.until(namespace, "s0.run/state=free", "a free pod", oneReady)
	s.image = free[0].Spec.Containers[0].Image
	if out, err := s.tryKubectl(nil, "exec", "-n", namespace, free[0].Name, "--", "true"); err == nil || !strings.Contains(out, "free slot") {
		t.Errorf("a free slot was entered: %v, %s", err, out)
	}
	status, sb := s.call(http.MethodPost, "/api/v1/sandboxes", map[string]any{"template": "default"})
	if status != http.StatusCreated {
		t.Fatalf("the claim was answered with %d", status)
	}
	id, _ := sb["sandbox_id"].(string)
	claimed := s.until(namespace, "s0.run/sandbox="+id, "the claim's label", oneReady)[0]
	if claimed.UID != free[0].UID || claimed.Labels["s0.run/state"] != "claimed" || claimed.Labels["s0.run/team"] == "" {
		t.Errorf("claimed is %s with %v, free was %s", claimed.Name, claimed.Labels, free[0].Name)
	}
	s.until(namespace, "s0.run/state=free", "another free pod", oneReady)
	if out := s.kubectl("exec", "-n", namespace, claimed.Name, "--", "sh", "-c", "echo out; echo $SANDBOX0_SANDBOX_ID"); out != "out\n"+id+"\n" {
		t.Errorf("exec printed %q", out)
	}
	// A restart of the virtual node finds all again, and ends nothing (H06).
	s.stopVK()
	s.startVK()
	if status, _ := s.call(http.MethodGet, "/api/v1/sandboxes/"+id, nil); status != http.StatusOK {
		t.Errorf("after a restart the sandbox is answered with %d", status)
	}
	if again := s.until(namespace, "s0.run/sandbox="+id, "the claimed pod", oneReady)[0]; again.UID != claimed.UID {
		t.Error("after a restart it is another pod")
	}
	if status, _ := s.call(http.MethodDelete, "/api/v1/sandboxes/"+id, nil); status >= 300 {
		t.Errorf("the delete was answered with %d", status)
	}
	s.until(namespace, "s0.run/sandbox="+id, "the end of the pod", func(p []corev1.Pod) bool { return len(p) == 0 })
	free = s.until(namespace, "s0.run/state=free", "a free pod", oneReady)
	s.kubectl("delete", "pod", "-n", namespace, free[0].Name) // which is replaced
	s.until(namespace, "s0.run/state=free", "another free pod", func(p []corev1.Pod) bool { return oneReady(p) && p[0].UID != free[0].UID })
}

// manifest is a pod for the virtual node.
func manifest(name, image, restart, script, more string) string {
	return fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": "default", "labels": {"app": %q}}, "spec": {
		"restartPolicy": %q, "tolerations": [{"key": "s0.run/sandbox", "operator": "Exists"}], "terminationGracePeriodSeconds": 5 %s,
		"containers": [{"name": "main", "image": %q, "command": ["sh", "-c", %q], "env": [{"name": "MINE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
			{"name": "FROM", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "a"}}}, {"name": "BOTH", "value": "$(MINE)-$(FROM)"}],
			"volumeMounts": [{"name": "conf", "mountPath": "/conf"}], "resources": {"limits": {"memory": "256Mi", "cpu": "500m"}}}],
		"volumes": [{"name": "conf", "configMap": {"name": "conf"}}]}}`, name, name, restart, more, image, script)
}

func (s *stack) apply(t *testing.T, object string) {
	t.Helper()
	if out, err := s.tryKubectl(strings.NewReader(object), "apply", "-f", "-"); err != nil {
		t.Fatalf("kubectl apply: %v: %s", err, out)
	}
}

// Any pod that asks for it is a sandbox.
func (s *stack) testPod(t *testing.T) {
	s.kubectl("create", "configmap", "conf", "--from-literal=a=b")
	s.apply(t, manifest("web", s.image, "Always", "echo started $BOTH $(cat /conf/a); python3 -m http.server 8080 >/dev/null 2>&1", ""))
	s.apply(t, manifest("job", s.image, "Never", "echo working; echo failing >&2; exit 7", ""))
	web := s.until("default", "app=web", "the pod", oneReady)[0]
	if web.Status.Phase != corev1.PodRunning || web.Status.PodIP == "" || web.Status.ContainerStatuses[0].State.Running == nil {
		t.Errorf("its status is %+v", web.Status)
	}
	if out := s.kubectl("logs", "web"); out != "started web-b b\n" {
		t.Errorf("it printed %q", out)
	}
	if out := s.kubectl("logs", "web", "--timestamps", "--tail=1"); !strings.HasSuffix(out, "Z started web-b b\n") {
		t.Errorf("with times it printed %q", out)
	}
	s.logsSince(t)
	if out, err := s.tryKubectl(strings.NewReader("over\n"), "exec", "-i", "web", "--", "sh", "-c", "read x; echo $x $MINE; exit 7"); !strings.HasPrefix(out, "over web\n") || err == nil || !strings.Contains(err.Error(), "7") {
		t.Errorf("exec printed %q: %v", out, err)
	}
	s.forward(t)
	job := s.until("default", "app=job", "the job's end", func(p []corev1.Pod) bool { return len(p) == 1 && p[0].Status.Phase == corev1.PodFailed })[0]
	if end := job.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 7 {
		t.Errorf("the job ended as %+v", job.Status.ContainerStatuses)
	}
	if out := s.kubectl("logs", "job"); !strings.Contains(out, "working\n") || !strings.Contains(out, "failing\n") {
		t.Errorf("the job printed %q", out)
	}
	if out := s.kubectl("describe", "pod", "web"); !strings.Contains(out, "Started container main") {
		t.Errorf("described as %s", out)
	}
	s.kubectl("delete", "pod", "web", "job")
	s.until("default", "", "the pods' end", func(p []corev1.Pod) bool { return len(p) == 0 })
}

// forward reaches the pod's server through kubectl port-forward.
func (s *stack) forward(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := s.cluster.Kubectl(ctx, "port-forward", "pod/web", ":8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var port int
	if _, err := fmt.Fscanf(out, "Forwarding from 127.0.0.1:%d", &port); err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/conf/", port), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.Header.Get("Server") == "" || !strings.Contains(resp.Header.Get("Server"), "Python") {
				t.Errorf("answered by %q", resp.Header.Get("Server"))
			}
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("nobody answers: %v", err)
		}
	}
}

// Nobody gets anything from the kubelet API whom Kubernetes does not know and let.
func (s *stack) testKubeletAuth(t *testing.T) {
	base := s.kubeletURL(t)
	for path, method := range map[string]string{"/pods": "GET", "/runningpods/": "GET", "/exec/default/web/main?command=id&output=1": "POST", "/stats/summary": "GET", "/metrics/resource": "GET", "/": "GET"} {
		for token, want := range map[string]int{"": http.StatusUnauthorized, "guessed": http.StatusUnauthorized} {
			if got := s.ask(t, method, base+path, token); got != want {
				t.Errorf("%s with token %q is answered with %d", path, token, got)
			}
		}
	}
	// A token that Kubernetes knows, of one that may do nothing, then of one that may.
	token := strings.TrimSpace(s.kubectl("create", "token", "default"))
	if got := s.ask(t, http.MethodGet, base+"/pods", token); got != http.StatusForbidden {
		t.Errorf("a stranger is answered with %d", got)
	}
	if got := s.ask(t, http.MethodGet, base+"/pods", s.operator()); got != http.StatusOK {
		t.Errorf("an operator is answered with %d", got)
	}
}

// kubeletURL is where the node's own API is.
func (s *stack) kubeletURL(t *testing.T) string {
	t.Helper()
	node, err := s.kube.CoreV1().Nodes().Get(t.Context(), "sandboxes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("https://127.0.0.1:%d", node.Status.DaemonEndpoints.KubeletEndpoint.Port)
}

// operator is a token of somebody who may do everything with nodes.
func (s *stack) operator() string {
	s.t.Helper()
	if _, err := s.tryKubectl(nil, "get", "serviceaccount", "operator"); err != nil {
		s.kubectl("create", "serviceaccount", "operator")
		s.kubectl("create", "clusterrolebinding", "operator", "--clusterrole=system:kubelet-api-admin", "--serviceaccount=default:operator")
	}
	return strings.TrimSpace(s.kubectl("create", "token", "operator"))
}

func (s *stack) ask(t *testing.T, method, url, token string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := insecure.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// insecure does not look at the kubelet API's certificate, which it signs itself.
var insecure = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
