package replicasets

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/sandbox"
)

// cluster is the part of Kubernetes that keeps ReplicaSets.
type cluster struct {
	mu   sync.Mutex
	sets map[string]*replicaSet
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	const path = "/apis/apps/v1/namespaces/pools/replicasets"
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, path), "/")
	if !strings.HasPrefix(r.URL.Path, path) || r.Header.Get("Authorization") != "Bearer secret" {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	var out any
	switch r.Method {
	case http.MethodGet:
		var all list
		for _, rs := range c.sets {
			if r.URL.Query().Get("labelSelector") == labelCluster+"="+rs.Metadata.Labels[labelCluster] {
				all.Items = append(all.Items, rs)
			}
		}
		out = all
	case http.MethodPatch:
		rs := &replicaSet{}
		if err := json.NewDecoder(r.Body).Decode(rs); err != nil || r.Header.Get("Content-Type") != "application/apply-patch+yaml" || r.URL.Query().Get("fieldManager") == "" {
			http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
			return
		}
		if old := c.sets[name]; old != nil {
			rs.Status, rs.Metadata.CreationTimestamp = old.Status, old.Metadata.CreationTimestamp
		} else {
			rs.Metadata.CreationTimestamp = time.Now()
		}
		c.sets[name], out = rs, rs
	case http.MethodDelete:
		if c.sets[name] == nil {
			http.Error(w, "not found", http.StatusNotFound)
			return
		}
		delete(c.sets, name)
		out = map[string]string{"status": "Success"}
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (c *cluster) names() (all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.sets {
		all = append(all, name)
	}
	return all
}

// kubeconfigOf writes how to reach a server with a token in a file, as a person has it.
func kubeconfigOf(t *testing.T, srv *httptest.Server) string {
	t.Helper()
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	for name, content := range map[string]string{
		"ca.crt": string(ca), "token": "secret\n",
		"config": fmt.Sprintf("current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nclusters: [{name: k, cluster: {server: %q, certificate-authority: ca.crt}}]\nusers: [{name: u, user: {tokenFile: %q}}]\n", srv.URL, filepath.Join(dir, "token")),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config")
}

func keeper(t *testing.T) (*Keeper, *cluster) {
	t.Helper()
	c := &cluster{sets: map[string]*replicaSet{}}
	srv := httptest.NewTLSServer(c)
	t.Cleanup(srv.Close)
	k, err := New(Config{Kubeconfig: kubeconfigOf(t, srv), Namespace: "pools", Cluster: "local", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return k, c
}

func template(key string, id uuid.UUID) *templates.Template {
	team := uuid.New()
	return &templates.Template{
		Row: store.Template{ID: id, TeamID: &team}, PoolKey: id.String() + ":" + key, MinIdle: 2, MaxIdle: 4,
		Slot: sandbox.Spec{Image: "example.com/a@sha256:0", MemoryBytes: 512 << 20, CPUMillis: 1500, RuntimeClass: sandbox.GVisor, Env: map[string]string{"A": "b"}},
	}
}

func TestAReplicaSetIsItsPool(t *testing.T) {
	t.Parallel()
	k, _ := keeper(t)
	tpl := template("v1", uuid.New())
	rs, err := k.replicaSet(tpl)
	if err != nil {
		t.Fatal(err)
	}
	pod := rs.Spec.Template
	for key, value := range rs.Spec.Selector.MatchLabels {
		if pod.Metadata.Labels[key] != value {
			t.Errorf("its own pods do not match label %s", key)
		}
	}
	if rs.Spec.Selector.MatchLabels[labelState] != free {
		t.Error("a claimed pod would still be one of its own")
	}
	var spec sandbox.Spec
	if err := json.Unmarshal([]byte(pod.Metadata.Annotations[annotationSpec]), &spec); err != nil || spec.Hash() != tpl.Slot.Hash() {
		t.Errorf("the pods' spec is %+v: %v", spec, err)
	}
	if c := pod.Spec.Containers[0]; c.Resources.Limits["cpu"] != "1500m" || c.Resources.Limits["memory"] != "536870912" || c.Image != spec.Image {
		t.Errorf("%+v", c)
	}
	if pod.Spec.GraceSeconds != 600 {
		t.Errorf("the pause of an evicted one may take %d s", pod.Spec.GraceSeconds)
	}
	for _, of := range pod.Spec.Tolerations[1:] { // while nobody has claimed it
		if of.Effect != "NoExecute" || of.Seconds == nil || *of.Seconds != 60 {
			t.Errorf("a silent node is tolerated by %+v", of)
		}
	}
	if pod.Metadata.Annotations[annotationPool] != tpl.PoolKey || len(rs.Metadata.Name) > 63 {
		t.Errorf("pool %q, name %q", pod.Metadata.Annotations[annotationPool], rs.Metadata.Name)
	}
}

// apply tells Kubernetes of templates alone, as look does with a catalogue.
func apply(t *testing.T, k *Keeper, now time.Time, all ...*templates.Template) {
	t.Helper()
	if !k.keep(t.Context(), all, now) {
		t.Fatal("Kubernetes was not told")
	}
}

func TestPoolsRollOut(t *testing.T) {
	t.Parallel()
	k, c := keeper(t)
	id, now := uuid.New(), time.Now()
	old, new := template("v1", id), template("v2", id)
	c.sets["foreign"] = &replicaSet{Metadata: meta{Name: "foreign", Labels: map[string]string{labelCluster: "another"}}}
	apply(t, k, now, old, template("x", uuid.New()))
	if got := c.names(); len(got) != 3 {
		t.Fatalf("there are %v", got)
	}
	apply(t, k, now, new)
	if got := c.names(); len(got) != 3 { // the other template's has gone
		t.Fatalf("while the new one is not ready there are %v", got)
	}
	c.mu.Lock()
	c.sets[id.String()+"-v2"].Status.ReadyReplicas = 2
	c.mu.Unlock()
	apply(t, k, now, new)
	if got := c.names(); len(got) != 2 || c.sets[id.String()+"-v1"] != nil || c.sets["foreign"] == nil {
		t.Fatalf("when it is ready there are %v", got)
	}
}

// A successor that never gets ready does not keep the old one for ever.
func TestARolloutEnds(t *testing.T) {
	t.Parallel()
	k, c := keeper(t)
	id := uuid.New()
	apply(t, k, time.Now(), template("v1", id))
	apply(t, k, time.Now().Add(2*rollback), template("v2", id))
	if got := c.names(); len(got) != 1 {
		t.Fatalf("there are %v", got)
	}
}

// G09: what could not be told is no reason to remove anything.
func TestG09_NothingIsRemovedAfterAFailure(t *testing.T) {
	t.Parallel()
	k, c := keeper(t)
	apply(t, k, time.Now(), template("v1", uuid.New()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if k.keep(ctx, nil, time.Now()) {
		t.Error("it says that all is well")
	}
	if got := c.names(); len(got) != 1 {
		t.Fatalf("there are %v", got)
	}
}

func TestKubeconfigRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "", "broken": "{", "user": "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := connect(path); err == nil {
			t.Errorf("%s is a kubeconfig", name)
		}
	}
}
