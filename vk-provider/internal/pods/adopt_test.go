package pods

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/vk-provider/internal/noded"
)

// node is a noded whose one sandbox has sessions and makes no others. Who follows one is
// told of its end.
type node struct {
	mu       sync.Mutex
	sessions []procapi.Session
	end      chan struct{} // closed to have all of them end
}

func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	sessions := n.sessions
	n.mu.Unlock()
	path, _ := strings.CutPrefix(r.URL.Path, nodeapi.ProcPrefix+"sb"+procapi.PathSessions)
	switch {
	case r.Method == http.MethodGet && path == "":
		_ = json.NewEncoder(w).Encode(procapi.SessionList{Sessions: sessions})
	case r.Method == http.MethodGet && strings.HasSuffix(path, "/events/stream"):
		select {
		case <-n.end:
			_ = json.NewEncoder(w).Encode(procapi.SessionEvent{Seq: 1, Type: "session." + procapi.PhaseExited})
		case <-r.Context().Done():
		}
	case r.Method == http.MethodGet:
		for _, s := range sessions {
			if path == "/"+s.ID {
				s.Phase = procapi.PhaseExited
				_ = json.NewEncoder(w).Encode(s)
			}
		}
	default:
		http.Error(w, `{"code": "refused", "message": "not today"}`, http.StatusServiceUnavailable)
	}
}

// client is one of the node's.
func (n *node) client(t *testing.T) *noded.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "s0p-") // short, for a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "n")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: n, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
		os.RemoveAll(dir)
	})
	return noded.New(socket, slog.New(slog.DiscardHandler))
}

func session(name string) procapi.Session {
	zero := 0
	return procapi.Session{ID: "ses-" + name, Spec: procapi.SessionSpec{Name: name, Env: map[string]string{"A": "b"}}, Phase: procapi.PhaseRunning, Attempt: &procapi.SessionAttempt{StartedAt: time.Now(), ExitCode: &zero}}
}

// started is Pods that run, with a node and what Kubernetes has, and what they tell.
func started(t *testing.T, n *node, known ...*corev1.Pod) (p *Pods, told chan corev1.PodStatus) {
	t.Helper()
	list, _ := lister(t, known...)
	told = make(chan corev1.PodStatus, 100)
	p = New(Config{
		Warmups: 1, Node: n.client(t), Kube: fake.NewClientset(), Lister: list, Events: record.NewFakeRecorder(100),
		HostIP: "1.2.3.4", Log: slog.New(slog.DiscardHandler),
	})
	p.NotifyPods(t.Context(), func(o *corev1.Pod) { told <- o.Status })
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return p, told
}

// needy is a pod that Kubernetes says runs, and whose config map is gone.
func needy(containers ...string) *corev1.Pod {
	api := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid", Namespace: "default", Name: "p"}}
	for _, name := range containers {
		api.Spec.Containers = append(api.Spec.Containers, corev1.Container{
			Name: name, Image: "example.com/a", Command: []string{"sleep"}, ImagePullPolicy: corev1.PullAlways,
			EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "gone"}}}},
		})
		api.Status.ContainerStatuses = append(api.Status.ContainerStatuses, corev1.ContainerStatus{Name: name, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}})
	}
	api.Spec.RestartPolicy, api.Status.Phase = corev1.RestartPolicyNever, corev1.PodRunning
	return api
}

func picture(sandboxes ...*nodeapi.Sandbox) noded.Picture {
	p := noded.Picture{Slots: map[string]*nodeapi.PodSlot{}, Sandboxes: map[string]*nodeapi.Sandbox{}}
	for _, sb := range sandboxes {
		p.Sandboxes[sb.GetId()] = sb
	}
	return p
}

func mine() *nodeapi.Sandbox {
	return &nodeapi.Sandbox{Id: "sb", ClaimId: nodeapi.PodClaim("uid"), State: "running"}
}

// await takes what is told until it is right; before that, all must hold.
func await(t *testing.T, told <-chan corev1.PodStatus, right, all func(corev1.PodStatus) bool) corev1.PodStatus {
	t.Helper()
	for late := time.After(time.Minute); ; {
		select {
		case s := <-told:
			if right(s) {
				return s
			}
			if !all(s) {
				t.Fatalf("told of %+v", s)
			}
		case <-late:
			t.Fatal("nothing of it was told")
		}
	}
}

func inPhase(phase corev1.PodPhase) func(corev1.PodStatus) bool {
	return func(s corev1.PodStatus) bool { return s.Phase == phase }
}

// A pod that runs is found again by the next process, and followed, though what it was
// made of is gone.
func TestR6_ARunningPodNeedsItsInputsNoMore(t *testing.T) {
	t.Parallel()
	n := &node{sessions: []procapi.Session{session("main")}, end: make(chan struct{})}
	p, told := started(t, n, needy("main"))
	if err := p.CreatePod(t.Context(), needy("main")); err != nil {
		t.Fatal(err)
	}
	p.Synced(picture(mine()))
	s := await(t, told, func(corev1.PodStatus) bool { return true }, inPhase(corev1.PodRunning))
	if s.Phase != corev1.PodRunning || !s.ContainerStatuses[0].Ready {
		t.Errorf("after a restart it is %+v", s)
	}
	if at, err := p.Find("default", "p", "main"); err != nil || at.Session != "ses-main" || at.Env["A"] != "b" {
		t.Errorf("it is reached at %+v, %v", at, err)
	}
	close(n.end)
	await(t, told, inPhase(corev1.PodSucceeded), inPhase(corev1.PodRunning))
}

// Of a pod half of which runs that half is told, and its end, while the other waits.
func TestR6_HalfAPodIsTold(t *testing.T) {
	t.Parallel()
	n := &node{sessions: []procapi.Session{session("one")}, end: make(chan struct{})}
	p, told := started(t, n, needy("one", "two"))
	if err := p.CreatePod(t.Context(), needy("one", "two")); err != nil {
		t.Fatal(err)
	}
	p.Synced(picture(mine()))
	half := func(s corev1.PodStatus) bool {
		return s.Phase == corev1.PodRunning && s.ContainerStatuses[0].Ready && s.ContainerStatuses[1].State.Waiting != nil
	}
	await(t, told, half, inPhase(corev1.PodRunning))
	close(n.end)
	await(t, told, func(s corev1.PodStatus) bool { return s.ContainerStatuses[0].State.Terminated != nil }, inPhase(corev1.PodRunning))
	p.SandboxGone("sb") // which is told as well, though the config map is still missing
	if s := await(t, told, inPhase(corev1.PodFailed), inPhase(corev1.PodRunning)); s.Reason != "SandboxFailed" {
		t.Errorf("it failed as %+v", s)
	}
}

// A container that can't be started says so for itself.
func TestR6_AContainersErrorIsItsOwn(t *testing.T) {
	t.Parallel()
	p, told := started(t, &node{end: make(chan struct{})})
	pod := &pod{uid: "uid", wake: make(chan struct{}, 1), api: needy("one", "two"), sandbox: mine()}
	pod.containers = containersOf(pod.api)
	p.follow(pod, pod.containers[0], session("one"))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() { done <- p.startContainer(ctx, pod, pod.containers[1], nil) }()
	s := await(t, told, func(corev1.PodStatus) bool { return true }, nil)
	waiting := s.ContainerStatuses[1].State.Waiting
	if s.Phase != corev1.PodRunning || s.ContainerStatuses[0].State.Running == nil || waiting == nil || waiting.Reason != "CreateContainerError" || !strings.Contains(waiting.Message, "not today") {
		t.Errorf("told of %+v", s)
	}
	stop()
	if <-done {
		t.Error("it started")
	}
}

// One failed call makes nothing of a pod that runs; one of which there is nothing waits.
func TestR6_AFailedCallStopsNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		phase  corev1.PodPhase
		sb     *nodeapi.Sandbox
		synced bool
		want   corev1.PodPhase
	}{
		"runs":              {corev1.PodRunning, mine(), true, corev1.PodRunning},
		"ran, node unheard": {corev1.PodRunning, nil, false, corev1.PodRunning},
		"ran, is gone":      {corev1.PodRunning, nil, true, corev1.PodPending},
		"is new":            {corev1.PodPending, nil, true, corev1.PodPending},
	} {
		list, _ := lister(t)
		p := New(Config{Warmups: 1, Lister: list, Events: record.NewFakeRecorder(1), Log: slog.New(slog.DiscardHandler)})
		p.synced = c.synced
		pod := &pod{api: needy("main"), sandbox: c.sb, status: corev1.PodStatus{Phase: c.phase}}
		if p.notYet(t.Context(), pod, "ContainerCreating", os.ErrDeadlineExceeded); pod.status.Phase != c.want {
			t.Errorf("%s: it is %s", name, pod.status.Phase)
		}
	}
}
