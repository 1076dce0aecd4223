package files

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"s0.run/internal/errdefs"
)

// meddler does something when it is asked for the nth time.
type meddler struct {
	context.Context
	n    int
	then func()
}

func (m *meddler) Err() error {
	if m.n--; m.n == 0 {
		m.then()
	}
	return m.Context.Err()
}

// A directory that is changed while it is copied stays where it is, whole.
func TestMoveCopyLosesNothing(t *testing.T) {
	t.Parallel()
	for n := range 9 { // of three looks at three entries; with 0 nothing is changed
		dir := t.TempDir()
		source, destination := filepath.Join(dir, "source"), filepath.Join(dir, "destination")
		if err := os.MkdirAll(filepath.Join(source, "d"), 0o755); err != nil {
			t.Fatal(err)
		}
		write := func(name, content string) {
			if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("d/f", "content")
		from := "destination"
		err := Tree{}.moveCopy(&meddler{t.Context(), n, func() { write("d/late", "late") }}, source, destination)
		if e := errdefs.From(err); err != nil {
			from = "source"
			if e.Kind != errdefs.Conflict {
				t.Errorf("meddled with at look %d: %v", n, err)
			}
		}
		if n == 0 && err != nil || n > 2 && err == nil {
			t.Errorf("meddled with at look %d: %v", n, err)
		}
		names := []string{"d/f", "d/late"}
		if n == 0 {
			names = names[:1]
		}
		for _, name := range names {
			if _, err := os.Stat(filepath.Join(dir, from, name)); err != nil {
				t.Errorf("meddled with at look %d: %v", n, err)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("meddled with at look %d there are %v, %v", n, left, err)
		}
	}
}
