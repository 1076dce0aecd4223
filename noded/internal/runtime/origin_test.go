package runtime

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/sandbox"
)

func TestG10_DigestIsOfWhatMustNotDrift(t *testing.T) {
	t.Parallel()
	want := digest(testSpec(sandbox.GVisor, nil))
	raw, err := json.Marshal(testSpec(sandbox.GVisor, nil))
	if err != nil {
		t.Fatal(err)
	}
	var stored specs.Spec
	if err := json.Unmarshal(raw, &stored); err != nil {
		t.Fatal(err)
	}
	if digest(&stored) != want {
		t.Error("a spec that was stored has another digest")
	}
	another := testSpec(sandbox.GVisor, func(c *Container) {
		c.ID, c.Hostname, c.SlotDir, c.NetNS, c.CgroupPath, c.OverlayDir, c.Group = "c-b", "c-b", "/slots/y", "/run/netns/y", "/s0/y", "/ov/y", "h"
		c.Spec.CPUMillis, c.Spec.Env = 900, map[string]string{"A": "2"}
	})
	if digest(another) != want {
		t.Error("what each instance has of its own is in the digest")
	}
	for name, drift := range map[string]func(*specs.Spec){
		"a mount":      func(s *specs.Spec) { s.Mounts = s.Mounts[1:] },
		"an option":    func(s *specs.Spec) { s.Mounts[0].Options = append(slices.Clone(s.Mounts[0].Options), "ro") },
		"a capability": func(s *specs.Spec) { s.Process.Capabilities.Bounding = s.Process.Capabilities.Bounding[1:] },
		"a limit":      func(s *specs.Spec) { s.Process.Rlimits = nil },
		"the command":  func(s *specs.Spec) { s.Process.Args = []string{"/bin/sh"} },
		"a namespace":  func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] },
		"a mask":       func(s *specs.Spec) { s.Linux.MaskedPaths = nil },
	} {
		s := testSpec(sandbox.GVisor, nil)
		drift(s)
		if digest(s) == want {
			t.Errorf("%s is not in the digest", name)
		}
	}
}

// Not in parallel: a file that another test's fork holds open for writing can't be run.
func TestVersionIsAskedOncePerFile(t *testing.T) {
	dir := t.TempDir()
	path, calls := filepath.Join(dir, "runsc"), filepath.Join(dir, "calls")
	install := func(answer string) {
		script := "#!/bin/sh\necho x >>" + calls + "\necho '" + answer + "'\necho 'spec: 1.2.1'\n"
		if err := os.WriteFile(path+".new", []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	var v version
	install("runsc version v1")
	for range 3 {
		if got, err := v.of(t.Context(), path); err != nil || got != "runsc v1" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if b, _ := os.ReadFile(calls); string(b) != "x\n" {
		t.Errorf("it was asked %d times", len(b)/2)
	}
	install("runsc version v22")
	if got, err := v.of(t.Context(), path); err != nil || got != "runsc v22" {
		t.Errorf("after an upgrade: %q, %v", got, err)
	}
	install("something else")
	if got, err := v.of(t.Context(), path); err == nil {
		t.Errorf("no runsc has the version %q", got)
	}
}

// G10: what a container would be started with now is what it was started with.
func TestG10_OriginOfWhatRuns(t *testing.T) {
	n := newNode(t)
	b := n.start(sandbox.GVisor)
	b.accept()
	origin, err := n.rt.Origin(n.ctx(), b.c.ID)
	n.ok(err)
	target, err := n.rt.Target(n.ctx(), b.c)
	n.ok(err)
	if origin.Spec != target.Spec || origin.Image != target.Image || origin.Runtime != target.Runtime || origin.Runtime == "" || len(origin.CPU.Features) == 0 {
		t.Errorf("origin %+v, target %+v", origin, target)
	}
}
