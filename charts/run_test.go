package charts

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/freeport"
	"s0.run/internal/s0test/kubetest"
	"s0.run/internal/s0test/podtest"
)

// patience is for what must happen on a machine that does much else.
const patience = 3 * time.Minute

// host does for one test what kubelets would do for the chart's pods: it gives their
// programs the files of their volumes, expands what their arguments name, and starts them,
// as containers of their images or without a container around them.
type host struct {
	t       *testing.T
	dir     string
	bin     string
	images  string                       // what hack/docker/build.sh built; "": processes
	env     map[string]string            // what a kubelet tells containers
	secrets map[string]map[string][]byte // by name, then key
	replace *strings.Replacer            // of what two hosts would have of their own: ports, groups
	more    map[string][]string          // arguments, by container
	files   map[string][]string          // of the host, which containers see, too: by container
	started int
}

// mount is a directory of the host at a container's path.
type mount struct{ at, dir string }

// run starts a pod's containers, after its init containers have ended.
func (h *host) run(spec map[string]any) map[string]*program {
	h.t.Helper()
	volumes := map[string]string{}
	for _, v := range list(spec["volumes"]) {
		volumes[fmt.Sprint(at(v, "name"))] = h.volume(v, at(spec, "securityContext", "fsGroup"))
	}
	for _, c := range list(spec["initContainers"]) {
		p := h.start(spec, c.(map[string]any), volumes)
		<-p.done
		if p.err != nil {
			h.t.Fatalf("init container %v: %v: %s", at(c, "name"), p.err, p.said())
		}
	}
	all := map[string]*program{}
	for _, c := range list(spec["containers"]) {
		all[fmt.Sprint(at(c, "name"))] = h.start(spec, c.(map[string]any), volumes)
	}
	return all
}

// volume makes what a volume is on the host. What is not the host's own is a group's:
// that of a pod without one is root.
func (h *host) volume(v, group any) string {
	h.t.Helper()
	if path, ok := at(v, "hostPath", "path").(string); ok {
		if strings.HasPrefix(path, h.dir) {
			h.must(os.MkdirAll(path, 0o755))
		}
		if _, err := os.Stat(path); err == nil {
			return path
		} // else runtimes make an empty one, and this a directory of the test's
	}
	dir := filepath.Join(h.dir, "volumes", fmt.Sprint(at(v, "name")))
	h.must(os.MkdirAll(dir, 0o700))
	gid, _ := group.(float64)
	h.must(os.Chown(dir, 0, int(gid)))
	h.must(os.Chmod(dir, 0o770))
	if name, ok := at(v, "secret", "secretName").(string); ok {
		keys := list(at(v, "secret", "items"))
		for key, content := range h.secrets[name] {
			wanted := len(keys) == 0 || slices.ContainsFunc(keys, func(k any) bool { return at(k, "key") == key })
			if wanted {
				h.must(os.WriteFile(filepath.Join(dir, key), content, 0o440))
				h.must(os.Chown(filepath.Join(dir, key), 0, int(gid)))
			}
		}
		if h.secrets[name] == nil && at(v, "secret", "optional") != true {
			h.t.Fatalf("there is no secret %s", name)
		}
	}
	return dir
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

var variable = regexp.MustCompile(`\$\(([A-Z0-9_]+)\)`)

// start starts a container's program: as a process of its own, where there are no images.
func (h *host) start(spec, c map[string]any, volumes map[string]string) *program {
	h.t.Helper()
	if h.images != "" {
		return h.contain(spec, c, volumes)
	}
	name := fmt.Sprint(c["name"])
	mounts := []mount{{"/usr/local/bin", h.bin}}
	for _, m := range list(c["volumeMounts"]) {
		mounts = append(mounts, mount{fmt.Sprint(at(m, "mountPath")), volumes[fmt.Sprint(at(m, "name"))]})
	}
	slices.SortFunc(mounts, func(a, b mount) int { return len(b.at) - len(a.at) })
	var args []string
	for _, a := range append(list(c["command"]), list(c["args"])...) {
		args = append(args, h.argument(fmt.Sprint(a), mounts))
	}
	if c["command"] == nil { // the image's entry point
		program := "s0d"
		if name == "vk" {
			program = "s0-vk"
		}
		args = append([]string{program}, args...)
	}
	return h.exec(name, append(args, h.more[name]...))
}

// argument is what an argument is on the host.
func (h *host) argument(a string, mounts []mount) string {
	h.t.Helper()
	a = variable.ReplaceAllStringFunc(a, func(v string) string {
		value, ok := h.env[v[2:len(v)-1]]
		if !ok {
			h.t.Fatalf("argument %q: nobody tells containers what %s is", a, v)
		}
		return value
	})
	flag, value, found := strings.Cut(a, "=")
	if !found {
		flag, value = "", a
	} else {
		flag += "="
	}
	for _, m := range mounts {
		if value == m.at || strings.HasPrefix(value, m.at+"/") {
			value = m.dir + value[len(m.at):]
			break
		}
	}
	return h.replace.Replace(flag + value)
}

// until waits for something to be so.
func until(t *testing.T, what string, is func() error) {
	t.Helper()
	deadline := time.After(patience)
	for {
		err := is()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ask is an answer's error.
func ask[T any](_ T, err error) error { return err }

// images is a registry of the default template's image, from the layout that `make images` made.
func images(t *testing.T) (address, ref string) {
	t.Helper()
	layout := filepath.Join("..", "build", "images", "default")
	var index struct {
		Manifests []struct {
			MediaType string `json:"mediaType"`
			Digest    string `json:"digest"`
		} `json:"manifests"`
	}
	b, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil || len(index.Manifests) != 1 {
		t.Fatalf("the template's image is not built (make images): %v", err)
	}
	m := index.Manifests[0]
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(http.ResponseWriter, *http.Request) {})
	blob := func(w http.ResponseWriter, r *http.Request) {
		algorithm, digest, _ := strings.Cut(r.PathValue("digest"), ":")
		w.Header().Set("Docker-Content-Digest", r.PathValue("digest"))
		if w.Header().Set("Content-Type", "application/octet-stream"); r.PathValue("digest") == m.Digest {
			w.Header().Set("Content-Type", m.MediaType)
		}
		http.ServeFile(w, r, filepath.Join(layout, "blobs", filepath.Base(algorithm), filepath.Base(digest)))
	}
	mux.HandleFunc("GET /v2/default/manifests/{digest}", blob)
	mux.HandleFunc("GET /v2/default/blobs/{digest}", blob)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	address = strings.TrimPrefix(srv.URL, "http://")
	return address, address + "/default@" + m.Digest
}

func freePort(t *testing.T) string {
	t.Helper()
	port, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(port)
}

// stack is what the chart makes, running.
type stack struct {
	*host
	cluster *kubetest.Cluster
	api     string
	apis    map[string]*program
	node    map[string]*program
	spec    map[string]any // of the node's pod
	secret  map[string][]byte
}

// up applies what the chart makes to a control plane and starts its pods' programs, with
// the rights that it gives their accounts.
func up(t *testing.T) *stack {
	t.Helper()
	s0test.NeedRoot(t)
	dir, err := os.MkdirTemp("", "s0c-") // short, for sockets live in it
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	group := "/" + filepath.Base(dir)
	bin := filepath.Dir(kubetest.Binary(t, "s0d"))
	h := &host{t: t, dir: dir, bin: bin, secrets: map[string]map[string][]byte{}, more: map[string][]string{}, files: map[string][]string{}}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if h.images = os.Getenv("S0_IMAGES"); h.images != "" {
		podtest.Share(t, dir)
	}
	t.Cleanup(func() {
		out, err := exec.Command(filepath.Join(bin, "s0d"), "reset", "--yes", "--data-dir="+dir+"/d", "--run-dir="+dir+"/r", "--cgroup-parent="+group).CombinedOutput()
		if err != nil {
			t.Errorf("s0d reset: %v: %s", err, out)
		}
	})
	s := &stack{host: h, cluster: kubetest.New(t)}
	registry, image := images(t)
	ports := map[string]string{}
	for _, name := range []string{"api", "join", "node", "kubelet"} {
		ports[name] = freePort(t)
	}
	s.api = "http://127.0.0.1:" + ports["api"]
	h.env = map[string]string{"NODE_NAME": "host", "HOST_IP": "127.0.0.1", "S0_API_NODES_SERVICE_HOST": "127.0.0.1"}
	h.replace = strings.NewReplacer(
		"--listen=:30080", "--listen=127.0.0.1:"+ports["api"], "--node-listen=:30082", "--node-listen=127.0.0.1:"+ports["join"], ":30082", ":"+ports["join"],
		"--listen=:30083", "--listen=127.0.0.1:"+ports["node"], ":30083", ":"+ports["node"], "--listen=:10350", "--listen=127.0.0.1:"+ports["kubelet"], "--cgroup-parent=/s0", "--cgroup-parent="+group,
		"--shim-cgroup=/s0-shims", "--shim-cgroup=", // which is for hosts of cgroup v2, and for containers
	)
	v := values(t, "minimal")
	v["cluster"] = "chart"
	v["database"] = map[string]any{"existingSecret": "db"}
	v["templates"] = map[string]any{"default": image}
	v["pools"] = map[string]any{"default": map[string]any{"min": 1, "max": 2}}
	v["images"].(map[string]any)["registries"] = []any{registry}
	v["node"] = map[string]any{
		"dataDir": dir + "/d", "runDir": dir + "/r", "sandboxCIDR": "10.187.0.0/16", "sandboxCIDR6": "fd87::/64", "maxSandboxes": 20,
		"extraArgs": map[string]any{"noded": []any{"--plain-http-registries=" + registry}},
	}
	database := s0test.Postgres(t)
	h.secrets["db"] = map[string][]byte{"url": []byte(database)}
	h.files["api"] = []string{socketOf(database)}
	s.install(v)
	return s
}

// install is what an operator does, in the order of docs/KUBERNETES.md.
func (s *stack) install(v map[string]any) {
	t := s.t
	t.Helper()
	authority := filepath.Join(s.dir, "authority")
	s.s0d("nodes", "pin", authority)
	s.secrets["s0-authority"] = map[string][]byte{}
	for _, name := range []string{"ca.key", "ca.crt"} {
		b, err := os.ReadFile(filepath.Join(authority, name))
		s.must(err)
		s.secrets["s0-authority"][name] = b
	}
	s.kubectl("", "create", "namespace", namespace)
	var deployment, daemons object
	for _, o := range rendered(t, v) {
		switch o.kind() {
		case "Deployment":
			deployment = o
		case "DaemonSet":
			daemons = o
		case "Secret":
			s.secrets[o.name()] = decoded(t, o)
		}
		if o.kind() != "Deployment" && o.kind() != "DaemonSet" { // whose pods we run
			s.kubectl(manifest(t, o), applying(o)...)
		}
	}
	s.secret = s.secrets["s0-keys"]
	for container, account := range map[string]string{"api": "s0-api", "vk": "s0-node"} {
		kubeconfig, err := s.cluster.Kubeconfig("system:serviceaccount:"+namespace+":"+account, "system:serviceaccounts", "system:serviceaccounts:"+namespace, "system:authenticated")
		s.must(err)
		s.more[container] = []string{"--kubeconfig=" + kubeconfig}
		s.files[container] = append(s.files[container], kubeconfig)
	}
	s.more["vk"] = append(s.more["vk"], "--client-ca="+s.cluster.CAFile())
	s.files["vk"] = append(s.files["vk"], s.cluster.CAFile())
	s.apis = s.host.run(podSpec(deployment))
	until(t, "the API server", func() error { return ask(s.client("").Metadata(t.Context())) })
	s.secrets["s0-join"] = map[string][]byte{"token": s.s0d("nodes", "token", "--database-url-file", filepath.Join(s.dir, "volumes", "database", "url"))}
	s.spec = podSpec(daemons)
	s.node = s.host.run(s.spec)
}

func rendered(t *testing.T, v map[string]any) []object {
	t.Helper()
	files, err := render(load(t), v)
	if err != nil {
		t.Fatal(err)
	}
	return parsed(t, files)
}

func decoded(t *testing.T, secret object) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	data, _ := secret["data"].(map[string]any)
	for key, value := range data {
		b, err := base64.StdEncoding.DecodeString(fmt.Sprint(value))
		if err != nil {
			t.Fatalf("secret %s, %s: %v", secret.name(), key, err)
		}
		all[key] = b
	}
	return all
}

func (s *stack) s0d(args ...string) []byte {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, "s0d"), args...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("s0d %v: %v: %s", args, err, problem.String())
	}
	return out
}

func (s *stack) kubectl(stdin string, args ...string) string {
	s.t.Helper()
	cmd := s.cluster.Kubectl(s.t.Context(), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("kubectl %v: %v: %s", args, err, out)
	}
	return string(out)
}

// client speaks to the API.
func (s *stack) client(token string) *client.Client {
	s.t.Helper()
	c, err := client.New(client.Config{BaseURL: s.api, Token: token})
	s.must(err)
	return c
}

// answers runs a command in a sandbox. Who was just started again may need a moment.
func (s *stack) answers(c *client.Client, id string) {
	s.t.Helper()
	until(s.t, "the sandbox's answer", func() error {
		ctx, cancel := context.WithTimeout(s.t.Context(), patience)
		defer cancel()
		wait := true
		res, err := c.CreateContext(ctx, id, client.CreateContextRequest{Type: "cmd", CMD: &client.CMDRequest{Command: []string{"sh", "-c", "echo it answers"}}, WaitUntilDone: &wait})
		if err == nil && (res.Stdout == nil || *res.Stdout != "it answers\n") {
			err = fmt.Errorf("it answered %+v", res)
		}
		return err
	})
}

// TestChartRuns starts every program of the chart as its pods would, against a real
// control plane: a node joins, a pool is filled as a ReplicaSet, a claim is answered, and
// the node's programs are killed and started again under its sandbox. They are processes,
// or containers of the images that S0_IMAGES is the directory of: make test-docker.
func TestChartRuns(t *testing.T) {
	if testing.Short() {
		t.Skip("needs root and a control plane: see make test-chart")
	}
	s := up(t)
	until(t, "a free slot", func() error {
		out, err := s.cluster.Kubectl(t.Context(), "get", "pods", "-n", "s0-pools", "-l", "s0.run/state=free", "-o", "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status} {.items[*].spec.nodeName}").CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "True host-s0" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	until(t, "the node's health", func() error { return s.probe(s.spec, s.node) })
	login, err := s.client("").Login(t.Context(), "admin@example.com", string(s.secret["admin-password"]))
	s.must(err)
	c := s.client(login.AccessToken)
	until(t, "the API server's readiness", func() error { return c.Ready(t.Context()) })
	sandbox, err := c.CreateSandbox(t.Context(), client.ClaimRequest{Template: "default"})
	s.must(err)
	s.answers(c, sandbox.SandboxID)
	for _, name := range s.killed() {
		s.node[name].stop(syscall.SIGKILL)
		s.node[name] = s.node[name].again()
	}
	s.answers(c, sandbox.SandboxID)
	s.must(c.DeleteSandbox(t.Context(), sandbox.SandboxID))
	s.apis["api"].stop(syscall.SIGTERM) // it would keep its pools
	s.kubectl("", "delete", "replicasets", "--all", "-n", "s0-pools")
	until(t, "the end of all slots", func() error {
		if out := s.kubectl("", "get", "pods", "-n", "s0-pools", "-o", "name"); out != "" {
			return fmt.Errorf("there are %s", out)
		}
		return nil
	})
}
