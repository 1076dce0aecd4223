package work

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/loop"
)

// onDisk gives the bench's data directory a small disk of its own.
func (b *bench) onDisk(size int64) {
	b.t.Helper()
	image, at := filepath.Join(b.dir, "disk"), filepath.Join(b.dir, "data")
	f, err := os.Create(image)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		b.t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", image).CombinedOutput(); err != nil {
		b.t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	device, err := loop.Open(f, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer device.Close()
	if err := os.RemoveAll(at); err != nil {
		b.t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(at, 0o700), unix.Mount(device.Name(), at, "ext4", 0, "")); err != nil {
		b.t.Fatal(err)
	}
	b.restart()
}

// remount makes the small disk read-only, or writable again.
func (b *bench) remount(flags uintptr) {
	b.t.Helper()
	if err := unix.Mount("", filepath.Join(b.dir, "data"), "", unix.MS_REMOUNT|flags, ""); err != nil {
		b.t.Fatal(err)
	}
}

// X41: whoever writes to a volume on a disk that is full or read-only is told so; what he had
// written is committed or stays, over a kill as well, and all of it is committed when the disk
// is well again (R7).
func TestX41_ADiskThatIsFullOrReadOnly(t *testing.T) {
	b := newBench(t)
	b.onDisk(64 << 20)
	if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
		t.Fatal(err)
	}
	at := b.use()
	write(t, at, "first", "second")
	f, err := os.Create(filepath.Join(at, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(f, zeros{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%d bytes fit: %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, err = b.manager.Commit(t.Context(), "vol")
	t.Logf("a commit on a full disk: %v", err)
	if st, serr := b.manager.State("vol"); serr != nil || st.Lost != nil || err != nil && !st.Uncommitted {
		t.Errorf("the volume is %+v, %v", st, serr)
	}
	want := describe(t, at)
	b.restart()
	compare(t, "after a kill", describe(t, b.use()), want)
	if err := os.Remove(filepath.Join(at, "big")); err != nil {
		t.Fatal(err)
	}
	write(t, at, "third")
	b.commit()
	compare(t, "committed when there is room", b.committed(), describe(t, at))

	write(t, at, "fourth")
	b.remount(unix.MS_RDONLY)
	if err := os.WriteFile(filepath.Join(at, "fifth"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write to a disk that is read-only: %v", err)
	}
	if _, _, err := b.manager.Commit(t.Context(), "vol"); err == nil {
		t.Error("a commit whose record can't be written says that it has succeeded")
	}
	want = describe(t, at)
	b.remount(0)
	b.restart()
	compare(t, "after a kill", describe(t, b.use()), want)
	b.commit()
	compare(t, "committed when the disk is well", b.committed(), want)
	if all := b.asides("*"); len(all) > 0 {
		t.Errorf("put aside: %v", all)
	}
}
