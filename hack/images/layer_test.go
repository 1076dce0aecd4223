package main

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A layer holds what is new or changed, and marks what is gone, each directory once.
func TestLayerHoldsTheDifference(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_700_000_000, 0)
	root := files(t, began, "a", "b", "d/made")
	for _, name := range []string{"gone/x", "gone/deep/y", "lost"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	base, err := marks(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func() error{
		func() error { return os.RemoveAll(filepath.Join(root, "gone")) },
		func() error { return os.Remove(filepath.Join(root, "lost")) },
		func() error { return os.WriteFile(filepath.Join(root, "b"), []byte("changed"), 0o644) },
		func() error { return os.Chmod(filepath.Join(root, "d/made"), 0o600) },
		func() error { return os.WriteFile(filepath.Join(root, "d/new"), []byte("new"), 0o644) },
		func() error { return os.Remove(filepath.Join(root, "s")) },
		func() error { return os.Symlink("/etc/b", filepath.Join(root, "s")) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
	}
	var layer bytes.Buffer
	if err := writeTree(tree{root: root, began: began, marks: base}, &layer); err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for r := tar.NewReader(&layer); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes[h.Name] = h.Size
	}
	want := map[string]int64{".wh.gone": 0, ".wh.lost": 0, "b": 7, "d/made": 6, "d/new": 3, "s": 0}
	if !maps.Equal(sizes, want) {
		t.Errorf("the layer holds %v, want %v: %v", slices.Sorted(maps.Keys(sizes)), slices.Sorted(maps.Keys(want)), sizes)
	}
}

// Every recipe can be built: its base is the default one, its programs are there.
func TestRecipes(t *testing.T) {
	t.Parallel()
	all := recipes()
	if len(all) != len(names()) {
		t.Errorf("%d recipes, %d names", len(all), len(names()))
	}
	hashes := map[string]string{}
	for _, name := range names() {
		r := all[name]
		if other, taken := hashes[r.hash()]; taken {
			t.Errorf("%s and %s are the same", name, other)
		}
		hashes[r.hash()] = name
		if name != "default" && (r.Base == nil || r.Base.hash() != all["default"].hash()) {
			t.Errorf("%s has another base", name)
		}
		for path, content := range r.Files {
			if !filepath.IsAbs(path) || content == "" {
				t.Errorf("%s: program %s has %d bytes", name, path, len(content))
			}
		}
	}
}
