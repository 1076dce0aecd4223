package nodes_test

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
)

// TestX45_X47_KubernetesNodes is the life of a cluster of three nodes with real sandboxes
// under Kubernetes. Its parts build on each other.
func TestX45_X47_KubernetesNodes(t *testing.T) {
	if os.Getenv("S0_KUBE_NODES") == "" {
		t.Skip("takes minutes: make test-kube-nodes")
	}
	k := startKubeCluster(t)
	nodes := map[string]*kubeNode{}
	for i, name := range []string{"n1", "n2", "n3"} {
		nodes[name] = k.add(i, name)
	}
	for _, part := range []struct {
		name string
		run  func(map[string]*kubeNode)
	}{
		{"Spread", k.testSpread}, {"Drain", k.testDrain}, {"X45_X47_LostAndBack", k.testLost}, {"X47_GoneForGood", k.testGone},
	} {
		ok := t.Run(part.name, func(t *testing.T) {
			whole := k.T
			k.T = t
			defer func() { k.T = whole }()
			part.run(nodes)
		})
		if !ok {
			return
		}
	}
}

// Claims go to every node, and each is a pod where its sandbox is.
func (k *kubeCluster) testSpread(nodes map[string]*kubeNode) {
	for name := range nodes {
		k.nodeReady(name, true)
	}
	k.freeAt("n1", "n2", "n3")
	at := map[string]int{}
	var ids []string
	for len(at) < len(nodes) && len(ids) < 20 {
		k.until("the pool is full", func() bool { return k.freeCount() >= kubePool })
		id, node := k.claimed()
		at[node]++
		ids = append(ids, id)
		k.podOf(id, node)
	}
	k.Logf("claims: %v", at)
	if len(at) != len(nodes) {
		k.Errorf("of %d claims none went to some of the nodes: %v", len(ids), at)
	}
	for _, id := range ids {
		k.delete(id)
	}
	k.until("the end of the claimed pods", func() bool { return len(k.pods("s0.run/state=claimed")) == 0 })
}

// kubectl drain pauses what tenants have. It goes on elsewhere, and nothing new comes to
// the node before it is uncordoned.
func (k *kubeCluster) testDrain(nodes map[string]*kubeNode) {
	id := k.claimedAt("n3")
	k.run(id, "write", "/tmp/kept", "it is kept")
	k.kubectl("drain", "n3", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout="+patience.String())
	k.until("what ran is paused and stored", func() bool { return k.row(id) == "paused n3 stored" })
	if left := k.pods("s0.run/sandbox=" + id); len(left) != 0 {
		k.Errorf("its pod is there still: %+v", left)
	}
	k.freeAt("n1", "n2")
	for range 5 {
		other, node := k.claimed()
		if node == "n3" {
			k.Error("a cordoned node got a claim")
		}
		k.delete(other)
	}
	if node := k.resume(id); node == "n3" {
		k.Error("resumed at the cordoned node")
	}
	if got := k.run(id, "read", "/tmp/kept"); got != "it is kept" {
		k.Errorf("resumed elsewhere it has %q", got)
	}
	k.until("nothing of it is left at the drained node", func() bool { return nodes["n3"].has(id) == "" })
	k.kubectl("uncordon", "n3")
	k.delete(k.claimedAt("n3"))
	k.delete(id)
}

// X45, X47: one node dies at once, another one is cut off, from Kubernetes as from the API
// servers. What was stored goes on elsewhere, and the pool as well; claimed pods stay. When
// they are back, what they still have of the former ends, and what ran on goes on.
func (k *kubeCluster) testLost(nodes map[string]*kubeNode) {
	dead, cut := nodes["n1"], nodes["n2"]
	stored := map[string]string{"n1": k.claimedAt("n1"), "n2": k.claimedAt("n2")}
	for _, id := range stored {
		k.run(id, "write", "/tmp/kept", id)
		k.pause(id)
	}
	running := k.claimedAt("n2")
	k.run(running, "write", "/tmp/kept", "it ran on")
	pod := k.podOf(running, "n2")
	dead.kill()
	cut.cut(true)
	for name, id := range stored {
		if at := k.resume(id); at != "n3" {
			k.Errorf("what was stored by %s was resumed at %s", name, at)
		}
		if got := k.run(id, "read", "/tmp/kept"); got != id {
			k.Errorf("what was stored by %s has %q", name, got)
		}
	}
	if status := k.call(http.MethodGet, "/api/v1/sandboxes/"+running, nil, nil); status != http.StatusServiceUnavailable {
		k.Errorf("what nobody can tell about is answered with %d", status)
	}
	k.nodeReady("n1", false)
	k.nodeReady("n2", false)
	k.freeAt("n3") // its free slots on the others count no more
	if now := k.pods("s0.run/sandbox=" + running); len(now) != 1 || now[0].Metadata.UID != pod.Metadata.UID || now[0].Metadata.DeletionTimestamp != "" {
		k.Errorf("the silent node's claimed pod is %+v", now)
	}
	if id, node := k.claimed(); node != "n3" {
		k.Errorf("a claim went to %s", node)
	} else {
		k.delete(id)
	}

	cut.cut(false)
	k.nodeReady("n2", true)
	k.until("what went on elsewhere has ended at the node that is back", func() bool { return cut.has(stored["n2"]) == "" })
	if now := k.podOf(running, "n2"); now.Metadata.UID != pod.Metadata.UID {
		k.Error("what ran on is another pod")
	}
	if got := k.run(running, "read", "/tmp/kept"); got != "it ran on" || k.row(running) != "running n2" {
		k.Errorf("what ran on is %q and has %q", k.row(running), got)
	}
	if out := k.kubectl("exec", "-n", pools, pod.Metadata.Name, "--", "/bin/probe", "read", "/tmp/kept"); out != "it ran on" {
		k.Errorf("kubectl exec printed %q", out)
	}
	dead.start() // with its certificate: its token is used up
	k.nodeReady("n1", true)
	k.until("what went on elsewhere has ended at the node that was dead", func() bool { return dead.up() && dead.has(stored["n1"]) == "" })
	for name, id := range stored {
		k.until("the pod of what went on elsewhere goes", func() bool { return len(k.pods("s0.run/sandbox="+id)) == 0 })
		if row := k.row(id); row != "running n3" {
			k.Errorf("what was stored by %s is %q", name, row)
		}
		k.delete(id)
	}
	k.delete(running)
	k.delete(k.claimedAt("n1"))
}

// X47: a node is declared gone, to the cluster and to Kubernetes. Its sandboxes fail, or go
// on elsewhere, and its pods are no more.
func (k *kubeCluster) testGone(nodes map[string]*kubeNode) {
	running, stored := k.claimedAt("n1"), k.claimedAt("n1")
	k.pause(stored)
	nodes["n1"].kill()
	k.must(k.admin.Remove(context.Background(), "n1"))
	k.kubectl("delete", "node", "n1")
	k.until("what ran there has failed", func() bool { return k.row(running) == "failed n1" })
	if at := k.resume(stored); at == "n1" {
		k.Error("it was resumed at a node that is gone")
	}
	k.until("no pod is there", func() bool {
		for _, p := range k.pods("s0.run/pool") {
			if p.Spec.NodeName == "n1" {
				return false
			}
		}
		return true
	})
	k.freeAt("n2", "n3")
	if out := k.kubectl("get", "nodes", "-o", "name"); strings.Contains(out, "n1") {
		k.Errorf("the nodes are %s", out)
	}
	k.delete(running)
	k.delete(stored)
}
