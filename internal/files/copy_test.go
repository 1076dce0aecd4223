package files

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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

// A copy has the holes and the users' attributes of what is copied.
func TestMoveCopyIsAlike(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, moved := filepath.Join(dir, "source"), filepath.Join(dir, "moved")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	const size, middle = 64 << 20, 16 << 20
	f, err := os.Create(filepath.Join(source, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, middle} {
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	sub := filepath.Join(source, "d")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	var attributes error
	for _, name := range []string{source, f.Name(), sub} {
		attributes = errors.Join(attributes, unix.Setxattr(name, "user.a", []byte("value"), 0))
	}
	var was, is unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &was); err != nil {
		t.Fatal(err)
	}
	if err := (Tree{}).moveCopy(t.Context(), source, moved); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(moved, "f")
	if err := unix.Lstat(name, &is); err != nil || is.Size != size || is.Blocks > was.Blocks+1024 {
		t.Errorf("the copy has %d bytes in %d blocks instead of %d, %v", is.Size, is.Blocks, was.Blocks, err)
	}
	b, err := os.ReadFile(name)
	if err != nil || string(b[:5]) != "data\x00" || string(b[middle:middle+5]) != "data\x00" {
		t.Errorf("it holds something else, %v", err)
	}
	if attributes == nil { // this file system has some
		for _, name := range []string{moved, name, filepath.Join(moved, "d")} {
			value := make([]byte, 16)
			if n, err := unix.Getxattr(name, "user.a", value); err != nil || string(value[:n]) != "value" {
				t.Errorf("the attribute of %s is %q, %v", name, value[:max(0, n)], err)
			}
		}
	}
}
