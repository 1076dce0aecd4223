package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestThereAndBack(t *testing.T) {
	t.Parallel()
	from, to := t.TempDir(), t.TempDir()
	write(t, filepath.Join(from, "run.sh"), "#!/bin/sh", 0o755)
	write(t, filepath.Join(from, "sub", "größe"), strings.Repeat("x", 5000), 0o640)
	mkdir(t, filepath.Join(from, "empty"))
	for name, target := range map[string]string{"in": "sub/größe", "out": "/etc/passwd"} {
		if err := os.Symlink(target, filepath.Join(from, name)); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := Pack(&b, from, func(path string) { t.Errorf("left out %s", path) }); err != nil {
		t.Fatal(err)
	}
	if size, err := Size(from); err != nil || size < 5000 || int64(b.Len()) < size {
		t.Errorf("size %d, %v; the archive has %d bytes", size, err, b.Len())
	}
	var skipped []string
	got, err := Unpack(&b, to, func(name, target string) { skipped = append(skipped, name+" "+target) })
	if err != nil || got != (Result{Bytes: 5009, Directories: 2, Files: 2, Symlinks: 1}) || !slices.Equal(skipped, []string{"out /etc/passwd"}) {
		t.Errorf("%+v, %v, left out %q", got, err, skipped)
	}
	for name, want := range map[string]fs.FileMode{"run.sh": 0o755, "sub/größe": 0o640, "empty": 0o755 | fs.ModeDir} {
		if info, err := os.Stat(filepath.Join(to, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if content, err := os.ReadFile(filepath.Join(to, "in")); err != nil || len(content) != 5000 {
		t.Errorf("through the link: %d bytes, %v", len(content), err)
	}
}

// A sandbox makes the archive: nothing of it may get out of the directory.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
	}
	for name, c := range map[string]struct {
		entries []tar.Header
		want    string // of the error
	}{
		"up":                {[]tar.Header{file("../evil")}, "can't be one here"},
		"deep up":           {[]tar.Header{file("a/../../evil")}, "can't be one here"},
		"absolute":          {[]tar.Header{file("/tmp/evil")}, "can't be one here"},
		"through a link":    {[]tar.Header{link("l", "../out"), file("l/evil")}, ""}, // the link is left out
		"through two links": {[]tar.Header{link("a", "."), link("a/b", ".."), file("a/b/evil")}, "twice"},
		"over a link":       {[]tar.Header{link("l", "evil"), file("l")}, "exists"},
		"twice":             {[]tar.Header{file("f"), file("f")}, "exists"},
		"file as directory": {[]tar.Header{file("f"), {Typeflag: tar.TypeDir, Name: "f/"}}, "twice"},
		"device":            {[]tar.Header{{Typeflag: tar.TypeChar, Name: "d"}}, "neither file"},
		"hard link":         {[]tar.Header{{Typeflag: tar.TypeLink, Name: "h", Linkname: "/etc/passwd"}}, "neither file"},
		"setuid":            {[]tar.Header{{Typeflag: tar.TypeReg, Name: "s", Mode: 0o4755}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			dir := mkdir(t, filepath.Join(base, "dir"))
			mkdir(t, filepath.Join(base, "out"))
			_, err := Unpack(bytes.NewReader(archived(t, c.entries)), dir, func(string, string) {})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			outside(t, base)
			if _, err := os.Lstat(filepath.Join(dir, "b")); err == nil {
				t.Error("a link was made behind a link")
			}
			if info, err := os.Stat(filepath.Join(dir, "s")); err == nil && info.Mode()&fs.ModeSetuid != 0 {
				t.Error("a file is setuid")
			}
		})
	}
}

func TestUnpackKnowsWhatIsWhole(t *testing.T) {
	t.Parallel()
	whole := archived(t, []tar.Header{{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644}, {Typeflag: tar.TypeReg, Name: "b", Mode: 0o644}})
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{
		"in a header":        io.MultiReader(bytes.NewReader(whole[:700]), failing{broken}),
		"between entries":    io.MultiReader(bytes.NewReader(whole[:512]), failing{broken}),
		"behind the archive": io.MultiReader(bytes.NewReader(whole), failing{broken}),
	} {
		if _, err := Unpack(r, t.TempDir(), nil); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Unpack(io.MultiReader(bytes.NewReader(whole), zeros{}), t.TempDir(), nil); err == nil {
		t.Error("an answer without an end was taken")
	}
	huge := tar.Header{Typeflag: tar.TypeReg, Name: "huge", Size: MaxBytes + 1}
	if _, err := Unpack(bytes.NewReader(header(t, &huge)), t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a huge file: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func archived(t *testing.T, entries []tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// header is the beginning of an archive that does not go on.
func header(t *testing.T, h *tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// outside checks that base holds its two directories and nothing in the second.
func outside(t *testing.T, base string) {
	t.Helper()
	for dir, want := range map[string]int{base: 2, filepath.Join(base, "out"): 0} {
		if got, err := os.ReadDir(dir); err != nil || len(got) != want {
			t.Errorf("%s holds %v, %v", dir, got, err)
		}
	}
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, name, content string, perm fs.FileMode) {
	t.Helper()
	mkdir(t, filepath.Dir(name))
	if err := os.WriteFile(name, []byte(content), perm); err != nil {
		t.Fatal(err)
	}
}
