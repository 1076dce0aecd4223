package jfs

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
)

// A file system that hangs is replaced: who waits for it has an error, also what was opened
// in it, its processes are gone, and what it had is there (X43).
func TestX43_AFileSystemThatHangsIsReplaced(t *testing.T) {
	s0test.NeedRoot(t)
	dir := t.TempDir()
	cfg := Config{
		Binary: s0test.Binary(t, "juicefs"), Meta: "badger://" + dir + "/meta", Storage: "file", Bucket: dir + "/objects/", MountDir: dir + "/mnt",
		CacheDir: dir + "/cache", LogFile: dir + "/log", Log: slog.New(slog.DiscardHandler), HangTime: time.Nanosecond,
	}
	t.Cleanup(func() {
		if err := clear(context.Background(), cfg); err != nil {
			t.Error(err)
		}
	})
	if err := Ensure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.MountDir, "kept"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(cfg.MountDir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(cfg.MountDir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	earlier, err := processes(cfg)
	if err != nil || len(earlier) == 0 {
		t.Fatalf("%d processes, %v", len(earlier), err)
	}
	defer earlier.close()
	for _, p := range earlier {
		if err := unix.PidfdSendSignal(p, unix.SIGSTOP, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for h := Look(cfg.MountDir); h != Hangs; h = Look(cfg.MountDir) { // a thread may answer once more
		if h == Gone {
			t.Fatal("it is gone")
		}
	}
	waits := make(chan error, 1)
	go func() { waits <- unix.Mkdirat(int(root.Fd()), "hangs", 0o700) }()
	if err := Ensure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for pid, p := range earlier {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}, 0); n != 1 || err != nil {
			t.Fatalf("an earlier process runs: %v", err)
		}
		if _, err := os.Lstat(socket(pid)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its socket is left: %v", err)
		}
	}
	select {
	case err := <-waits:
		if err == nil || errors.Is(err, unix.ENOENT) {
			t.Errorf("who waited hears %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("who waited hears nothing")
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(root.Fd()), "dir", &st, 0); err == nil || errors.Is(err, unix.ENOENT) {
		t.Errorf("what was opened before says %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(cfg.MountDir, "kept")); err != nil || string(b) != "kept" {
		t.Errorf("it has %q, %v", b, err)
	}
	if err := Ensure(t.Context(), cfg); err != nil { // nothing is to be done
		t.Error(err)
	}
}
