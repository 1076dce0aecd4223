package runtime

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
	"s0.run/noded/internal/images"
)

func testSpec(class sandbox.RuntimeClass, change func(*Container)) *specs.Spec {
	r := &Runtime{cfg: Config{Runsc: "/opt/runsc", RunscRoot: "/run/runsc"}}
	c := Container{
		ID:      "c-aaaaaaaaaaaaaaaaaaaaaaaaaa",
		SlotDir: "/slots/x", BinDir: "/opt/bin", NetNS: "/run/netns/x", CgroupPath: "/s0/x", OverlayDir: "/ov/x", Group: "g",
		Spec: sandbox.Spec{RuntimeClass: class, MemoryBytes: 256 << 20, CPUMillis: 500, Env: map[string]string{"B": "2", "A": "1"}},
	}
	if change != nil {
		change(&c)
	}
	return r.spec(c, images.Image{Env: []string{"A=image", "C=3"}})
}

// An image or a template can't reach anything of the spec but the environment.
func TestC02_SpecTakesOnlyEnvFromImage(t *testing.T) {
	t.Parallel()
	s := testSpec(sandbox.GVisor, nil)
	if got, want := strings.Join(s.Process.Env, " "), defaultPath+" A=1 C=3 B=2"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	with := (&Runtime{}).spec(Container{}, images.Image{Ref: "evil", Digest: "evil", ChainID: "evil"})
	raw, _ := json.Marshal(with)
	if strings.Contains(string(raw), "evil") {
		t.Errorf("the image chose more than the environment: %s", raw)
	}
}

func TestC05_SpecConfines(t *testing.T) {
	t.Parallel()
	for _, class := range []sandbox.RuntimeClass{sandbox.GVisor, sandbox.Kata, sandbox.Runc} {
		s := testSpec(class, nil)
		admin := slices.Contains(s.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
		if admin != (class == sandbox.GVisor) {
			t.Errorf("%s: CAP_SYS_ADMIN %v", class, admin)
		}
		if class == sandbox.Runc && (!s.Process.NoNewPrivileges || s.Linux.Seccomp == nil) {
			t.Error("runc: privileges can be gained, or there is no seccomp filter")
		}
		if class != sandbox.GVisor && len(s.Annotations) > 0 {
			t.Errorf("%s: annotations %v", class, s.Annotations)
		}
		if guest := slices.Contains(s.Process.Args, procapi.GuestFlag); guest != (class == sandbox.Kata) || s.Process.Args[0] != procapi.Binary {
			t.Errorf("%s: procd is started as %q", class, s.Process.Args)
		}
		kinds := map[specs.LinuxNamespaceType]string{}
		for _, ns := range s.Linux.Namespaces {
			kinds[ns.Type] = ns.Path
		}
		if len(kinds) != 5 || kinds[specs.NetworkNamespace] != "/run/netns/x" {
			t.Errorf("%s: namespaces %v", class, kinds)
		}
		if s.Process.Rlimits[0].Type != "RLIMIT_CORE" || s.Process.Rlimits[0].Hard != 0 {
			t.Errorf("%s: core dumps are on", class)
		}
		for _, m := range s.Mounts {
			if m.Type == "bind" && !slices.Contains(m.Options, "ro") {
				t.Errorf("%s: %s is bound writable", class, m.Destination)
			}
		}
	}
}

func TestC03_AnnotationsAreOurShims(t *testing.T) {
	t.Parallel()
	s := testSpec(sandbox.GVisor, func(c *Container) { c.Spec.DiskBytes = 1 << 30 })
	want := map[string]string{
		shimapi.RunscAnnotation: "/opt/runsc", shimapi.RootAnnotation: "/run/runsc", shimapi.GroupAnnotation: "g",
		shimapi.OverlayDirAnnotation: "/ov/x", shimapi.OverlaySizeAnnotation: "1073741824",
	}
	if len(s.Annotations) != len(want) {
		t.Errorf("annotations %v, want %v", s.Annotations, want)
	}
	for k, v := range want {
		if s.Annotations[k] != v {
			t.Errorf("%s = %q, want %q", k, s.Annotations[k], v)
		}
	}
}

func TestResources(t *testing.T) {
	t.Parallel()
	r := resources(sandbox.Spec{MemoryBytes: 1 << 30, CPUMillis: 1500})
	if *r.Memory.Limit != 1<<30 || *r.CPU.Quota != 150000 || *r.CPU.Period != 100000 || *r.CPU.Shares != 1536 || *r.Pids.Limit != defaultPids {
		t.Errorf("resources %+v %+v %+v", r.Memory, r.CPU, r.Pids)
	}
	if r := resources(sandbox.Spec{CPUMillis: 1}); *r.CPU.Quota != 1000 || *r.CPU.Shares != 2 {
		t.Errorf("least cpu: quota %d, shares %d", *r.CPU.Quota, *r.CPU.Shares)
	}
}

func TestRuntimeClasses(t *testing.T) {
	t.Parallel()
	r := &Runtime{}
	if _, err := r.runtimeName(sandbox.Runc); err == nil {
		t.Error("C01: runc is offered without the operator's consent")
	}
	if _, err := r.runtimeName(sandbox.Kata); err == nil {
		t.Error("kata is offered where there is no shim of it")
	}
	r.cfg.AllowRunc, r.cfg.Kata = true, true
	for class, want := range map[sandbox.RuntimeClass]string{
		sandbox.GVisor: "io.containerd.s0.v1", sandbox.Kata: "io.containerd.kata.v2", sandbox.Runc: "io.containerd.runc.v2",
	} {
		if got, err := r.runtimeName(class); err != nil || got != want {
			t.Errorf("%s: %q, %v", class, got, err)
		}
	}
}

func TestSightings(t *testing.T) {
	t.Parallel()
	const id = sandbox.ID("c-aaaaaaaaaaaaaaaaaaaaaaaaaa")
	s := newSightings()
	news := func(reason string) (bool, string) {
		e := Exit{ID: id, Reason: reason}
		n := s.exit(&e)
		return n, e.Reason
	}
	s.begin(id)
	if n, _ := news(lost); n {
		t.Error("a container that is being started was called lost")
	}
	s.begun(id)
	s.outOfMemory(id)
	if n, reason := news(exited); !n || reason != outOfMemory {
		t.Errorf("exit after OOM: %v, %q", n, reason)
	}
	if n, _ := news(exited); n {
		t.Error("an exit was news twice")
	}
	s.begin(id) // again, another instance
	s.begun(id)
	if n, reason := news(lost); !n || reason != lost {
		t.Errorf("a lost container: %v, %q", n, reason)
	}
	s.begin(id)
	s.end(id)
	if n, _ := news(exited); n {
		t.Error("the exit of a container that is being removed was news")
	}
	now := time.Now()
	s.gone(id, now)
	if n, _ := news(exited); n {
		t.Error("a late event was news")
	}
	s.gone("c-bbbbbbbbbbbbbbbbbbbbbbbbbb", now.Add(2*eventDelay))
	if len(s.all) != 1 {
		t.Errorf("%d sightings are kept, want 1", len(s.all))
	}
}

func TestOnlyStoppedIsEnded(t *testing.T) {
	t.Parallel()
	for status := range tasktypes.Status_name {
		s := tasktypes.Status(status)
		if got := ended(&tasktypes.Process{Status: s}); got != (s == tasktypes.Status_STOPPED) {
			t.Errorf("%v: ended %v", s, got)
		}
	}
}
