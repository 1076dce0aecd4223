package containerd

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRemainsOfAKilledContainerdAreRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := New(Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Namespace: "s0"})
	kept := map[string]bool{}
	for path, keep := range map[string]bool{
		"state/" + tasks + "/s0/live":          true,
		"state/" + tasks + "/s0/.gone/shim":    false,
		"state/" + tasks + "/s0/.mount/rootfs": true,
		"root/" + tasks + "/s0/.gone":          false,
		"root/" + tasks + "/other/.gone":       true,
	} {
		path = filepath.Join(dir, path)
		kept[path] = keep
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d.removeRemains()
	for path, keep := range kept {
		if _, err := os.Lstat(path); (err == nil) != keep {
			t.Errorf("%s: kept %v, want %v", path, err == nil, keep)
		}
	}
}
