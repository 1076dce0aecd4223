package fsx

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A plain directory is what the model says, and a byte that is changed behind its back is
// found.
func TestAPlainDirectory(t *testing.T) {
	t.Parallel()
	dir, seed := t.TempDir(), rand.Uint64()
	t.Logf("seed %d", seed)
	w, err := New(dir, seed)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Steps(500); err != nil {
		t.Fatal(err)
	}
	if err := w.Check(dir); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "fsx1")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, append(b, 'x'), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Check(dir); err == nil || !strings.Contains(err.Error(), "fsx1 has") {
		t.Errorf("a byte more: %v", err)
	}
}
