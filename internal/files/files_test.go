package files

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
)

// sandbox is a tree such as a sandbox's.
var sandbox = Tree{Base: "/workspace", Fixed: []string{"/proc", "/sys", "/dev", "/run/s0"}}

func code(err error) string {
	if err == nil {
		return ""
	}
	return errdefs.From(err).Code
}

func expect(t *testing.T, what string, err error, want string) {
	t.Helper()
	if got := code(err); got != want {
		t.Errorf("%s: code %q (%v), want %q", what, got, err, want)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := sandbox.Write(path, strings.NewReader(content), 1<<20); err != nil {
		t.Fatal(err)
	}
}

func TestB01_Resolve(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"a": "/workspace/a", "./a/./b": "/workspace/a/b", "/etc/passwd": "/etc/passwd", "//x//": "/x", "a..b": "/workspace/a..b", ".": "/workspace",
	} {
		if got, err := sandbox.Resolve(path); err != nil || got != want {
			t.Errorf("Resolve(%q) = %q, %v, want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"", "..", "../etc", "/a/../b", "a\x00b", strings.Repeat("a", maxPath+1)} {
		if got, err := sandbox.Resolve(path); code(err) != "invalid_request" {
			t.Errorf("Resolve(%q) = %q, %v", path, got, err)
		}
	}
}

func TestWriteAndOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "dir", "f")
	write(t, path, "one")
	if info, err := Stat(path); err != nil || info.Mode != "0644" || info.Size != 3 || info.Type != "file" || info.Name != "f" {
		t.Errorf("Stat = %+v, %v", info, err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, path, "two!")
	f, size, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, _ := io.ReadAll(f)
	if string(got) != "two!" || size != 4 {
		t.Errorf("read %q, size %d", got, size)
	}
	if info, _ := Stat(path); info.Mode != "0755" {
		t.Errorf("the mode became %s", info.Mode)
	}
}

func TestB06_WriteIsBoundedAndWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("n", 255))
	write(t, path, "old")
	expect(t, "one byte too many", sandbox.Write(path, strings.NewReader("12345"), 4), "file_too_large")
	expect(t, "a source that breaks", sandbox.Write(path, io.MultiReader(strings.NewReader("12"), broken{}), 4), "operation_failed")
	if b, _ := os.ReadFile(path); string(b) != "old" {
		t.Errorf("the file holds %q", b)
	}
	if err := sandbox.Write(path, strings.NewReader("1234"), 4); err != nil {
		t.Errorf("exactly the limit: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestConcurrentWritersLeaveOneWholeFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := sandbox.Write(path, bytes.NewReader(bytes.Repeat([]byte{byte('a' + i)}, 1<<16)), 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b, _ := os.ReadFile(path)
	if len(b) != 1<<16 || len(bytes.Trim(b, string(b[:1]))) != 0 {
		t.Errorf("%d bytes, not all alike", len(b))
	}
}

func TestWriteFollowsASymlink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "real"), "old")
	link, dangling := filepath.Join(dir, "link"), filepath.Join(dir, "dangling")
	for l, to := range map[string]string{link: "real", dangling: "nowhere"} {
		if err := os.Symlink(to, l); err != nil {
			t.Fatal(err)
		}
	}
	write(t, link, "new")
	if info, _ := Stat(link); !info.IsLink || info.LinkTarget != "real" || info.Type != "symlink" {
		t.Errorf("the link became %+v", info)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "real")); string(b) != "new" {
		t.Errorf("its target holds %q", b)
	}
	expect(t, "writing through a dangling link", sandbox.Write(dangling, strings.NewReader(""), 1), "path_exists")
}

func TestB03_OnlyRegularFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		fifo: "invalid_request", "/dev/zero": "invalid_request", "/proc/self/mem": "invalid_request", "/proc/meminfo": "invalid_request",
		dir: "path_not_file", filepath.Join(dir, "none"): "file_not_found", filepath.Join(fifo, "below"): "path_not_directory",
	} {
		f, _, err := Open(path)
		expect(t, "reading "+path, err, want)
		if err == nil {
			f.Close()
		}
	}
	expect(t, "writing a FIFO", sandbox.Write(fifo, strings.NewReader("x"), 1), "invalid_request")
	expect(t, "writing a directory", sandbox.Write(dir, strings.NewReader("x"), 1), "path_not_file")
}

func TestMkdir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "")
	deep := filepath.Join(dir, "a", "b")
	expect(t, "without parents", sandbox.Mkdir(deep, false), "directory_not_found")
	expect(t, "recursive", sandbox.Mkdir(deep, true), "")
	expect(t, "recursive again", sandbox.Mkdir(deep, true), "")
	expect(t, "again", sandbox.Mkdir(deep, false), "path_exists")
	expect(t, "over a file", sandbox.Mkdir(file, false), "path_exists")
	expect(t, "recursive over a file", sandbox.Mkdir(file, true), "path_not_directory")
	expect(t, "below a file", sandbox.Mkdir(filepath.Join(file, "x"), false), "path_not_directory")
}

func TestRemove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "keep", "f"), "x")
	if err := os.Symlink(filepath.Join(dir, "keep"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	expect(t, "a symlink", sandbox.Remove(filepath.Join(dir, "link")), "")
	if _, err := os.Stat(filepath.Join(dir, "keep", "f")); err != nil {
		t.Error("removing a link removed what it points to")
	}
	expect(t, "a tree", sandbox.Remove(filepath.Join(dir, "keep")), "")
	expect(t, "nothing", sandbox.Remove(filepath.Join(dir, "keep")), "")
	for _, path := range []string{"/", "/proc", "/proc/1", "/dev/null", "/run", "/run/s0", "/run/s0/node.sock", "/sys"} {
		if !sandbox.fixed(path) {
			t.Errorf("%s is not fixed", path)
		}
	}
	link := filepath.Join(dir, "elsewhere")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	if !sandbox.fixed(link+"/proc") || sandbox.fixed(link) {
		t.Error("a foundation is not fixed behind a symlink, or the symlink itself is")
	}
	for _, path := range []string{"/workspace", "/run/x", "/device", "/runner"} {
		if sandbox.fixed(path) {
			t.Errorf("%s is fixed", path)
		}
	}
}

func TestMove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("a"), "a")
	write(t, at("b"), "b")
	expect(t, "onto another", sandbox.Move(t.Context(), at("a"), at("b")), "path_exists")
	expect(t, "nothing", sandbox.Move(t.Context(), at("none"), at("c")), "file_not_found")
	expect(t, "into nowhere", sandbox.Move(t.Context(), at("a"), at("no/c")), "directory_not_found")
	expect(t, "a file", sandbox.Move(t.Context(), at("a"), at("c")), "")
	if b, _ := os.ReadFile(at("c")); string(b) != "a" {
		t.Errorf("moved file holds %q", b)
	}
	expect(t, "a directory", sandbox.Mkdir(at("d"), false), "")
	expect(t, "into itself", sandbox.Move(t.Context(), at("d"), at("d/e")), "invalid_request")
}

func TestList(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"b", "a", "c/d"} {
		write(t, filepath.Join(dir, name), "x")
	}
	entries, err := List(dir)
	if err != nil || len(entries) != 3 || entries[0].Name != "a" || entries[2].Type != "dir" || entries[2].Path != filepath.Join(dir, "c") {
		t.Errorf("List = %+v, %v", entries, err)
	}
	if empty, err := List(t.TempDir()); err != nil || empty == nil || len(empty) != 0 {
		t.Errorf("an empty directory lists as %v, %v", empty, err)
	}
	_, err = List(filepath.Join(dir, "none"))
	expect(t, "nothing", err, "directory_not_found")
	_, err = List(filepath.Join(dir, "a"))
	expect(t, "a file", err, "path_not_directory")
}

// B02: while a directory and a symlink to another one are exchanged all the time, a
// file in it is read whole and written whole, in one or the other; and a FIFO that
// appears in its place is waited for by nobody.
func TestB02_PathsThatSwap(t *testing.T) {
	t.Parallel()
	box := t.TempDir()
	path := func(elem ...string) string { return filepath.Join(append([]string{box}, elem...)...) }
	write(t, path("d", "f"), "1111")
	write(t, path("other", "f"), "1111")
	if err := errors.Join(os.Mkdir(path("fifo"), 0o755), unix.Mkfifo(path("fifo", "f"), 0o644), os.Symlink("other", path("s1")), os.Symlink("fifo", path("s2"))); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			for _, s := range []string{"s1", "s2"} {
				for range 2 {
					_ = unix.Renameat2(unix.AT_FDCWD, path("d"), unix.AT_FDCWD, path(s), unix.RENAME_EXCHANGE)
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for range 1000 {
		if f, size, err := Open(path("d", "f")); err == nil {
			b, err := io.ReadAll(io.LimitReader(f, size))
			if f.Close(); err != nil || len(b) != 4 {
				t.Errorf("read %q, %v", b, err)
			}
		} else if code(err) == "operation_failed" {
			t.Errorf("reading: %v", err)
		}
		// Where the FIFO is, it is refused.
		if err := sandbox.Write(path("d", "f"), strings.NewReader("2222"), 4); code(err) == "operation_failed" {
			t.Errorf("writing: %v", err)
		}
	}
	close(stop)
	<-stopped
	for _, dir := range []string{"d", "other", "s1"} {
		entries, err := os.ReadDir(path(dir))
		if err != nil || len(entries) != 1 {
			t.Errorf("in %s there is %v, %v", dir, entries, err)
		}
	}
}
