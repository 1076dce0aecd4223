package archive

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
)

const (
	snapshotName  = "00000000-0000-4000-8000-000000000001"
	anotherName   = "00000000-0000-4000-8000-000000000002"
	snapshotAbout = "null"
)

// A snapshot is stored, fetched and removed like a sandbox's image, and beside them.
func TestASnapshotIsStored(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	a := newArchive(t, store, newKeys(t))
	image, ref := makeImage(t), Ref{Team: "team", Snapshot: snapshotName}
	others := []Ref{{Team: "team", Snapshot: anotherName}, {Team: "team", Sandbox: newID(t), Generation: 1}}
	for _, r := range append(others, ref) {
		if err := a.Upload(t.Context(), r, image, []byte(snapshotAbout)); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "s", "1")
	if _, err := a.Fetch(t.Context(), ref, dir); err != nil {
		t.Fatal(err)
	}
	sameTree(t, image, dir)
	for name, foreign := range map[string]Ref{ // G11
		"team": {Team: "another", Snapshot: snapshotName}, "sandbox": {Team: "team", Sandbox: others[1].Sandbox, Generation: 2},
	} {
		if _, err := a.Fetch(t.Context(), foreign, filepath.Join(t.TempDir(), "s", "1")); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound) {
			t.Errorf("as another %s's: %v", name, err)
		}
	}
	for range 2 {
		if err := a.RemoveSnapshot(t.Context(), snapshotName); err != nil {
			t.Fatal(err)
		}
	}
	if left := keysOf(t, store, ref.prefix()); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	if _, err := a.Fetch(t.Context(), ref, filepath.Join(t.TempDir(), "s", "1")); !errors.Is(err, ErrNotFound) {
		t.Errorf("what was removed: %v", err)
	}
	for _, other := range others {
		if _, err := a.Fetch(t.Context(), other, filepath.Join(t.TempDir(), "s", "1")); err != nil {
			t.Errorf("%s: %v", other, err)
		}
	}
}

// G09: of a snapshot whose upload was cut off only what is no snapshot's goes.
func TestG09_ASnapshotsUploadThatWasCutOff(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	a := newArchive(t, store, newKeys(t))
	ref := Ref{Team: "team", Snapshot: snapshotName}
	if err := a.Upload(t.Context(), ref, makeImage(t), []byte(snapshotAbout)); err != nil {
		t.Fatal(err)
	}
	whole := keysOf(t, store, ref.prefix())
	u := newUpload()
	for key, b := range map[string][]byte{u.key(): ref.announce(), ref.chunkKey(u, 0): []byte("half")} {
		if err := store.Put(t.Context(), key, b); err != nil {
			t.Fatal(err)
		}
	}
	if removed, err := a.collectAll(t.Context(), []upload{u}, 1, slog.New(slog.NewTextHandler(io.Discard, nil))); removed != 1 || err != nil {
		t.Fatalf("collected %d: %v", removed, err)
	}
	if left := keysOf(t, store, ref.prefix()); len(left) != len(whole) {
		t.Errorf("left %q, want %q", left, whole)
	}
	for _, name := range []string{"../sandboxes", snapshotName + "/x", "x", ""} { // B05
		if ref, err := (note{Snapshot: name}).ref(); err == nil {
			t.Errorf("%q names %s", name, ref)
		}
	}
}
