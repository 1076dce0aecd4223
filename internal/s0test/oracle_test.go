package s0test

import (
	"strings"
	"testing"
)

func whole(id string) []Trace {
	var all []Trace
	for _, kind := range complete {
		all = append(all, Trace{Kind: kind, Name: kind + " of " + id, ID: id})
	}
	return all
}

func TestOracleFindsLeaksAndLosses(t *testing.T) {
	t.Parallel()
	live := map[string]string{"a": "slot", "b": "sandbox"}
	sound := append(whole("a"), whole("b")...)
	instance := Trace{Kind: "shim", Name: "shim of a group"}
	if err := compare(live, append(sound, instance)); err != nil {
		t.Errorf("a sound machine: %v", err)
	}
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
