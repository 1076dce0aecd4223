package work

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"s0.run/internal/s0test/posix"
)

// A volume is what programs expect of a directory, also above what is committed and with a
// limit.
func TestPOSIX(t *testing.T) {
	for name, limit := range map[string]int64{"unlimited": 0, "limited": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.spec.Limit = limit
			if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
				t.Fatal(err)
			}
			for i := range 2 {
				at := b.use()
				for _, dir := range []string{fmt.Sprint("in", i), "above"} {
					dir = filepath.Join(at, dir)
					if err := os.MkdirAll(dir, 0o755); err != nil {
						t.Fatal(err)
					}
					for name, err := range posix.Run(dir) {
						t.Errorf("mounted %d times, %s: %v", i+1, name, err)
					}
				}
				b.commit()
				compare(t, "committed", b.committed(), describe(t, at))
				if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
					t.Fatal(err)
				}
				if err := b.manager.Release(t.Context(), "vol", b.spec.Epoch); err != nil {
					t.Fatal(err)
				}
				b.spec.Epoch++
			}
		})
	}
}
