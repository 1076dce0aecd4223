package install

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAFileIsReplacedWhole(t *testing.T) {
	t.Parallel()
	src, dir := t.TempDir(), t.TempDir()
	from, to := filepath.Join(src, "procd"), filepath.Join(dir, "procd")
	var used *os.File // by whoever runs from the first one
	for i, content := range []string{"one", "another"} {
		if err := os.WriteFile(from, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := File(from, dir, 0o755); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(to)
		if err != nil || string(got) != content {
			t.Errorf("procd = %q, %v", got, err)
		}
		if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("procd is %v, %v", info, err)
		}
		if i == 0 {
			if used, err = os.Open(to); err != nil {
				t.Fatal(err)
			}
			defer used.Close()
		}
	}
	first := make([]byte, 3)
	if _, err := used.ReadAt(first, 0); err != nil || string(first) != "one" {
		t.Errorf("who uses the older file reads %q, %v", first, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v, want procd alone", entries, err)
	}
	if err := File(filepath.Join(src, "none"), dir, 0o755); err == nil {
		t.Error("what is not there was installed")
	}
	if err := File(from, filepath.Join(dir, "none"), 0o755); err == nil {
		t.Error("a directory that is not there was filled")
	}
}
