package child

import (
	"os"
	"path/filepath"
	"testing"
)

func TestALogIsTrimmedUnderItsWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.log")
	f, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, line := range []string{"first, and long\n", "second\n"} {
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
		if err := trimAll(filepath.Dir(path), 10); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{path: "second\n", path + ".1": "first, and long\n"} {
		if b, err := os.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", filepath.Base(name), b, err, want)
		}
	}
}
