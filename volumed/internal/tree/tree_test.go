package tree

import (
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// entry reads "dir", "dir!" (opaque), "file", "gone" with an inode number.
func entry(kind string, ino uint64) Entry {
	e := Entry{Ino: ino, Ctime: int64(ino) + 1}
	switch strings.TrimSuffix(kind, "!") {
	case "dir":
		e.Kind, e.Opaque = Dir, strings.HasSuffix(kind, "!")
	case "file":
		e.Kind = File
	}
	return e
}

func TestDiff(t *testing.T) {
	t.Parallel()
	root := entry("dir", 1)
	for name, c := range map[string]struct {
		old, now Tree
		want     string // path, with ! opaque and - gone
	}{
		"nothing":                 {Tree{"a": entry("file", 2)}, Tree{"a": entry("file", 2)}, "."},
		"new":                     {Tree{}, Tree{"d": entry("dir", 2), "d/f": entry("file", 3)}, ". d d/f"},
		"changed":                 {Tree{"a": entry("file", 2)}, Tree{"a": entry("file", 3)}, ". a"},
		"uncertain":               {Tree{"a": Entry{Kind: File, Ino: 2}}, Tree{"a": Entry{Kind: File, Ino: 2}}, ". a"},
		"gone":                    {Tree{"a": entry("file", 2)}, Tree{}, ". a-"},
		"hidden below":            {Tree{}, Tree{"a": entry("gone", 2)}, ". a-"},
		"deep change":             {Tree{"d": entry("dir", 2), "d/e": entry("dir", 3), "d/e/f": entry("file", 4)}, Tree{"d": entry("dir", 2), "d/e": entry("dir", 3), "d/e/f": entry("file", 5)}, ". d d/e d/e/f"},
		"gone with its directory": {Tree{"d": entry("dir", 2), "d/f": entry("file", 3)}, Tree{}, ". d-"},
		"another directory": {
			Tree{"d": entry("dir", 2), "d/f": entry("file", 3), "d/g": entry("file", 4)},
			Tree{"d": entry("dir", 9), "d/f": entry("file", 3)}, ". d! d/f",
		},
		"another directory, same number": {
			Tree{"d": entry("dir", 2), "d/f": entry("file", 3)},
			Tree{"d": entry("dir!", 2), "d/f": entry("file", 3)}, ". d! d/f",
		},
		"a file became a directory": {Tree{"a": entry("file", 2)}, Tree{"a": entry("dir", 3), "a/b": entry("file", 4)}, ". a! a/b"},
		"a directory became a file": {Tree{"a": entry("dir", 2), "a/b": entry("file", 3)}, Tree{"a": entry("file", 4)}, ". a"},
		"swapped, with hard links": {
			Tree{"a": entry("dir", 2), "a/f": entry("file", 4), "b": entry("dir", 3), "b/f": entry("file", 4)},
			Tree{"a": entry("dir", 3), "a/f": entry("file", 4), "b": entry("dir", 2), "b/f": entry("file", 4)}, ". a! a/f b! b/f",
		},
		"a directory in another one that is new": {
			Tree{"d": entry("dir", 2), "d/e": entry("dir", 3)},
			Tree{"d": entry("dir", 8), "d/e": entry("dir", 3), "d/e/f": entry("file", 5)}, ". d! d/e! d/e/f",
		},
	} {
		c.old["."], c.now["."] = root, root
		var got []string
		for _, change := range Diff(c.old, c.now) {
			s := change.Path
			switch {
			case change.Entry.Kind == Whiteout:
				s += "-"
			case change.Entry.Opaque:
				s += "!"
			}
			got = append(got, s)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
	}
}

func scanOf(t *testing.T, dir string, limit int) (Tree, error) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return Scan(t.Context(), f, limit)
}

// A walk never leaves the tree, however directories are swapped for symlinks under it.
func TestB05_ScanStaysInside(t *testing.T) {
	t.Parallel()
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	real, link := filepath.Join(dir, "d"), filepath.Join(dir, "l")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, real, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 2000 {
		tree, err := scanOf(t, dir, 100)
		if err != nil {
			t.Fatal(err)
		}
		for path := range tree {
			if strings.Contains(path, "secret") {
				t.Fatalf("the walk has found %s", path)
			}
		}
	}
}

func TestB04_ScanIsBounded(t *testing.T) {
	t.Parallel()
	wide := t.TempDir()
	for i := range 50 {
		if err := os.WriteFile(filepath.Join(wide, strings.Repeat("x", i+1)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := scanOf(t, wide, 20); !errors.Is(err, ErrTooMuch) {
		t.Errorf("too many entries: %v", err)
	}
	deep := t.TempDir()
	fd, err := unix.Open(deep, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range maxDepth + 10 { // longer than any path
		if err := unix.Mkdirat(fd, "directory", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "directory", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = next
	}
	_ = unix.Close(fd)
	if _, err := scanOf(t, deep, 1<<20); !errors.Is(err, ErrTooMuch) {
		t.Errorf("too deep: %v", err)
	}
}

// Whatever two trees are, to look at what may have changed alone finds what looking at
// everything does.
func TestDiffLooksAtEnough(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	random := func() Tree {
		all := Tree{".": {Kind: Dir, Ino: 1, Ctime: 1}}
		var fill func(dir string, depth int)
		fill = func(dir string, depth int) {
			for _, name := range []string{"a", "b", "c"} {
				if rng.IntN(3) == 0 {
					continue
				}
				at := join(dir, name)
				e := Entry{Kind: []Kind{Whiteout, Dir, Dir, File, File}[rng.IntN(5)], Ino: rng.Uint64N(3), Ctime: rng.Int64N(4)}
				e.Opaque = e.Kind == Dir && rng.IntN(4) == 0
				all[at] = e
				if e.Kind == Dir && depth < 3 {
					fill(at, depth+1)
				}
			}
		}
		fill(".", 0)
		return all
	}
	few := 0
	for range 3000 {
		old := random()
		now := random()
		if rng.IntN(2) == 0 { // little has changed
			now = maps.Clone(old)
			for p, e := range now {
				if e.Kind == File && rng.IntN(3) == 0 {
					e.Ctime++
					now[p] = e
				}
			}
		}
		if len(candidates(old, now)) < len(now) {
			few++
		}
		got, want := Diff(old, now), diff(old, now, inOrder(now))
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: of %v to %v\ngot  %v\nwant %v", seed, old, now, got, want)
		}
	}
	if few == 0 {
		t.Error("everything is always looked at")
	}
}
