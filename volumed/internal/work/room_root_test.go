package work

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/layers"
)

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// D04: who writes to a volume is told by the kernel when it is full. It can be committed
// then, is the same after a restart and a reboot, and has room again for what is removed.
func TestD04_AVolumeIsBounded(t *testing.T) {
	b := newBench(t)
	b.spec.Limit = 64 << 20
	if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
		t.Fatal(err)
	}
	at := b.use()
	fill := func(name string) (int64, error) {
		t.Helper()
		f, err := os.Create(filepath.Join(at, name))
		if err != nil {
			return 0, err
		}
		n, err := io.CopyN(f, zeros{}, 2*b.spec.Limit)
		return n, errors.Join(err, f.Sync(), f.Close())
	}
	n, err := fill("big")
	if !errors.Is(err, unix.ENOSPC) || n < b.spec.Limit || n > b.spec.Limit*3/2 {
		t.Fatalf("%d bytes of %d were written: %v", n, b.spec.Limit, err)
	}
	b.commit()
	want := describe(t, at)
	for what, again := range map[string]func(){"restart": b.restart, "reboot": b.reboot} {
		again()
		at = b.use()
		if got := describe(t, at); len(got) != len(want) || got["big"] != want["big"] {
			t.Errorf("after a %s: %v", what, got)
		}
	}
	if _, err := fill("more"); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a second file: %v", err)
	}
	if err := errors.Join(os.Remove(filepath.Join(at, "big")), os.Remove(filepath.Join(at, "more"))); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(60 * time.Second)
	for n := int64(0); n < b.spec.Limit; { // the kernel takes its time to let a removed file go
		if n, err = fill("again"); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("after a removal %d bytes: %v", n, err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("after a removal there is room for %d bytes", n)
		}
	}
	b.commit()
	leave := func() {
		t.Helper()
		err := b.manager.Leave(t.Context(), b.spec.ID, "mount")
		if err = errors.Join(err, b.manager.Release(t.Context(), b.spec.ID, b.spec.Epoch)); err != nil {
			t.Fatal(err)
		}
		if left, err := layers.Mounts(filepath.Join(b.dir, "data")); err != nil || len(left) > 0 {
			t.Errorf("its room is mounted still: %v, %v", left, err)
		}
	}
	leave()
	at = b.use() // what is committed counts
	if n, err := fill("last"); !errors.Is(err, unix.ENOSPC) || n > b.spec.Limit/2 {
		t.Errorf("above what is committed %d bytes: %v", n, err)
	}
	b.commit()
	leave()
}
