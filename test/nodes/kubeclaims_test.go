package nodes_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"s0.run/api"
)

// TestClaimsBesideManyPods measures claims over HTTP at a node with many pods, each of which
// stands for a warm slot: with Kubernetes attached, each when the pod of the last has been
// replaced; one after another, beside the replacing, which takes the machine's CPUs; and
// while nobody answers for Kubernetes.
func TestClaimsBesideManyPods(t *testing.T) {
	pods, _ := strconv.Atoi(os.Getenv("S0_KUBE_CLAIMS"))
	if pods == 0 {
		t.Skip("measures for minutes: make bench-kube")
	}
	const claims = 200
	k := startControlPlane(t)
	k.cluster = startCluster(t, func(cfg *api.Config) {
		cfg.PoolNamespace, cfg.Kubeconfig, cfg.PoolMin, cfg.PoolMax = pools, k.kube.Admin(), pods, pods
	})
	n := k.place(0, "n1")
	n.args = append(n.simulated(), "--max-sandboxes="+strconv.Itoa(4*pods))
	k.Cleanup(n.kill)
	n.admit()
	n.start()
	vk := &kubeNode{node: n, base: filepath.Join(k.dir, "vk"), bin: k.bin, progs: []program{k.virtual(n, n.socket, filepath.Join(k.dir, "vk.sock"))}}
	k.Cleanup(vk.kill)
	vk.start()
	refilled := func() { k.until("a slot for each pod", func() bool { return n.free() == pods }) }
	k.measure(n, "with Kubernetes at rest", claims, refilled)
	k.measure(n, "with Kubernetes", claims, func() {})
	refilled()
	k.kube.KillAPIServer()
	k.measure(n, "without", claims, func() {})
}

// measure claims one sandbox after another, each once the way is clear.
func (k *kubeCluster) measure(n *node, what string, claims int, clear func()) {
	k.Helper()
	took := make([]time.Duration, claims)
	for i := range took {
		clear()
		began := time.Now()
		status := k.call(http.MethodPost, "/api/v1/sandboxes", map[string]string{"template": "default"}, nil)
		if took[i] = time.Since(began); status != http.StatusCreated {
			k.Fatalf("a claim is answered with %d", status)
		}
	}
	slices.Sort(took)
	k.Logf("%s, %d slots free: %d claims, p50 %s, p95 %s, p99 %s", what, n.free(), claims, took[claims/2], took[claims*95/100], took[claims*99/100])
}
