package journal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
)

// smallDisk is a file system of its own.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	s0test.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all the room that is left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

// X41: on a full disk what ends sandboxes is still written, and when there is room
// again the reserve is there for the next time.
func TestX41_FullDisk(t *testing.T) {
	dir := smallDisk(t, "16m")
	path := filepath.Join(dir, "journal.db")
	j, stop := open(t, path)
	var all []Record
	for range 20 {
		r := record(t)
		if err := j.Put(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	if st, err := os.Stat(path + reserveSuffix); err != nil || st.Size() != reserveBytes {
		t.Fatalf("reserve: %v (%v)", st, err)
	}
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)
	for _, r := range all {
		r.State, r.Reason = Terminating, string(make([]byte, 16<<10)) // more than what the file has free
		if err := j.Put(t.Context(), r); err != nil {
			t.Fatalf("ending %s on a full disk: %v", r.ID, err)
		}
		if err := j.Delete(t.Context(), r.ID); err != nil {
			t.Fatalf("forgetting %s on a full disk: %v", r.ID, err)
		}
	}
	if _, err := os.Stat(path + reserveSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the disk was never full: the test proves nothing (%v)", err)
	}
	stop()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	j, _ = open(t, path)
	if left, err := j.All(); err != nil || len(left) != 0 {
		t.Errorf("%d records are left (%v)", len(left), err)
	}
	if _, err := os.Stat(path + reserveSuffix); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// The reserve comes back while the journal runs, not only with the next start.
func TestReserveComesBack(t *testing.T) {
	t.Parallel()
	r := reserve{path: filepath.Join(t.TempDir(), "reserve")}
	now := time.Unix(1000, 0)
	r.hold(now)
	if !r.release() || r.release() {
		t.Error("it is there once")
	}
	r.hold(now.Add(reserveRetry / 2))
	if r.held {
		t.Error("it was taken back at once")
	}
	r.hold(now.Add(reserveRetry))
	if !r.held {
		t.Error("it did not come back")
	}
}
