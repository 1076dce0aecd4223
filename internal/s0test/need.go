package s0test

import (
	"os"
	"path/filepath"
	"testing"
)

// NeedRoot declares that a test needs root and what `make tools` builds. It skips
// in short mode alone: elsewhere a missing right fails the test, so that nothing
// is left out unnoticed.
func NeedRoot(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root and a real runtime: not in short mode")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
}

// Binary finds a program in build/bin.
func Binary(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(ModuleRoot(t), "build", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not built: run `make tools build`", name)
	}
	return path
}

// ModuleRoot is the directory of go.mod.
func ModuleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the test's directory")
	return ""
}
