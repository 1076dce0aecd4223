package walk

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func walked(t *testing.T, root string, skip ...string) []string {
	t.Helper()
	var seen []string
	must(t, Walk(root, func(e *Entry) error {
		seen = append(seen, e.Path)
		if slices.Contains(skip, e.Path) {
			return SkipDir
		}
		return nil
	}))
	return seen
}

func TestWalk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "b/c"), 0o755), os.WriteFile(filepath.Join(dir, "b/c/f"), nil, 0o644),
		os.Mkdir(filepath.Join(dir, "d"), 0o755), os.WriteFile(filepath.Join(dir, "d/g"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "a"), nil, 0o644), os.Symlink("b", filepath.Join(dir, "link")))
	if got, want := walked(t, dir), []string{".", "a", "b", "b/c", "b/c/f", "d", "d/g", "link"}; !slices.Equal(got, want) {
		t.Errorf("visited %q, want %q", got, want)
	}
	if got, want := walked(t, dir, "b/c", "d", "a"), []string{".", "a", "b", "b/c", "d", "link"}; !slices.Equal(got, want) {
		t.Errorf("visited %q, want %q", got, want)
	}
	if got, want := walked(t, filepath.Join(dir, "link")), []string{".", "c", "c/f"}; !slices.Equal(got, want) {
		t.Errorf("from a symlink: %q, want %q", got, want)
	}
	if err := Walk(filepath.Join(dir, "a"), nil); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	stop := errors.New("stop")
	if err := Walk(dir, func(*Entry) error { return stop }); err != stop {
		t.Errorf("a visitor's error became %v", err)
	}
}

// Every file of a large directory is visited, once.
func TestLargeDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const n = 2*batch + 10
	for i := range n {
		must(t, os.Symlink("x", filepath.Join(dir, strings.Repeat("l", i/1000+1)+string(rune('0'+i%10))+string(rune('a'+i/10%10))+string(rune('A'+i/100%10)))))
	}
	seen := map[string]bool{}
	must(t, Walk(dir, func(e *Entry) error {
		if seen[e.Path] {
			t.Errorf("%s was visited twice", e.Path)
		}
		seen[e.Path] = true
		return nil
	}))
	if len(seen) != n+1 {
		t.Errorf("%d entries were visited, want %d", len(seen), n+1)
	}
}

func TestDepthIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", MaxDepth+1)), 0o755))
	if err := Walk(dir, func(*Entry) error { return nil }); !errors.Is(err, ErrTooDeep) {
		t.Errorf("a deep tree: %v", err)
	}
}

// B03: what is no stored file is passed by, and nothing else is ever opened.
func TestB03_SpecialFiles(t *testing.T) {
	t.Parallel()
	if got := walked(t, "/proc"); len(got) > 0 {
		t.Errorf("in /proc %d entries were visited", len(got))
	}
	dir := t.TempDir()
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644), os.Symlink("/dev/zero", filepath.Join(dir, "zero")))
	must(t, Walk(dir, func(e *Entry) error {
		if f, err := e.Open(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: opened %v, %v", e.Path, f, err)
		}
		return nil
	}))
}

// B02: a file that turned into something else since it was seen is not opened, and a
// directory that did is not entered.
func TestB02_ChangesAfterTheLook(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644), os.Mkdir(filepath.Join(dir, "d"), 0o755),
		os.WriteFile(filepath.Join(dir, "f"), nil, 0o644), os.WriteFile(filepath.Join(dir, "p"), nil, 0o644))
	must(t, Walk(dir, func(e *Entry) error {
		path := filepath.Join(dir, e.Path)
		switch e.Path {
		case "d":
			must(t, os.Remove(path), os.Symlink(outside, path))
		case "f":
			must(t, os.Remove(path), os.Symlink(filepath.Join(outside, "secret"), path))
		case "p":
			must(t, os.Remove(path), unix.Mkfifo(path, 0o644))
		case ".":
			return nil
		default:
			t.Errorf("%s was visited", e.Path)
		}
		if f, err := e.Open(); err == nil {
			b, _ := io.ReadAll(f)
			t.Errorf("%s: opened, it holds %q", e.Path, b)
		}
		return nil
	}))
}

// What can't be looked at has not gone: a visitor who deletes what it has seen would lose
// the rest.
func TestAnErrorIsNoEnd(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("WALK_DIR"); dir != "" {
		if err := Walk(dir, func(*Entry) error { return nil }); !errors.Is(err, unix.EMFILE) {
			t.Errorf("without a descriptor for what is there: %v", err)
		}
		return
	}
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", 64)), 0o755))
	few := exec.Command("sh", "-c", `ulimit -n 32 && exec "$0" -test.run='^TestAnErrorIsNoEnd$'`, os.Args[0])
	few.Env = append(os.Environ(), "WALK_DIR="+dir)
	if out, err := few.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for err, want := range map[error]error{unix.ENOENT: nil, unix.ELOOP: nil, unix.ENOTDIR: nil, unix.ESTALE: nil, unix.EACCES: nil, unix.EIO: unix.EIO} {
		if got := passedBy(err); got != want {
			t.Errorf("%v becomes %v", err, got)
		}
	}
}
