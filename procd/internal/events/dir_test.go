package events

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"s0.run/internal/procapi"
)

// changes waits for changes of files until one fits.
func changes(t *testing.T, q *Queue, eventType, path string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		_, _, changed := q.After(1 << 60)
		for _, e := range told(t, q, 0) {
			b, _ := json.Marshal(e.Payload)
			var m procapi.FileModified
			if json.Unmarshal(b, &m) == nil && e.Type == procapi.EventFileModified && m.EventType == eventType && m.Path == path {
				return
			}
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("never told of %s of %s: %+v", eventType, path, told(t, q, 0))
		}
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAWatchedDirectory(t *testing.T) {
	t.Parallel()
	q := queue(t)
	d := NewDir(q, slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		d.Run(ctx)
		close(done)
	}()
	defer func() {
		stop()
		<-done
	}()

	root := filepath.Join(t.TempDir(), "src")
	d.Set(root) // makes it, and what happens from now on is told
	write(t, filepath.Join(root, "a"))
	changes(t, q, procapi.WatchCreate, filepath.Join(root, "a"))
	if err := os.Mkdir(filepath.Join(root, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	changes(t, q, procapi.WatchCreate, filepath.Join(root, "deep"))
	d.Set(root) // repeated: nothing is lost
	write(t, filepath.Join(root, "deep", "b"))
	changes(t, q, procapi.WatchCreate, filepath.Join(root, "deep", "b"))

	// A directory that went and came back is watched again.
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	changes(t, q, procapi.WatchRemove, root)
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	changes(t, q, procapi.WatchInvalidate, root)
	write(t, filepath.Join(root, "c"))
	changes(t, q, procapi.WatchCreate, filepath.Join(root, "c"))

	other := t.TempDir()
	d.Set(other)
	write(t, filepath.Join(other, "d"))
	changes(t, q, procapi.WatchCreate, filepath.Join(other, "d"))

	// C15: what another claim wanted to know is not told any more.
	d.Set("")
	eventually := time.After(20 * time.Second)
	for before := -1; before != len(told(t, q, 0)); {
		before = len(told(t, q, 0))
		write(t, filepath.Join(other, fmt.Sprint("e", before)))
		select {
		case <-time.After(100 * time.Millisecond):
		case <-eventually:
			t.Fatal("changes are still told")
		}
	}
}

// What can't be watched is told, and is no reason to fail.
func TestADirectoryThatIsNone(t *testing.T) {
	t.Parallel()
	q := queue(t)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file)
	NewDir(q, slog.New(slog.DiscardHandler)).Set(file)
	changes(t, q, procapi.WatchInvalidate, file)
}
