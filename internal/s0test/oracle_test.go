package s0test

import (
	"slices"
	"strings"
	"testing"
)

func whole(id string) []Trace {
	var all []Trace
	for _, kind := range complete {
		name := kind + " of " + id
		if kind == "link" {
			name = "sx7 " + id // of the first group
		}
		all = append(all, Trace{Kind: kind, Name: name, ID: id})
	}
	return all
}

func TestOracleFindsLeaksAndLosses(t *testing.T) {
	t.Parallel()
	live := map[string]string{"a": "slot", "b": "sandbox"}
	sound := append(whole("a"), whole("b")...)
	instance := Trace{Kind: "shim", Name: "4712 containerd-shim-s0-v1"}
	if err := compare(live, append(sound, instance)); err != nil {
		t.Errorf("a sound machine: %v", err)
	}
	shared := []Trace{
		instance, {Kind: "mount", Name: "/run/netns/_dataplane"},
		{Kind: "cgroup", Name: "/sys/fs/cgroup/cpu/s0/1a2b"}, {Kind: "cgroup", Name: "/sys/fs/cgroup/memory/s0/1a2b"},
	}
	if err := compare(live, append(sound, shared...)); err != nil {
		t.Errorf("with what all share: %v", err)
	}
	for what, leak := range map[string]Trace{
		"nobody's: lease":     {Kind: "lease", Name: "1234-xyz"},
		"2 shims for 1":       {Kind: "shim", Name: "4711 containerd-shim-s0-v1"},
		"nobody's: snapshot":  {Kind: "snapshot", Name: "extract-1"},
		"nobody's: container": {Kind: "container", Name: "other"},
		"nobody's: mount":     {Kind: "mount", Name: "/run/s0/forgotten"},
		"2 control groups":    {Kind: "cgroup", Name: "/sys/fs/cgroup/cpu/s0/ffff"},
	} {
		if err := compare(live, slices.Concat(sound, shared, []Trace{leak})); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", leak, err)
		}
	}
	if err := compare(live, sound); err == nil || !strings.Contains(err.Error(), "0 shims for 1") {
		t.Errorf("without a shim: %v", err)
	}
	sound = append(sound, instance)
	if err := compare(live, append(sound, Trace{Kind: "link", Name: "sx9", ID: "c"})); err == nil || !strings.Contains(err.Error(), "nobody's: link sx9") {
		t.Errorf("a leaked link: %v", err)
	}
	for i := range whole("b") {
		missing := append(whole("a"), append(whole("b")[:i:i], whole("b")[i+1:]...)...)
		if err := compare(live, missing); err == nil || !strings.Contains(err.Error(), "sandbox b has no "+complete[i]) {
			t.Errorf("a sandbox without its %s: %v", complete[i], err)
		}
	}
	if err := compare(map[string]string{"a": "slot"}, whole("a")[:0]); err == nil {
		t.Error("a slot without anything passes")
	}
}
