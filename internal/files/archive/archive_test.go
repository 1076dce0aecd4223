package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/procapi"
)

var small = Limits{Entries: 50, File: 1 << 20, Total: 2 << 20}

// entry of a hand-made archive. Its size is its content's unless it says otherwise.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content}
}
func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}
func link(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func pack(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Size == 0 {
			e.Size = int64(len(e.content))
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tree is what a directory holds: "path mode content", "path/" or "path -> target".
func tree(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case d.IsDir():
			out = append(out, rel+"/")
		case d.Type() == fs.ModeSymlink:
			target, _ := os.Readlink(path)
			out = append(out, rel+" -> "+target)
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprintf("%s %v %.40s", rel, info.Mode(), b))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantTree(t *testing.T, root string, want ...string) {
	t.Helper()
	if got := tree(t, root); !slices.Equal(got, want) {
		t.Errorf("the tree is\n%q, want\n%q", got, want)
	}
}

func refusal(err error) string {
	if err == nil {
		return ""
	}
	return errdefs.From(err).Code
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	target := filepath.Join(t.TempDir(), "new", "target")
	old := time.Unix(1_000_000_000, 0)
	script := file("bin/run", "#!")
	script.Mode, script.ModTime = 0o4755, old
	got, err := Unpack(files.Tree{}, bytes.NewReader(pack(t, dir("./"), dir("./a/"), dir("a"), file("a/f", "one"), script, link("a/up", "../bin/run"), link("abs", "/usr/bin/python3"))), target, small)
	if want := (procapi.ArchiveResult{Files: 2, Directories: 1, Symlinks: 2, Bytes: 5}); err != nil || got != want {
		t.Fatalf("Unpack = %+v, %v, want %+v", got, err, want)
	}
	wantTree(t, target, "a/", "a/f -rw-r--r-- one", "a/up -> ../bin/run", "abs -> /usr/bin/python3", "bin/", "bin/run -rwxr-xr-x #!")
	wantTree(t, filepath.Dir(filepath.Dir(target)), append([]string{"new/", "new/target/"}, prefixed("new/target/", tree(t, target))...)...)
	if info, err := os.Stat(filepath.Join(target, "bin/run")); err != nil || !info.ModTime().Equal(old) {
		t.Errorf("the file's time is %v (%v)", info.ModTime(), err)
	}
	if info, _ := os.Stat(target); info.Mode().Perm() != 0o755 {
		t.Errorf("the target's mode is %v", info.Mode())
	}
}

func prefixed(prefix string, list []string) []string {
	for i := range list {
		list[i] = prefix + list[i]
	}
	return list
}

func TestUnpackMerges(t *testing.T) {
	t.Parallel()
	target := t.TempDir()
	for name, content := range map[string]string{"kept": "k", "replaced": "old", "d/kept": "k", "link-target": "safe"} {
		path := filepath.Join(target, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("link-target", filepath.Join(target, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(files.Tree{}, bytes.NewReader(pack(t, file("replaced", "new"), file("d/new", "n"), file("link", "a file now"))), target, small); err != nil {
		t.Fatal(err)
	}
	wantTree(t, target, "d/", "d/kept -rw------- k", "d/new -rw-r--r-- n", "kept -rw------- k", "link -rw-r--r-- a file now", "link-target -rw------- safe", "replaced -rw-r--r-- new")
}

// B04: whatever an archive holds, it is refused as a whole or stays inside, and what
// is refused leaves nothing behind.
func TestB04_HostileArchives(t *testing.T) {
	t.Parallel()
	many := make([]entry, 0, small.Entries+1)
	for i := range small.Entries + 1 {
		many = append(many, dir(fmt.Sprint("d", i)))
	}
	typed := func(kind byte) entry {
		return entry{tar.Header{Typeflag: kind, Name: "x", Linkname: "/etc/passwd", Mode: 0o644}, ""}
	}
	huge := make([]entry, 4)
	for i := range huge {
		huge[i] = file(fmt.Sprint("f", i), "")
		huge[i].PAXRecords = map[string]string{"S0.huge": strings.Repeat("x", 1<<20-100)}
	}
	mib := strings.Repeat("x", 1<<20)
	whole := pack(t, file("a", mib), file("b", "x"))
	for name, c := range map[string]struct {
		archive []byte
		code    string
	}{
		"dot dot":                {pack(t, file("ok", "x"), file("../out", "x")), "invalid_request"},
		"dot dot within":         {pack(t, file("a/../../out", "x")), "invalid_request"},
		"absolute":               {pack(t, file("/out", "x")), "invalid_request"},
		"symlink, then file":     {pack(t, link("d", "../.."), file("d/out", "x")), "invalid_request"},
		"absolute, then file":    {pack(t, link("d", "/tmp"), file("d/out", "x")), "invalid_request"},
		"symlink, then the same": {pack(t, link("d", "/tmp/out"), file("d", "x")), "invalid_request"},
		"hard link":              {pack(t, typed(tar.TypeLink)), "invalid_request"},
		"device":                 {pack(t, typed(tar.TypeChar)), "invalid_request"},
		"block device":           {pack(t, typed(tar.TypeBlock)), "invalid_request"},
		"FIFO":                   {pack(t, typed(tar.TypeFifo)), "invalid_request"},
		"a file twice":           {pack(t, file("f", "1"), file("./f", "2")), "invalid_request"},
		"a file as a directory":  {pack(t, file("f", "1"), file("f/g", "2")), "invalid_request"},
		"a directory as a file":  {pack(t, dir("d"), file("d", "2")), "invalid_request"},
		"a name of ours":         {pack(t, file(".s0-tree-x/f", "1")), "invalid_request"},
		"an endless path":        {pack(t, file(strings.Repeat("d/", 2000)+"f", "1")), "invalid_request"},
		"a long name":            {pack(t, file(strings.Repeat("x", 300), "1")), "invalid_request"},
		"an empty link":          {pack(t, link("l", "")), "invalid_request"},
		"too many entries":       {pack(t, many...), "file_too_large"},
		"a large file":           {pack(t, file("f", mib+"x")), "file_too_large"},
		"large files":            {pack(t, file("a", mib), file("b", mib), file("c", "x")), "file_too_large"},
		"10 TB sparse":           {sparse(10 << 40), "file_too_large"},
		"huge headers":           {pack(t, huge...), "file_too_large"},
		"cut in a file":          {whole[:1<<19], "invalid_request"},
		"cut in a header":        {whole[:1<<20+512+100], "invalid_request"},
		"compressed":             {[]byte("\x1f\x8b\x08\x00" + strings.Repeat("\x01", 2000)), "invalid_request"},
		"nonsense":               {bytes.Repeat([]byte("nonsense"), 1000), "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			box := t.TempDir()
			exists, fresh := filepath.Join(box, "a", "b", "exists"), filepath.Join(box, "a", "b", "fresh")
			if err := errors.Join(os.MkdirAll(exists, 0o755), os.WriteFile(filepath.Join(exists, "f"), []byte("old"), 0o644)); err != nil {
				t.Fatal(err)
			}
			for _, target := range []string{exists, fresh} {
				if _, err := Unpack(files.Tree{}, bytes.NewReader(c.archive), target, small); refusal(err) != c.code {
					t.Errorf("into %s: %v, want %s", filepath.Base(target), err, c.code)
				}
			}
			wantTree(t, box, "a/", "a/b/", "a/b/exists/", "a/b/exists/f -rw-r--r-- old")
		})
	}
}

// sparse is an archive with one GNU sparse file of nothing but a hole.
func sparse(size int64) []byte {
	b := make([]byte, 512, 3*512)
	copy(b, "hole")
	copy(b[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00        S")
	copy(b[257:], "ustar  \x00")
	copy(b[386:], "00000000000\x0000000000000\x00") // one empty piece at 0
	copy(b[483:], fmt.Sprintf("%012o", size)[:12])
	if size >= 1<<33 { // in base 256
		b[483] = 0x80
		for i := range 11 {
			b[494-i] = byte(size >> (8 * i))
		}
	}
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(b, make([]byte, 1024)...)
}

func TestB04_SpecialBitsAreStripped(t *testing.T) {
	t.Parallel()
	target := filepath.Join(t.TempDir(), "t")
	f, d := file("f", "x"), dir("d")
	f.Mode, d.Mode = 0o7777, 0o7777
	if _, err := Unpack(files.Tree{}, bytes.NewReader(pack(t, f, d)), target, small); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "d"} {
		if info, err := os.Stat(filepath.Join(target, name)); err != nil || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// B04, B02: what stands in the target is not a way out of it, and what doesn't fit
// changes nothing.
func TestB04_TargetIsNotTrusted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		make func(target, outside string) error
		code string
	}{
		"symlink out": {func(target, outside string) error { return os.Symlink(outside, filepath.Join(target, "d")) }, "path_not_directory"},
		"relative":    {func(target, outside string) error { return os.Symlink("../outside", filepath.Join(target, "d")) }, "path_not_directory"},
		"dangling":    {func(target, _ string) error { return os.Symlink("nowhere", filepath.Join(target, "d")) }, "path_not_directory"},
		"file":        {func(target, _ string) error { return os.WriteFile(filepath.Join(target, "d"), nil, 0o644) }, "path_not_directory"},
		"directory":   {func(target, _ string) error { return os.MkdirAll(filepath.Join(target, "d", "f"), 0o755) }, "path_not_file"},
		"symlink in": {func(target, _ string) error {
			return errors.Join(os.Mkdir(filepath.Join(target, "e"), 0o755), os.Symlink("e", filepath.Join(target, "d")))
		}, ""},
		"fifo": {func(target, _ string) error {
			return errors.Join(os.Mkdir(filepath.Join(target, "d"), 0o755), unix.Mkfifo(filepath.Join(target, "d", "f"), 0o644))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			box := t.TempDir()
			target, outside := filepath.Join(box, "target"), filepath.Join(box, "outside")
			if err := errors.Join(os.Mkdir(target, 0o755), os.Mkdir(outside, 0o755), c.make(target, outside)); err != nil {
				t.Fatal(err)
			}
			_, err := Unpack(files.Tree{}, bytes.NewReader(pack(t, file("a", "first"), file("d/f", "x"))), target, small)
			if refusal(err) != c.code {
				t.Errorf("Unpack: %v, want %q", err, c.code)
			}
			if got := tree(t, outside); len(got) > 0 {
				t.Errorf("outside there is %q", got)
			}
			if _, err := os.Lstat(filepath.Join(target, "a")); (err == nil) != (c.code == "") {
				t.Errorf("the entry before: %v", err)
			}
		})
	}
}

// B02: a directory that turns into a symlink while the archive is unpacked.
func TestB02_UnpackWhileSymlinksSwap(t *testing.T) {
	t.Parallel()
	box := t.TempDir()
	target, outside := filepath.Join(box, "target"), filepath.Join(box, "outside")
	if err := errors.Join(os.MkdirAll(filepath.Join(target, "d"), 0o755), os.Mkdir(outside, 0o755), os.Symlink(outside, filepath.Join(target, "other"))); err != nil {
		t.Fatal(err)
	}
	stop := swap(t, filepath.Join(target, "d"), filepath.Join(target, "other"))
	archive := pack(t, file("d/f", "x"), file("d/e/f", "x"))
	for range 300 {
		_, _ = Unpack(files.Tree{}, bytes.NewReader(archive), target, small) // one or the other, it must not get out
	}
	stop()
	if got := tree(t, outside); len(got) > 0 {
		t.Fatalf("outside there is %q", got)
	}
}

// swap exchanges two names until stop.
func swap(t *testing.T, a, b string) (stop func()) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

func packed(t *testing.T, path string, limits Limits) ([]byte, error) {
	t.Helper()
	src, err := Open(t.Context(), path, limits)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = src.Pack(t.Context(), &b)
	return b.Bytes(), err
}

func TestPackAndUnpack(t *testing.T) {
	t.Parallel()
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	long := strings.Repeat("l", 200)
	for name, content := range map[string]string{"f": "one", "d/größe\n\x01\xff": "two", "d/" + long: "three", "empty": ""} {
		path := filepath.Join(from, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(from, "link")), os.Mkdir(filepath.Join(from, "void"), 0o755)); err != nil {
		t.Fatal(err)
	}
	want := tree(t, from)
	// What no archive holds.
	if err := errors.Join(unix.Mkfifo(filepath.Join(from, "fifo"), 0o644), os.Mkdir(filepath.Join(from, ".s0-tree-1"), 0o755), os.WriteFile(filepath.Join(from, ".s0-new-1"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	b, err := packed(t, from, small)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unpack(files.Tree{}, bytes.NewReader(b), to, small)
	if want := (procapi.ArchiveResult{Files: 4, Directories: 2, Symlinks: 1, Bytes: 11}); err != nil || got != want {
		t.Fatalf("Unpack = %+v, %v, want %+v", got, err, want)
	}
	wantTree(t, to, want...)
}

func TestPackOneFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := packed(t, path, small)
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(bytes.NewReader(b))
	h, err := r.Next()
	if err != nil || h.Name != "f" || h.Size != 7 || h.Mode != 0o600 {
		t.Errorf("entry %+v, %v", h, err)
	}
}

func TestB06_PackIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	hole, err := os.Create(filepath.Join(dir, "hole"))
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	if err := hole.Truncate(10 << 40); err != nil {
		t.Fatal(err)
	}
	if _, err := packed(t, dir, small); refusal(err) != "file_too_large" {
		t.Errorf("10 TB of hole: %v", err)
	}
	entries := t.TempDir()
	for i := range small.Entries + 1 {
		if err := os.Mkdir(filepath.Join(entries, fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := packed(t, entries, small); refusal(err) != "file_too_large" {
		t.Errorf("too many entries: %v", err)
	}
}

// B06: the size is the one at open, however the file goes on.
func TestB06_PackWhileFileGrows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src, err := Open(t.Context(), dir, Limits{Entries: 10, File: 1 << 20, Total: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := src.Pack(t.Context(), w)
		w.CloseWithError(err)
		done <- err
	}()
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	archive := tar.NewReader(r)
	h, err := archive.Next()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, archive); err != nil || n != h.Size || n > 1<<20 {
		t.Errorf("%d bytes of %d, %v", n, h.Size, err)
	}
	if _, err := archive.Next(); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// B02: a directory that turns into a symlink while it is packed.
func TestB02_PackWhileSymlinksSwap(t *testing.T) {
	t.Parallel()
	box := t.TempDir()
	from, outside := filepath.Join(box, "from"), filepath.Join(box, "outside")
	if err := errors.Join(os.MkdirAll(filepath.Join(from, "d"), 0o755), os.Mkdir(outside, 0o755),
		os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644), os.Symlink(outside, filepath.Join(from, "other"))); err != nil {
		t.Fatal(err)
	}
	stop := swap(t, filepath.Join(from, "d"), filepath.Join(from, "other"))
	defer stop()
	for range 2000 {
		if b, err := packed(t, from, small); err == nil && bytes.Contains(b, []byte("secret")) {
			t.Fatal("the archive holds what a symlink leads to")
		}
	}
}
