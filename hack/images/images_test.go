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

func TestMirrorFor(t *testing.T) {
	t.Parallel()
	targets := "http://mirror.test/debian-security/ bookworm-security main\nhttp://mirror.test/extra/ bookworm contrib\nhttp://mirror.test/debian/ bookworm main\n"
	if got, ok := mirrorFor(targets, "bookworm"); !ok || got != "http://mirror.test/debian/" {
		t.Errorf("mirrorFor = %q, %v", got, ok)
	}
	listed := "mirror+file:/etc/apt/mirrors/debian.list/ bookworm main\n"
	if got, ok := mirrorFor(listed, "bookworm"); !ok || got != "" {
		t.Errorf("a list of mirrors: %q, %v; want debootstrap's default", got, ok)
	}
	if got, _ := mirrorFor(listed+"http://mirror.test/debian bookworm main\n", "bookworm"); got != "http://mirror.test/debian" {
		t.Errorf("a list and a mirror: %q", got)
	}
	for release, want := range map[string]string{"ID=debian\n": "main", "NAME=\"Ubuntu\"\nID=ubuntu\n": "main,universe"} {
		if got := components(release); got != want {
			t.Errorf("components of %q: %q", release, got)
		}
	}
	if got, ok := mirrorFor(targets, "trixie"); ok {
		t.Errorf("mirrorFor found %q for a release without a source", got)
	}
}

func TestShellValue(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", "P='http://proxy.test:3128'\n": "http://proxy.test:3128"} {
		if got := shellValue(in); got != want {
			t.Errorf("shellValue(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRecipeHashDecidesRebuild(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := defaultRecipe()
	if r.builtIn(dir) {
		t.Error("an empty directory counts as built")
	}
	if err := os.WriteFile(filepath.Join(dir, recipeFile), []byte(r.hash()), 0o644); err != nil {
		t.Fatal(err)
	}
	if !r.builtIn(dir) {
		t.Error("a finished layout counts as not built")
	}
	r.Packages = append(r.Packages, "jq")
	if r.builtIn(dir) {
		t.Error("another package does not ask for a rebuild")
	}
}

// files makes the same content with another build's times, in another order.
func files(t *testing.T, began time.Time, names ...string) string {
	t.Helper()
	root := t.TempDir()
	packaged := time.Unix(1_600_000_000, 0)
	if err := os.Mkdir(filepath.Join(root, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(root, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		at := packaged
		if name == "d/made" {
			at = began.Add(time.Second)
		}
		if err := os.Chtimes(filepath.Join(root, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []func() error{
		func() error { return os.Link(filepath.Join(root, "a"), filepath.Join(root, "z")) },
		func() error { return os.Symlink("/etc/a", filepath.Join(root, "s")) },
		func() error { return os.Chtimes(filepath.Join(root, "d"), began, began) },
	} {
		if err := link(); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestLayerDependsOnContentAlone(t *testing.T) {
	t.Parallel()
	// Symlinks get the time of now, so both builds must have begun before.
	var one, two bytes.Buffer
	early, late := time.Unix(1_700_000_000, 0), time.Unix(1_700_009_999, 0)
	if err := writeTree(tree{root: files(t, early, "a", "b", "d/made"), began: early}, &one); err != nil {
		t.Fatal(err)
	}
	if err := writeTree(tree{root: files(t, late, "d/made", "b", "a"), began: late}, &two); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two builds of one tree differ")
	}

	types := map[string]byte{}
	for r := tar.NewReader(&one); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		types[h.Name] = h.Typeflag
		if want := time.Unix(1_600_000_000, 0); !h.ModTime.Equal(want) {
			t.Errorf("%s has time %v, want that of the newest packaged file, %v", h.Name, h.ModTime, want)
		}
	}
	want := map[string]byte{"a": tar.TypeReg, "b": tar.TypeReg, "d/": tar.TypeDir, "d/made": tar.TypeReg, "s": tar.TypeSymlink, "z": tar.TypeLink}
	if !maps.Equal(types, want) {
		t.Errorf("the layer holds %v, want %v", slices.Sorted(maps.Keys(types)), slices.Sorted(maps.Keys(want)))
	}
}
