package work

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
)

// scatter writes a file of a size with data at places apart.
func scatter(t *testing.T, name string, size int64, blocks int) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for i := range blocks {
		if _, err := f.WriteAt([]byte("data"), size/int64(blocks)*int64(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func onDisk(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// A file that is mostly holes costs a commit, a merge and a first write to it little more
// than its data (B04).
func TestB04_HolesStayHoles(t *testing.T) {
	const size, few, cheap = 64 << 30, 5, 8 << 20
	b, at := created(t)
	scatter(t, filepath.Join(at, "big"), size, few)
	scatter(t, filepath.Join(at, "empty"), size, 0)
	head := b.commit()
	if head.Layers[0].Size > cheap {
		t.Errorf("%d bytes of data in %d are %d in a layer", few*4, size, head.Layers[0].Size)
	}
	for range mergeFrom {
		write(t, at, "more")
		b.commit()
	}
	merge(t, b)
	head = b.commit()
	var all int64
	for _, l := range head.Layers {
		all += l.Size
	}
	if len(head.Layers) >= mergeFrom || all > 2*cheap {
		t.Errorf("merged: %d bytes in %d layers", all, len(head.Layers))
	}
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	if err := b.manager.Release(t.Context(), "vol", 1); err != nil {
		t.Fatal(err)
	}
	b.spec.Epoch = 2
	f, err := os.OpenFile(filepath.Join(b.use(), "big"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != size {
		t.Errorf("its size is %d, %v", info.Size(), err)
	}
	for i := range int64(few) {
		got := make([]byte, 8)
		if _, err := f.ReadAt(got, size/few*i); err != nil || string(got) != "data\x00\x00\x00\x00" {
			t.Errorf("at %d there is %q, %v", size/few*i, got, err)
		}
	}
	if n := onDisk(t, filepath.Join(b.manager.upperDir("vol"), "big")); n > cheap {
		t.Errorf("written to, it has %d bytes on the disk", n)
	}
}

// Whatever lies where between holes is read as it was written.
func TestHolesAndDataAreWhatTheyWere(t *testing.T) {
	b, at := created(t)
	rng := rand.New(rand.NewPCG(7, 7))
	want := map[string][]byte{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		data := make([]byte, 1<<18+rng.IntN(1<<20))
		f, err := os.Create(filepath.Join(at, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(int64(len(data))); err != nil {
			t.Fatal(err)
		}
		for range rng.IntN(12) {
			from := rng.IntN(len(data))
			part := []byte(strings.Repeat(name, rng.IntN(min(30_000, len(data)-from))))
			copy(data[from:], part)
			if _, err := f.WriteAt(part, int64(from)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		want[name] = data
	}
	b.commit()
	path, err := b.manager.Use(t.Context(), b.spec, "reader", true)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range want {
		if got, err := os.ReadFile(filepath.Join(path, name)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s is not what it was: %d bytes of %d, %v", name, len(got), len(data), err)
		}
	}
}

// A file that no layer can have stops no other: the rest is committed, and whoever wants
// the volume to be durable hears that it is not, until the file is gone (B04, R7).
func TestB04_AFileThatCantBeKeptStopsNoOther(t *testing.T) {
	b, at := created(t)
	scatter(t, filepath.Join(at, "scattered"), 8<<40, 2000)
	write(t, at, "mine")
	refused := func(what string, err error) {
		t.Helper()
		if !errdefs.Is(err, errdefs.TooLarge) || !strings.Contains(err.Error(), "scattered") {
			t.Errorf("%s: %v", what, err)
		}
	}
	commit := func() error {
		_, _, err := b.manager.Commit(t.Context(), "vol")
		return err
	}
	refused("a commit", commit())
	refused("the next one", commit())
	_, err := b.manager.Snapshot(t.Context(), b.spec, "snap", "")
	refused("a snapshot", err)
	head, err := b.store.Head("vol")
	if err != nil {
		t.Fatal(err)
	}
	refused("a commit when nothing has changed", commit())
	if now, err := b.store.Head("vol"); err != nil || now.Seq != head.Seq {
		t.Errorf("it made version %d of %d, %v", now.Seq, head.Seq, err)
	}
	if st, err := b.manager.State("vol"); err != nil || !st.Uncommitted {
		t.Errorf("the volume is %+v, %v", st, err)
	}
	if got := b.committed(); got["mine"] == "" || got["scattered"] != "" {
		t.Errorf("committed: %v", got)
	}
	b.restart()
	refused("a commit of the next process", commit())
	if err := os.Remove(filepath.Join(at, "scattered")); err != nil {
		t.Fatal(err)
	}
	b.commit()
	compare(t, "committed", b.committed(), describe(t, at))
	if st, err := b.manager.State("vol"); err != nil || st.Uncommitted {
		t.Errorf("the volume is %+v, %v", st, err)
	}
}
