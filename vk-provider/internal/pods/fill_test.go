package pods

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"s0.run/internal/files"
	"s0.run/internal/files/serve"
	"s0.run/internal/files/watch"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi/answer"
	"s0.run/vk-provider/internal/noded"
)

// disk is a noded whose one sandbox has this machine's files, as procd serves them.
func disk(t *testing.T) *noded.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "s0p-") // short, for a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "n"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, h := range serve.Routes(files.Tree{}, watch.NewShared(1, 1)) {
		mux.Handle(pattern, answer.Serve(h, func(_ *http.Request, err error) { t.Error(err) }))
	}
	server := &http.Server{Handler: http.StripPrefix(strings.TrimSuffix(nodeapi.ProcPrefix, "/")+"/sb", mux), Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return noded.New(filepath.Join(dir, "n"), slog.New(slog.DiscardHandler))
}

func mode(m int32) *int32 { return &m }

// mounting is a pod that mounts a config map of its own, a projection of it and a secret,
// and one emptyDir at two paths.
func mounting(dir string) *corev1.Pod {
	named := corev1.LocalObjectReference{Name: "c"}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid", Namespace: "ns", Name: "p", Labels: map[string]string{"l": "one"}}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{
			{Name: "a", VolumeMounts: []corev1.VolumeMount{{Name: "conf", MountPath: dir + "/conf"}, {Name: "all", MountPath: dir + "/all"}, {Name: "work", MountPath: dir + "/work"}}},
			{Name: "b", VolumeMounts: []corev1.VolumeMount{{Name: "work", MountPath: dir + "/other"}, {Name: "conf", MountPath: dir + "/conf"}}},
		},
		Volumes: []corev1.Volume{
			{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named}}},
			{Name: "work", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "all", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: mode(0o440), Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: named, Items: []corev1.KeyToPath{{Key: "a", Path: "deep/er/a", Mode: mode(0o700)}}}},
				{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
			}}}},
		},
	}}
}

// shows compares what is at paths with what should be: its mode and its content.
func shows(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	for name, what := range want {
		info, err := os.Stat(filepath.Join(dir, name))
		got := "nothing"
		if err == nil {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			got = fmt.Sprintf("%o %s", info.Mode().Perm(), b)
		}
		if got != what {
			t.Errorf("%s is %q, not %q", name, got, what)
		}
	}
}

// Files of volumes have their modes, follow what they are made of, all of a volume at one
// moment, and stay what they are while that is missing.
func TestVolumesFollowWhatTheyAreMadeOf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Data: map[string]string{"a": "1", "b": "1"}}
	kube := fake.NewClientset(cm, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"key": []byte("x")}})
	node := disk(t)
	p := New(Config{Warmups: 1, Node: node, Kube: kube, Log: slog.New(slog.DiscardHandler)})
	made := func() *pod {
		return &pod{api: mounting(dir), sandbox: &nodeapi.Sandbox{Id: "sb", State: "running"}, published: map[string]string{}}
	}
	pod := made()
	if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil { // of the image
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "all", "deep", "er", "a"), 0o700); err != nil { // of before there were versions
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "all", "deep", "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mounts, err := p.resolver(t.Context(), pod).mounts()
	if err == nil {
		err = p.place(t.Context(), pod, mounts)
	}
	if err != nil {
		t.Fatal(err)
	}
	shows(t, dir, map[string]string{"all/deep/f": "nothing"})
	shows(t, dir, map[string]string{"conf/a": "644 1", "conf/b": "644 1", "all/deep/er/a": "700 1", "all/key": "440 x", "all/labels": "440 l=\"one\"\n"})
	if err := os.WriteFile(filepath.Join(dir, "work", "f"), []byte("shared"), 0o600); err != nil {
		t.Fatal(err)
	}
	shows(t, dir, map[string]string{"other/f": "600 shared"})
	cm.Data = map[string]string{"a": "2", "c": "2"}
	if _, err := kube.CoreV1().ConfigMaps("ns").Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.api = pod.api.DeepCopy()
	pod.api.Labels["l"] = "two"
	again := made() // as after a restart, when nothing is known of what was done
	again.api = pod.api
	for name, refresh := range map[string]func() error{"first": func() error { return p.refresh(t.Context(), pod) }, "again": func() error { return p.refresh(t.Context(), again) }} {
		if err := refresh(); err != nil {
			t.Fatal(name, err)
		}
		shows(t, dir, map[string]string{"conf/a": "644 2", "conf/b": "nothing", "conf/c": "644 2", "all/deep/er/a": "700 2", "all/labels": "440 l=\"two\"\n", "other/f": "600 shared"})
	}
	if left, err := os.ReadDir(filepath.Join(dir, "conf")); err != nil || len(left) != 4 { // the version, ..data, a and c
		t.Errorf("left are %v, %v", left, err)
	}
	if err := kube.CoreV1().ConfigMaps("ns").Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.refresh(t.Context(), pod); err == nil {
		t.Error("what is missing is no error")
	}
	shows(t, dir, map[string]string{"conf/a": "644 2", "conf/c": "644 2"})
}

// Between two versions there is no moment at which a name leads nowhere, or to another
// version than its neighbour's.
func TestAVolumeChangesAtOneMoment(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "v")
	p := New(Config{Warmups: 1, Node: disk(t), Log: slog.New(slog.DiscardHandler)})
	pod := &pod{published: map[string]string{}}
	put := func(n int) {
		f := file{content: fmt.Sprint(n), mode: defaultMode}
		if err := p.publish(t.Context(), pod, &nodeapi.Sandbox{Id: "sb"}, dir, map[string]file{"a": f, "b": f}); err != nil {
			t.Fatal(err)
		}
	}
	put(0)
	done, torn := make(chan struct{}), make(chan error, 1)
	stop := sync.OnceFunc(func() { close(done) })
	defer stop()
	go func() {
		defer close(torn)
		for last := ""; ; {
			select {
			case <-done:
				return
			default:
			}
			link, err := os.Readlink(filepath.Join(dir, dataLink))
			if err != nil {
				torn <- err
				return
			}
			if link == last {
				continue
			}
			last = link
			a, aerr := os.ReadFile(filepath.Join(dir, link, "a"))
			b, berr := os.ReadFile(filepath.Join(dir, link, "b"))
			if os.IsNotExist(aerr) || os.IsNotExist(berr) { // replaced by now
				continue
			}
			if aerr != nil || berr != nil || string(a) != string(b) {
				torn <- fmt.Errorf("%q %v, %q %v", a, aerr, b, berr)
				return
			}
		}
	}()
	for n := range 50 {
		put(n + 1)
	}
	stop()
	if err := <-torn; err != nil {
		t.Error(err)
	}
	shows(t, dir, map[string]string{"a": "644 50", "b": "644 50"})
	if info, err := os.Lstat(filepath.Join(dir, "a")); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("its name is no link: %v", err)
	}
}
