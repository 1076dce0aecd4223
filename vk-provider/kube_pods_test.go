package vkprovider_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	neturl "net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// whole is a pod that uses most of what pods have.
const whole = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "whole", "namespace": "default", "labels": {"app": "whole", "l": "v"}}, "spec": {
	"tolerations": [{"key": "s0.run/sandbox", "operator": "Exists"}], "terminationGracePeriodSeconds": 20,
	"initContainers": [
		{"name": "first", "image": %[1]q, "command": ["sh", "-c", "echo one >> /work/order"], "volumeMounts": [{"name": "work", "mountPath": "/work"}]},
		{"name": "second", "image": %[1]q, "command": ["sh", "-c", "echo two >> /work/order"], "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
	"containers": [{"name": "main", "image": %[1]q, "command": ["sh", "-c", "trap 'echo told to end; exit 0' TERM; cat /work/order /sec/password /down/labels; echo $TOKEN $LIMIT; while :; do sleep 1 & wait $!; done"],
		"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "password"}}}, {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}],
		"resources": {"limits": {"memory": "256Mi", "cpu": "500m"}},
		"volumeMounts": [{"name": "work", "mountPath": "/work"}, {"name": "sec", "mountPath": "/sec"}, {"name": "down", "mountPath": "/down"}]}],
	"volumes": [{"name": "work", "emptyDir": {}}, {"name": "sec", "secret": {"secretName": "sec"}},
		{"name": "down", "projected": {"sources": [{"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}]}}`

// A pod's life: what runs before it, what it is given, what becomes of it when it ends.
func (s *stack) testLife(t *testing.T) {
	s.kubectl("create", "secret", "generic", "sec", "--from-literal=password=xyzzy")
	s.apply(t, fmt.Sprintf(whole, s.image))
	pod := s.until("default", "app=whole", "the pod", oneReady)[0]
	if n := len(pod.Status.InitContainerStatuses); n != 2 || pod.Status.InitContainerStatuses[1].State.Terminated == nil {
		t.Errorf("its init containers are %+v", pod.Status.InitContainerStatuses)
	}
	follow, ended := s.follow(t, "logs", "-f", "whole", "-c", "main")
	follow.await(t, "xyzzy 256\n")
	if got := follow.String(); !strings.HasPrefix(got, "one\ntwo\nxyzzy") || !strings.Contains(got, `l="v"`) {
		t.Errorf("it printed %q", got)
	}
	s.copies(t)
	s.usage(t)
	s.kubectl("delete", "pod", "whole")
	if err := <-ended; err != nil {
		t.Errorf("logs -f: %v", err)
	}
	if got := follow.String(); !strings.Contains(got, "\ntold to end\n") { // the shell may have a last word of its own
		t.Errorf("at the end it printed %q", got)
	}
}

// copies copies a file in and out again.
func (s *stack) copies(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	if err := os.WriteFile(in, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s.kubectl("cp", in, "whole:/work/copied")
	s.kubectl("cp", "whole:/work/copied", out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back: %v", len(got), err)
	}
}

// usage is what a metrics server and kubectl top ask a kubelet for: directly, for the API
// server passes nothing on to a loopback address.
func (s *stack) usage(t *testing.T) {
	t.Helper()
	token := s.operator()
	var summary statsv1alpha1.Summary
	if err := json.Unmarshal(s.kubelet(t, "/stats/summary", token), &summary); err != nil {
		t.Fatal(err)
	}
	var found *statsv1alpha1.PodStats
	for i, p := range summary.Pods {
		if p.PodRef.Name == "whole" {
			found = &summary.Pods[i]
		}
	}
	if found == nil || found.Memory == nil || *found.Memory.WorkingSetBytes == 0 || *found.CPU.UsageCoreNanoSeconds == 0 {
		t.Errorf("the summary says %+v", found)
	}
	metrics := string(s.kubelet(t, "/metrics/resource", token))
	for _, name := range []string{"node_cpu_usage_seconds_total", `container_memory_working_set_bytes{container="main",namespace="default",pod="whole"}`, `container_cpu_usage_seconds_total{container="main"`, "container_start_time_seconds{"} {
		if !strings.Contains(metrics, name) {
			t.Errorf("the metrics have no %s: %s", name, metrics)
		}
	}
}

// kubelet gets something of the node's own API.
func (s *stack) kubelet(t *testing.T, path, token string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.kubeletURL(t)+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := insecure.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", path, resp.Status, err, b)
	}
	return b
}

// A container that ends is started again, and what it printed before is there still.
func (s *stack) testRestart(t *testing.T) {
	s.apply(t, manifest("again", s.image, "Always", "test -e /tmp/was && { echo second; exec sleep 1000; }; touch /tmp/was; echo first; exit 3", ""))
	again := s.until("default", "app=again", "its second attempt", func(p []corev1.Pod) bool {
		return oneReady(p) && p[0].Status.ContainerStatuses[0].RestartCount == 1
	})[0]
	if last := again.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 3 {
		t.Errorf("its first attempt ended as %+v", last)
	}
	if out := s.kubectl("logs", "again", "--previous"); out != "first\n" {
		t.Errorf("at first it printed %q", out)
	}
	if out := s.kubectl("logs", "again"); out != "second\n" {
		t.Errorf("then it printed %q", out)
	}
	s.kubectl("delete", "pod", "again")
}

// sized prints a terminal's size when it is the one that was told: a command may begin
// before that.
const sized = `at() { until test "$(stty size)" = "$1"; do sleep 0.1; done; stty size; }
at "41 101"; while read x; do at "42 102"; echo "$x!"; test $x = end && exit 5; done`

// A terminal has its size and follows it, by both protocols that clients speak; who
// attaches talks to what the container runs.
func (s *stack) testTerminal(t *testing.T) {
	s.apply(t, strings.Replace(manifest("term", s.image, "Never", `while read x; do echo "heard $x"; test "$x" = end && exit 4; done`, ""), `"name": "main",`, `"name": "main", "stdin": true, "tty": true,`, 1))
	s.until("default", "app=term", "the pod", oneReady)
	rc, err := clientcmd.BuildConfigFromFlags("", s.cluster.Admin())
	if err != nil {
		t.Fatal(err)
	}
	for name, dial := range map[string]func(string) (remotecommand.Executor, error){
		"WebSocket": func(url string) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(rc, "GET", url)
		},
		"SPDY": func(url string) (remotecommand.Executor, error) { return s.spdy(rc, url) },
	} {
		in, keys := io.Pipe()
		out, size := newSink(), &sizes{next: make(chan remotecommand.TerminalSize, 2)}
		size.next <- remotecommand.TerminalSize{Width: 101, Height: 41}
		ended := s.stream(t, dial, "exec", []string{"sh", "-c", sized}, in, out, size)
		out.await(t, "41 101")
		size.next <- remotecommand.TerminalSize{Width: 102, Height: 42}
		fmt.Fprint(keys, "now\n")
		out.await(t, "now!")
		if got := out.String(); !strings.Contains(got, "42 102") {
			t.Errorf("%s: the terminal printed %q", name, got)
		}
		fmt.Fprint(keys, "end\n")
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "5") {
			t.Errorf("%s: the terminal ended with %v", name, err)
		}
		keys.Close()
	}
	old, oldKeys := io.Pipe()
	heard := newSink()
	oldEnded := s.stream(t, func(url string) (remotecommand.Executor, error) { return s.spdy(rc, url) }, "attach", nil, old, heard, &sizes{next: make(chan remotecommand.TerminalSize)})
	fmt.Fprint(oldKeys, "both\n")
	heard.await(t, "heard both")
	in, keys := io.Pipe()
	out := newSink()
	ended := s.stream(t, func(url string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(rc, "GET", url)
	}, "attach", nil, in, out, &sizes{next: make(chan remotecommand.TerminalSize)})
	fmt.Fprint(keys, "you\n")
	out.await(t, "heard you")
	fmt.Fprint(keys, "end\n")
	out.await(t, "heard end")
	for name, ended := range map[string]<-chan error{"WebSocket": ended, "SPDY": oldEnded} {
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "4") {
			t.Errorf("%s: the attached one ended with %v", name, err)
		}
	}
	s.kubectl("delete", "pod", "term")
}

func (s *stack) spdy(rc *rest.Config, url string) (remotecommand.Executor, error) {
	u, err := neturl.Parse(url)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutor(rc, "POST", u)
}

// stream runs one of a container's streams, with a terminal.
func (s *stack) stream(t *testing.T, dial func(string) (remotecommand.Executor, error), what string, command []string, in io.Reader, out io.Writer, size remotecommand.TerminalSizeQueue) <-chan error {
	t.Helper()
	req := s.kube.CoreV1().RESTClient().Post().Namespace("default").Resource("pods").Name("term").SubResource(what)
	if what == "exec" {
		req.VersionedParams(&corev1.PodExecOptions{Container: "main", Command: command, Stdin: true, Stdout: true, TTY: true}, scheme.ParameterCodec)
	} else {
		req.VersionedParams(&corev1.PodAttachOptions{Container: "main", Stdin: true, Stdout: true, TTY: true}, scheme.ParameterCodec)
	}
	executor, err := dial(req.URL().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	ended := make(chan error, 1)
	go func() {
		ended <- executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Tty: true, TerminalSizeQueue: size})
	}()
	return ended
}

// sink keeps what is written to it, for who waits for something.
type sink struct {
	mu      sync.Mutex
	all     bytes.Buffer
	written chan struct{} // holds a value when there is more
}

func newSink() *sink { return &sink{written: make(chan struct{}, 1)} }

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.written <- struct{}{}:
	default:
	}
	return s.all.Write(b)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.String()
}

func (s *sink) await(t *testing.T, text string) {
	t.Helper()
	late := time.After(patience)
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.written:
		case <-late:
			t.Fatalf("%q did not come, but %q", text, s.String())
		}
	}
}

// sizes are those of a terminal.
type sizes struct {
	next chan remotecommand.TerminalSize
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	if size, ok := <-s.next; ok {
		return &size
	}
	return nil
}

// follow runs kubectl until it ends by itself.
func (s *stack) follow(t *testing.T, args ...string) (*sink, <-chan error) {
	t.Helper()
	out := newSink()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	cmd := s.cluster.Kubectl(ctx, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return out, ended
}
