package erofs

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
)

// mounted writes an image with fill and mounts it by the kernel, which is the judge.
func mounted(t *testing.T, fill func(w *Writer)) string {
	t.Helper()
	s0test.NeedRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(f, Attr{Mode: 0o751, UID: 7, GID: 8, Seconds: 1234567890, Nanos: 987654321})
	if err != nil {
		t.Fatal(err)
	}
	fill(w)
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(image, at, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("mounting the image: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

func TestKernelReadsWhatIsWritten(t *testing.T) {
	var many []string
	for i := range 3000 {
		many = append(many, fmt.Sprintf("many/%s-%d", strings.Repeat("n", i%200), i))
	}
	contents := map[string]string{"empty": "", "small": "x", "block": strings.Repeat("b", blockSize), "big": strings.Repeat("0123456789", 700_000), "dir/deep/file": "deep"}
	at := mounted(t, func(w *Writer) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		attr := Attr{Mode: 0o640, UID: 1000, GID: 2000, Seconds: 1_700_000_000, Nanos: 5, Xattrs: map[string]string{"user.color": "blue", "user.empty": ""}}
		must(w.Mkdir("dir", Attr{Mode: 0o1777, Xattrs: map[string]string{"trusted.overlay.opaque": "y"}}))
		must(w.Mkdir("dir/deep", Attr{Mode: 0o755}))
		must(w.Mkdir("many", Attr{Mode: 0o755}))
		for path, data := range contents {
			must(w.File(path, attr, strings.NewReader(data), 1<<40))
		}
		must(w.Link("dir/deep/file", "linked"))
		must(w.Symlink("link", Attr{Mode: 0o777}, "/no/where"))
		must(w.Node("gone", Attr{Mode: Char}))
		must(w.Node("pipe", Attr{Mode: Fifo | 0o600}))
		for _, name := range many {
			must(w.File(name, Attr{Mode: 0o600}, strings.NewReader(name), 100000))
		}
	})
	for path, want := range contents {
		got, err := os.ReadFile(filepath.Join(at, path))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v; want %d", path, len(got), err, len(want))
		}
	}
	for _, name := range many {
		if got, err := os.ReadFile(filepath.Join(at, name)); err != nil || string(got) != name {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if all, err := os.ReadDir(filepath.Join(at, "many")); err != nil || len(all) != len(many) {
		t.Errorf("%d entries, %v; want %d", len(all), err, len(many))
	}
	checkAttributes(t, at)
}

func checkAttributes(t *testing.T, at string) {
	t.Helper()
	stat := func(name string) (st unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(at, name), &st); err != nil {
			t.Error(name, err)
		}
		return st
	}
	if st := stat("."); st.Mode != unix.S_IFDIR|0o751 || st.Uid != 7 || st.Gid != 8 || st.Mtim.Sec != 1234567890 || st.Mtim.Nsec != 987654321 || st.Nlink != 4 {
		t.Errorf("root: %+v", st)
	}
	if st := stat("small"); st.Mode != unix.S_IFREG|0o640 || st.Uid != 1000 || st.Gid != 2000 || st.Mtim.Sec != 1_700_000_000 || st.Size != 1 {
		t.Errorf("small: %+v", st)
	}
	if a, b := stat("linked"), stat("dir/deep/file"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("hard links: %+v and %+v", a, b)
	}
	if st := stat("gone"); st.Mode != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("whiteout: %+v", st)
	}
	if st := stat("pipe"); st.Mode != unix.S_IFIFO|0o600 {
		t.Errorf("pipe: %+v", st)
	}
	if to, err := os.Readlink(filepath.Join(at, "link")); err != nil || to != "/no/where" {
		t.Errorf("link to %q, %v", to, err)
	}
	for name, want := range map[string]string{"user.color": "blue", "user.empty": ""} {
		var b [64]byte
		n, err := unix.Lgetxattr(filepath.Join(at, "big"), name, b[:])
		if err != nil || string(b[:n]) != want {
			t.Errorf("%s: %q, %v", name, b[:max(n, 0)], err)
		}
	}
}

// What was in the buffer before is in no other file's block (C15).
func TestC15_PaddingIsZero(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(f, Attr{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.File("a", Attr{}, strings.NewReader(strings.Repeat("secret", 5000)), 1<<20), w.File("b", Attr{}, strings.NewReader("b"), 1)); err != nil {
		t.Fatal(err)
	}
	at := w.offset - blockSize
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var block [blockSize]byte
	if _, err := f.ReadAt(block[:], at); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimRight(string(block[:]), "\x00"); got != "b" {
		t.Errorf("the block of b holds %q", got[:min(len(got), 40)])
	}
}

func TestB05_HostileNamesAreRefused(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(f, Attr{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", ".", "..", "a/b", "x/", strings.Repeat("n", 256), "a\x00b"} {
		if err := w.File(path, Attr{}, strings.NewReader(""), 0); err == nil {
			t.Errorf("a file %q was taken", path)
		}
	}
	if err := w.Symlink("l", Attr{}, strings.Repeat("t", MaxTarget+1)); err == nil {
		t.Error("a symlink too long was taken")
	}
	if err := w.Link("none", "l"); err == nil {
		t.Error("a link to nothing was taken")
	}
	if err := w.File("x", Attr{Xattrs: map[string]string{"system.posix_acl_access": "?"}}, strings.NewReader(""), 0); err == nil {
		t.Error("an extended attribute of an unknown kind was taken")
	}
}

// Any tree that the writer takes is one that the kernel shows alike.
func TestRandomTrees(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	want := map[string]string{}
	at := mounted(t, func(w *Writer) {
		dirs := []string{"."}
		for i := range 2000 {
			path := filepath.Join(dirs[rng.IntN(len(dirs))], fmt.Sprintf("%x-%s", i, strings.Repeat("é", rng.IntN(100))))
			var err error
			if rng.IntN(4) == 0 && strings.Count(path, "/") < 30 && len(path) < 3000 {
				err = w.Mkdir(path, Attr{Mode: 0o755, Xattrs: map[string]string{"user.x": strings.Repeat("v", rng.IntN(3000))}})
				dirs = append(dirs, path)
				want[path] = "dir"
			} else {
				data := strings.Repeat(fmt.Sprint(i), rng.IntN(3000))
				err = w.File(path, Attr{Mode: 0o644}, strings.NewReader(data), 1<<30)
				want[path] = "file " + data
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	got := map[string]string{}
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(at, path)
		if d.IsDir() {
			got[rel] = "dir"
			return nil
		}
		data, err := os.ReadFile(path)
		got[rel] = "file " + string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	delete(got, ".")
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%s differs", path)
		}
	}
}
