package room

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
)

const limit = 32 << 20

func newRoom(t *testing.T, limit int64) string {
	t.Helper()
	s0test.NeedRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := Close(dir); err != nil {
			t.Error(err)
		}
	})
	for range 2 { // repeated
		if err := errors.Join(Make(t.Context(), dir, limit), Open(dir)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// fill writes until there is no space left, at most so much, and says how much that was.
func fill(t *testing.T, path string, most int64) (n int64, err error) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for n < most && err == nil {
		var wrote int
		wrote, err = f.Write(block)
		n += int64(wrote)
	}
	return n, errors.Join(err, f.Sync(), f.Close())
}

func onDisk(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// D04: the kernel ends what is written beyond the limit, and has room again for what goes.
func TestD04_RoomIsBounded(t *testing.T) {
	dir := newRoom(t, limit)
	image, big := filepath.Join(dir, imageName), filepath.Join(Path(dir), "big")
	if n := onDisk(t, image); n > limit/2 {
		t.Errorf("an empty room takes %d bytes", n)
	}
	n, err := fill(t, big, 2*limit)
	if !errors.Is(err, unix.ENOSPC) || n < limit || n > limit+limit/8 {
		t.Errorf("%d bytes of %d were written: %v", n, limit, err)
	}
	if err := os.Remove(big); err != nil {
		t.Fatal(err)
	}
	if n, err := fill(t, big, limit); n != limit || err != nil {
		t.Errorf("again %d bytes: %v", n, err)
	}
	if n := onDisk(t, image); n > 2*limit {
		t.Errorf("the disk has %d bytes", n)
	}
}

// D04, D05: files are counted, too.
func TestD04_D05_RoomIsBoundedInFiles(t *testing.T) {
	dir := newRoom(t, limit)
	var err error
	n := 0
	for ; err == nil && n <= 2*minFiles; n++ {
		err = unix.Mknod(filepath.Join(Path(dir), fmt.Sprint(n)), unix.S_IFREG|0o600, 0)
	}
	if !errors.Is(err, unix.ENOSPC) || n < minFiles/2 {
		t.Errorf("after %d files: %v", n, err)
	}
}

// X41: what is in a room is there when it is opened again, also while somebody has files of
// it open, who then sees the same.
func TestX41_RoomIsTheSameAgain(t *testing.T) {
	dir := newRoom(t, limit)
	name := filepath.Join(Path(dir), "file")
	for i, held := range []bool{false, true} {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if held {
			defer f.Close()
		} else {
			f.Close()
		}
		if err := Close(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("closed: %v", err)
		}
		if err := Open(dir); err != nil {
			t.Fatal(err)
		}
		if held {
			if _, err := f.WriteString("late"); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(name); err != nil || string(b) != "late" {
				t.Errorf("%q, %v", b, err)
			}
		} else if _, err := os.Stat(name); err != nil {
			t.Errorf("round %d: %v", i, err)
		}
	}
}

func TestNoLimitIsNoRoom(t *testing.T) {
	dir := newRoom(t, 0)
	if Path(dir) != dir {
		t.Errorf("at %s", Path(dir))
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
}
