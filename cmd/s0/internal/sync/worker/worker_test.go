package worker

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func TestWatchFollowsNewDirectories(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" && runtime.GOOS != "windows" {
		t.Skip("directories are not watched here")
	}
	root := t.TempDir()
	w := newWatch(root, slog.New(slog.DiscardHandler))
	defer w.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sub := filepath.Join(root, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if !w.wait(ctx, 0, time.Hour, false) {
		t.Fatal("a new directory goes unnoticed")
	}
	if list := w.w.WatchList(); len(list) != 2 {
		t.Fatalf("watched are %v", list)
	}
	if err := os.WriteFile(filepath.Join(sub, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if !w.wait(ctx, 0, time.Hour, false) {
		t.Fatal("a new file goes unnoticed")
	}
}

func TestLogThatCantBeRenamedGoesOn(t *testing.T) {
	t.Parallel()
	r := &Replica{Dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(r.LogFile()+".1", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := r.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		if _, err := l.Write(make([]byte, maxLog)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPidGoesWithTheLock(t *testing.T) {
	t.Parallel()
	r := &Replica{Dir: t.TempDir()}
	unlock, err := r.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := r.pid(); err != nil || pid != os.Getpid() || !r.Running() {
		t.Errorf("%d %v", pid, err)
	}
	unlock()
	if _, err := r.pid(); !errors.Is(err, fs.ErrNotExist) || r.Running() {
		t.Errorf("%v", err)
	}
	if err := r.Stop(t.Context(), true); err != nil {
		t.Error(err)
	}
}
