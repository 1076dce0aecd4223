package sandbox

import (
	"strings"
	"testing"

	"s0.run/internal/warm"
)

func TestA02_IDsAreRandomLabels(t *testing.T) {
	t.Parallel()
	seen := map[ID]bool{}
	for range 1000 {
		id, err := NewID("local")
		if err != nil {
			t.Fatal(err)
		}
		if parsed, err := ParseID(string(id)); err != nil || parsed != id {
			t.Fatalf("ParseID(%q) = %q, %v", id, parsed, err)
		}
		if seen[id] {
			t.Fatalf("%q was minted twice", id)
		}
		seen[id] = true
		if id.Cluster() != "local" {
			t.Fatalf("Cluster of %q is %q", id, id.Cluster())
		}
	}
}

func TestLongestIDLeavesRoomForAPort(t *testing.T) {
	t.Parallel()
	id, err := NewID(strings.Repeat("c", maxClusterLen))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(string(id) + "--p65535"); n > 63 {
		t.Errorf("%s--p65535 has %d bytes, a DNS label holds 63", id, n)
	}
}

func TestParseIDRefuses(t *testing.T) {
	t.Parallel()
	good := strings.Repeat("a", randomDigits)
	for _, s := range []string{
		"", "local", "local-", good, "-" + good, "Local-" + good, "local-" + good + "a", "local-" + good[1:],
		"local-" + strings.ToUpper(good), "local-" + good + "\n", "../" + good, "lo_cal-" + good, "1ocal-" + good,
		strings.Repeat("c", 29) + "-" + good, "local-" + good[1:] + "1", "local--" + good + "/..",
	} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("ParseID(%q) = %q", s, id)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("local-aaaaaaaaaaaaaaaaaaaaaaaaaa")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if (err == nil) != (id != "") {
			t.Fatalf("ParseID(%q) = %q, %v", s, id, err)
		}
		if err == nil && (string(id) != s || strings.ContainsAny(s, "/\\. \n\x00") || ValidCluster(id.Cluster()) != nil) {
			t.Fatalf("ParseID accepted %q", s)
		}
	})
}

func TestSpecHash(t *testing.T) {
	t.Parallel()
	a := Spec{Image: "i", MemoryBytes: MinMemoryBytes, CPUMillis: 500, RuntimeClass: GVisor, Env: map[string]string{"A": "1", "B": "2"}}
	b := a
	b.Env = map[string]string{"B": "2", "A": "1"}
	if a.Hash() != b.Hash() {
		t.Error("equal specs have different hashes")
	}
	b.Env = map[string]string{"A": "1", "B": "3"}
	if a.Hash() == b.Hash() {
		t.Error("different specs have one hash")
	}
	b = a
	b.Warm = []warm.Process{{Name: "p", Type: warm.REPL}}
	if a.Hash() == b.Hash() {
		t.Error("a spec with warm processes has the hash of one without")
	}
}

func TestSpecValidate(t *testing.T) {
	t.Parallel()
	good := Spec{Image: "i", MemoryBytes: MinMemoryBytes, CPUMillis: 500, RuntimeClass: GVisor}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Spec){
		"no image":        func(s *Spec) { s.Image = "" },
		"little memory":   func(s *Spec) { s.MemoryBytes-- },
		"much memory":     func(s *Spec) { s.MemoryBytes = MaxMemoryBytes + 1 },
		"no cpu":          func(s *Spec) { s.CPUMillis = 0 },
		"endless cpu":     func(s *Spec) { s.CPUMillis = MaxCPUMillis + 1 },
		"negative disk":   func(s *Spec) { s.DiskBytes = -1 },
		"negative pids":   func(s *Spec) { s.PidsLimit = -1 },
		"unknown runtime": func(s *Spec) { s.RuntimeClass = "firecracker" },
		"warm process":    func(s *Spec) { s.Warm = []warm.Process{{Name: "p", Type: warm.CMD}} },
	} {
		s := good
		spoil(&s)
		if s.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
