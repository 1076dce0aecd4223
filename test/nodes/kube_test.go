package nodes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"s0.run/api"
	"s0.run/internal/s0test/kubetest"
	"s0.run/internal/s0test/nodetest"
)

const (
	pools    = "s0-pools" // namespace
	kubePool = 3          // warm slots of the cluster
)

// A kubeCluster has nodes with everything that a node has, which are virtual nodes of a
// Kubernetes control plane, too. Pools are ReplicaSets.
type kubeCluster struct {
	*cluster
	kube  *kubetest.Cluster
	bin   string
	host  string // this machine's address for nodes
	image string
}

// startControlPlane starts a Kubernetes without anything of ours.
func startControlPlane(t *testing.T) *kubeCluster {
	t.Helper()
	k := &kubeCluster{kube: kubetest.New(t), bin: filepath.Dir(kubetest.Binary(t, "s0-vk"))}
	if out, err := k.kube.Kubectl(t.Context(), "create", "namespace", pools).CombinedOutput(); err != nil {
		t.Fatalf("kubectl: %v: %s", err, out)
	}
	k.host = fmt.Sprintf("10.203.%d.253", os.Getpid()%256)
	if out, err := exec.Command("ip", "addr", "add", k.host+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip addr add: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", k.host+"/32", "dev", "lo").Run() })
	return k
}

func startKubeCluster(t *testing.T) *kubeCluster {
	t.Helper()
	k := startControlPlane(t)
	images := nodetest.NewRegistry(t)
	ref := images.Pinned(t, images.Push(t, "default", nodetest.Rootfs(t), v1.Config{}))
	registry := k.shown(t, images.Host)
	k.image = strings.Replace(ref, images.Host, registry, 1)
	k.cluster = startCluster(t, func(cfg *api.Config) {
		cfg.PoolNamespace, cfg.Kubeconfig, cfg.PoolMin, cfg.PoolMax = pools, k.kube.Admin(), kubePool, kubePool
		cfg.DefaultImage, cfg.ImageRegistries = k.image, []string{registry}
	})
	return k
}

// shown lets nodes reach what listens on the loopback, and answers where.
func (k *kubeCluster) shown(t *testing.T, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(k.host, "0"))
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
			go splice(c, to) // ends with its connection, at the latest with its node's kernel's patience
		}
	}()
	return l.Addr().String()
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

// kubeconfig is one with which nodes reach the control plane.
func (k *kubeCluster) kubeconfig(name string) string {
	k.Helper()
	path, err := k.kube.Kubeconfig("vk-"+name, "system:masters") // what it needs of that is tried elsewhere
	k.must(err)
	b, err := os.ReadFile(path)
	k.must(err)
	var config map[string]any
	k.must(json.Unmarshal(b, &config))
	of := config["clusters"].([]any)[0].(map[string]any)["cluster"].(map[string]any)
	of["server"], of["tls-server-name"] = "https://"+k.shown(k.T, strings.TrimPrefix(k.kube.URL, "https://")), "localhost"
	b, err = json.Marshal(config)
	k.must(err)
	k.must(os.WriteFile(path, b, 0o600))
	return path
}

// A kubeNode is containerd, netd, noded and s0-vk in a network namespace.
type kubeNode struct {
	*node
	base  string // everything of it is below
	bin   string
	progs []program
	cmds  []*exec.Cmd
}

type program struct {
	name string
	args []string
}

func (k *kubeCluster) add(i int, name string) *kubeNode {
	k.Helper()
	n := &kubeNode{node: k.place(i, name), base: filepath.Join(k.dir, name), bin: k.bin}
	data, run := n.base+"/d", n.base+"/r"
	n.socket = run + "/api/node.sock"
	k.must(os.MkdirAll(run+"/api", 0o711))
	for _, dir := range []string{k.dir, n.base} { // gofers cross them
		k.must(os.Chmod(dir, 0o711))
	}
	group := "/" + filepath.Base(k.dir) + name
	k.Cleanup(func() {
		out, err := exec.Command(k.s0d, "reset", "--yes", "--data-dir="+data, "--run-dir="+run, "--cgroup-parent="+group).CombinedOutput()
		if err != nil {
			k.Errorf("s0d reset: %v: %s", err, out)
		}
	})
	k.Cleanup(n.kill)
	for dir, files := range map[string][]string{data + "/bin": {"containerd-shim-s0-v1", "runsc"}, data + "/procd": {"procd"}} {
		for _, file := range files {
			if out, err := exec.Command(k.s0d, "install", "--mkdir", filepath.Join(k.bin, file), dir).CombinedOutput(); err != nil {
				k.Fatalf("s0d install: %v: %s", err, out)
			}
		}
	}
	sandboxes := []string{"--sandbox-cidr=10.187.0.0/16", "--sandbox-cidr6=fd87::/64"}
	registry, _, _ := strings.Cut(k.image, "/")
	n.progs = []program{
		{"containerd", []string{k.s0d, "containerd", "--binary=" + filepath.Join(k.bin, "containerd"), "--shim-dir=" + data + "/bin", "--root=" + data + "/containerd", "--state=" + run + "/containerd", "--shim-cgroup="}},
		{"noded", append([]string{
			k.s0d, "noded", "--node=" + name, "--cluster=" + clusterName, "--data-dir=" + data + "/noded", "--run-dir=" + run + "/noded", "--socket=" + n.socket, "--admin-socket=" + run + "/noded-admin.sock",
			"--containerd-socket=" + run + "/containerd/containerd.sock", "--netd-socket=" + run + "/netd.sock", "--runsc=" + data + "/bin/runsc", "--procd-dir=" + data + "/procd", "--cgroup-parent=" + group,
			"--max-sandboxes=30", "--image-registries=" + registry, "--plain-http-registries=" + registry, "--object-store=file://" + filepath.Join(k.dir, "store"), "--object-key-file=" + filepath.Join(k.dir, "object.key"),
			"--listen=:30083", "--advertise=" + net.JoinHostPort(n.inside, "30083"), "--control-plane=" + net.JoinHostPort(n.outside, k.joining), "--control-plane-pin=" + k.pin, "--join-token-file=" + filepath.Join(k.dir, name+".token"),
		}, sandboxes...)},
		{"netd", append([]string{k.s0d, "netd", "--netns=" + run + "/noded/netns/_dataplane", "--run-dir=" + run + "/netd", "--socket=" + run + "/netd.sock", "--admin-socket=" + run + "/netd-admin.sock"}, sandboxes...)},
		k.virtual(n.node, n.socket, run+"/vk.sock"),
	}
	n.admit()
	n.start()
	return n
}

// virtual is the program that shows a node to Kubernetes.
func (k *kubeCluster) virtual(n *node, socket, admin string) program {
	k.Helper()
	k.ip("-n", n.netns, "route", "add", "default", "via", n.outside)
	return program{"vk", []string{
		filepath.Join(k.bin, "s0-vk"), "--node-socket=" + socket, "--admin-socket=" + admin, "--kubeconfig=" + k.kubeconfig(n.name), "--node-name=" + n.name, "--address=" + n.inside, "--listen=" + net.JoinHostPort(n.inside, "10350"),
		"--client-ca=" + k.kube.CAFile(), "--pool-namespace=" + pools, "--cpu-millis=100000000", "--memory-bytes=" + strconv.Itoa(1<<50),
	}}
}

// start starts the node's programs. What needs another waits for it.
func (n *kubeNode) start() {
	n.c.Helper()
	for _, p := range n.progs {
		log, err := os.OpenFile(filepath.Join(n.c.dir, n.name+"-"+p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		n.c.must(err)
		cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + n.netns, "--"}, p.args...)...)
		cmd.Env = []string{"PATH=" + n.base + "/d/bin:" + n.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		n.c.must(cmd.Start())
		n.cmds = append(n.cmds, cmd)
		log.Close()
	}
}

// kill ends the node as a power cut would: its sandboxes, too.
func (n *kubeNode) kill() {
	for _, cmd := range n.cmds {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	n.cmds = nil
	for late := time.Now().Add(patience); ; time.Sleep(look) {
		all := n.processes()
		if len(all) == 0 || time.Now().After(late) {
			return
		}
		for _, pid := range all {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// processes are those that were started with a path of the node's.
func (n *kubeNode) processes() (all []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, err := os.ReadFile(path)
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && perr == nil && pid != os.Getpid() && bytes.Contains(b, []byte(n.base+"/")) {
			all = append(all, pid)
		}
	}
	return all
}

// kubectl answers what it printed, and fails the test when it does.
func (k *kubeCluster) kubectl(args ...string) string {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := k.kube.Kubectl(ctx, args...).CombinedOutput()
	if err != nil {
		k.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kubePod is what these tests look at of a pod.
type kubePod struct {
	Metadata struct {
		Name, UID         string
		DeletionTimestamp string
	}
	Spec   struct{ NodeName string }
	Status struct {
		Conditions []struct{ Type, Status string }
	}
}

func (p kubePod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// pods are those of pools that a selector finds.
func (k *kubeCluster) pods(selector string) []kubePod {
	k.Helper()
	var list struct{ Items []kubePod }
	k.must(json.Unmarshal([]byte(k.kubectl("get", "pods", "-n", pools, "-l", selector, "-o", "json")), &list))
	return list.Items
}

// podOf waits for the one pod of a sandbox, which is ready on a node.
func (k *kubeCluster) podOf(id, node string) (pod kubePod) {
	k.Helper()
	k.until("the pod of "+id+" on "+node, func() bool {
		all := k.pods("s0.run/sandbox=" + id)
		if len(all) == 1 {
			pod = all[0]
		}
		return len(all) == 1 && pod.ready() && pod.Spec.NodeName == node
	})
	return pod
}

// freeAt waits until all of the pool's free pods are ready on nodes of these alone.
func (k *kubeCluster) freeAt(nodes ...string) {
	k.Helper()
	k.until("the pool on "+strings.Join(nodes, ", "), func() bool {
		ready := 0
		for _, p := range k.pods("s0.run/state=free") {
			if p.ready() && p.Metadata.DeletionTimestamp == "" && strings.Contains(strings.Join(nodes, " "), p.Spec.NodeName) {
				ready++
			}
		}
		return ready == kubePool
	})
}

// nodeReady waits until Kubernetes says of a node that it is ready, or that it is not.
func (k *kubeCluster) nodeReady(name string, ready bool) {
	k.Helper()
	k.until(fmt.Sprintf("%s is ready: %v", name, ready), func() bool {
		return (k.kubectl("get", "node", name, "--ignore-not-found", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`) == "True") == ready
	})
}

// claimed is a sandbox and the node that it is on, as soon as there is one.
func (k *kubeCluster) claimed() (id, node string) {
	k.Helper()
	var sb struct {
		ID string `json:"sandbox_id"`
	}
	k.until("a claim", func() bool {
		return k.call(http.MethodPost, "/api/v1/sandboxes", map[string]string{"template": "default"}, &sb) == http.StatusCreated
	})
	return sb.ID, strings.Fields(k.row(sb.ID))[1]
}

// claimedAt claims until a sandbox is on a node, from a slot that a pod stands for.
func (k *kubeCluster) claimedAt(name string) (id string) {
	k.Helper()
	k.until("a claim at "+name, func() bool {
		var at string
		if id, at = k.claimed(); at == name {
			return true
		}
		k.delete(id)
		k.until("the pool is full", func() bool { return k.freeCount() >= kubePool })
		return false
	})
	k.podOf(id, name)
	return id
}

func (k *kubeCluster) freeCount() (ready int) {
	k.Helper()
	for _, p := range k.pods("s0.run/state=free") {
		if p.ready() {
			ready++
		}
	}
	return ready
}

// run runs the image's program in a sandbox and answers what it printed.
func (k *kubeCluster) run(id string, args ...string) string {
	k.Helper()
	var done struct {
		Stdout   string `json:"stdout"`
		ExitCode *int   `json:"exit_code"`
	}
	in := map[string]any{"type": "cmd", "cmd": map[string]any{"command": append([]string{"/bin/probe"}, args...)}, "wait_until_done": true}
	k.until("a command", func() bool { // who was just started again may need a moment
		return k.call(http.MethodPost, "/api/v1/sandboxes/"+id+"/contexts", in, &done) < 300
	})
	return done.Stdout
}
