package noded_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/nodetest"
	"s0.run/internal/sandbox"
	"s0.run/noded"
)

// machine is a private containerd with everything that a noded needs on it.
type machine struct {
	testing.TB
	ctd  *nodetest.Containerd
	cfg  noded.Config
	spec sandbox.Spec
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	ctd := nodetest.NewContainerd(t)
	m := &machine{TB: t, ctd: ctd}
	run := filepath.Join(ctd.Dir, "n")
	ctd.RunscRoot = filepath.Join(run, "runsc")
	t.Cleanup(m.removeInfrastructure)
	reg := nodetest.NewRegistry(t)
	ref := reg.Push(t, "test/probe:1", nodetest.Rootfs(t), v1.Config{Env: []string{"PATH=/bin"}})
	m.spec = sandbox.Spec{Image: ref, Env: map[string]string{"FROM": "template"}, MemoryBytes: 256 << 20, CPUMillis: 500, RuntimeClass: sandbox.GVisor}
	m.cfg = noded.Config{
		Node: "n1", Cluster: "test", DataDir: filepath.Join(ctd.Dir, "d"), RunDir: run,
		Socket: filepath.Join(run, "s"), AdminSocket: filepath.Join(run, "a"),
		ContainerdSocket: ctd.Address, ContainerdNamespace: nodetest.Namespace, Runsc: ctd.Runsc,
		ProcdDir: buildProcd(t, ctd.Dir), CgroupParent: ctd.CgroupParent, PlainHTTPRegistries: []string{reg.Host},
		Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return m
}

// removeInfrastructure removes what a noded makes once and keeps, or that a
// killed one could not remove.
func (m *machine) removeInfrastructure() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		groups, _ := filepath.Glob(filepath.Join(pattern, m.ctd.CgroupParent, "*"))
		for _, g := range groups {
			_ = os.Remove(g) // one with a sandbox in it is busy, and found by the check that follows
		}
	}
	path := filepath.Join(m.cfg.RunDir, "netns", "_dataplane")
	if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
		m.Errorf("data plane: %v", err)
	}
}

func buildProcd(t testing.TB, dir string) string {
	t.Helper()
	out := filepath.Join(dir, "procd")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(out, "procd"), "s0.run/cmd/procd")
	cmd.Dir = s0test.ModuleRoot(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building procd: %v: %s", err, b)
	}
	return out
}

// testLog shows a log with the test that failed.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// run starts a noded on the machine.
func (m *machine) run() *daemon {
	m.Helper()
	return run(m, m.cfg)
}

// present lists what is on the host because of sandboxes: what the runtime and
// the kernel hold, and the directories.
func (m *machine) present() []string {
	all := m.ctd.Present()
	for _, dir := range []string{filepath.Join(m.cfg.RunDir, "sandboxes"), filepath.Join(m.cfg.RunDir, "netns"), filepath.Join(m.cfg.DataDir, "sandboxes")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			all = append(all, "entry "+filepath.Join(dir, e.Name()))
		}
	}
	all = append(all, m.veths()...)
	all = append(all, m.objects()...)
	return slices.DeleteFunc(all, func(s string) bool {
		return strings.HasSuffix(s, "_dataplane") || strings.HasSuffix(s, "/bin/containerd") || strings.HasPrefix(s, "cgroup ") && strings.HasSuffix(s, m.scopeGroup())
	})
}

// scopeGroup is the one group that a noded keeps while it runs.
func (m *machine) scopeGroup() string {
	for _, s := range m.ctd.Present() {
		if rest, ok := strings.CutPrefix(s, "cgroup "); ok && filepath.Base(filepath.Dir(rest)) == filepath.Base(m.ctd.CgroupParent) {
			return filepath.Base(rest)
		}
	}
	return "-"
}

// veths lists the host ends in the data plane.
func (m *machine) veths() []string {
	out, err := exec.Command("nsenter", "--net="+filepath.Join(m.cfg.RunDir, "netns", "_dataplane"), "ip", "-o", "link", "show", "type", "veth").Output()
	if err != nil {
		return nil // there is no data plane yet
	}
	var all []string
	for line := range strings.Lines(string(out)) {
		all = append(all, "veth "+strings.Fields(line)[1])
	}
	return all
}

// objects lists containers and active snapshots.
func (m *machine) objects() []string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := m.ctd.Client(m)
	defer client.Close()
	var all []string
	containers, err := client.Containers(ctx)
	if err != nil {
		m.Fatal(err)
	}
	for _, c := range containers {
		all = append(all, "container "+c.ID())
	}
	return all
}

// gone waits until nothing of any sandbox is on the host.
func (m *machine) gone() {
	m.Helper()
	m.eventually("nothing left", func() error {
		if left := m.present(); len(left) > 0 {
			return fmt.Errorf("%s", strings.Join(left, "\n\t"))
		}
		return nil
	})
}

func (m *machine) eventually(what string, f func() error) {
	m.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			m.Fatalf("%s: not within %v: %v\n%s", what, patience, err, m.ctd.Log())
		}
	}
}

// contexts asks the sandbox's procd, through the proxy, for its contexts.
func (d *daemon) contexts(id string) error {
	req, err := http.NewRequestWithContext(d.ctx(), http.MethodGet, "http://node"+nodeapi.ProcPrefix+id+"/contexts", nil)
	if err != nil {
		return err
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var list struct {
		Contexts []json.RawMessage `json:"contexts"`
	}
	if err := json.Unmarshal(b, &list); err != nil || resp.StatusCode != http.StatusOK || list.Contexts == nil {
		return fmt.Errorf("status %d: %s (%v)", resp.StatusCode, b, err)
	}
	return nil
}

func (d *daemon) mustServe(id string) {
	d.t.Helper()
	if err := d.contexts(id); err != nil {
		d.t.Fatalf("%s does not serve: %v", id, err)
	}
}

// command starts a program in the sandbox and does not wait for it.
func (d *daemon) command(id string, argv ...string) {
	d.t.Helper()
	body, err := json.Marshal(procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: argv}})
	if err != nil {
		d.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(d.ctx(), http.MethodPost, "http://node"+nodeapi.ProcPrefix+id+procapi.PathContexts, bytes.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.http.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode >= 300 {
		d.t.Fatalf("starting %v: %d %s (%v)", argv, resp.StatusCode, b, err)
	}
}
