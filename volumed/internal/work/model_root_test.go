package work

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
)

var (
	seed  = flag.Uint64("seed", 0, "of the random checks; 0: any")
	steps = flag.Int("steps", 250, "of the random checks")
)

// bench is a working tier over a plain directory as the durable one.
type bench struct {
	t       *testing.T
	dir     string
	store   *store.Store
	manager *Manager
	spec    Volume
	copies  int // that were made of it
}

func newBench(t *testing.T) *bench {
	t.Helper()
	s0test.NeedRoot(t)
	dir, err := os.MkdirTemp("", "s0v") // short: paths are bounded
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, spec: Volume{ID: "vol", Team: "team", Epoch: 1, UID: 1000, GID: 1000}}
	if b.store, err = store.Open(store.Config{Dir: filepath.Join(dir, "tier"), Known: filepath.Join(dir, "known")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.unmountAll)
	b.restart()
	return b
}

func (b *bench) unmountAll() {
	mounts, err := layers.Mounts(b.dir)
	if err != nil {
		b.t.Error(err)
	}
	slices.Reverse(mounts)
	for _, at := range mounts {
		if err := layers.Unmount(at, true); err != nil {
			b.t.Errorf("unmounting %s: %v", at, err)
		}
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Error(err)
	}
}

// restart is what a kill of the process and a new one are.
func (b *bench) restart() {
	b.t.Helper()
	b.manager = New(Config{
		Store: b.store, Node: "node", DataDir: filepath.Join(b.dir, "data"), RunDir: filepath.Join(b.dir, "run"),
		Sync: func() error { return nil }, Log: slog.New(slog.DiscardHandler),
	})
	if err := b.manager.Recover(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// reboot also takes the mounts.
func (b *bench) reboot() {
	b.t.Helper()
	mounts, err := layers.Mounts(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	slices.Reverse(mounts)
	for _, at := range mounts {
		if err := layers.Unmount(at, false); err != nil {
			b.t.Fatal(err)
		}
	}
	b.restart()
}

func (b *bench) use() string {
	b.t.Helper()
	at, err := b.manager.Use(b.t.Context(), b.spec, "mount", false)
	if err != nil {
		b.t.Fatal(err)
	}
	return at
}

func (b *bench) commit() store.Version {
	b.t.Helper()
	head, clean, err := b.manager.Commit(b.t.Context(), b.spec.ID)
	if err != nil || !clean {
		b.t.Fatalf("commit: clean %v, %v", clean, err)
	}
	return head
}

// committed is what a reader sees.
func (b *bench) committed() map[string]string {
	b.t.Helper()
	at, err := b.manager.Use(b.t.Context(), b.spec, "reader", true)
	if err != nil {
		b.t.Fatal(err)
	}
	seen := describe(b.t, at)
	if err := b.manager.Leave(b.t.Context(), b.spec.ID, "reader"); err != nil {
		b.t.Fatal(err)
	}
	return seen
}

// describe says all that a volume keeps of a tree.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		s := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		switch {
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %d %x %d", len(data), sha256.Sum256(data), st.Mtim.Nano())
		case d.Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += " -> " + to
		}
		var value [256]byte
		if n, err := unix.Lgetxattr(path, "user.x", value[:]); err == nil {
			s += " x=" + string(value[:n])
		}
		all[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compare(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Errorf("%s: %q is %q, want %q", what, path, got[path], want[path])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: %q is there, %q", what, path, got[path])
		}
	}
}

// actor does the same to a volume and to a directory beside it.
type actor struct {
	t    *testing.T
	rng  *rand.Rand
	dirs [2]string // the volume, and the model
	n    int
}

// path is one of few, so that things meet.
func (a *actor) path() string {
	parts := make([]string, 1+a.rng.IntN(3))
	for i := range parts {
		parts[i] = string(rune('a' + a.rng.IntN(4)))
	}
	return filepath.Join(parts...)
}

// both does something in both places, which must end alike.
func (a *actor) both(what string, do func(root string) error) {
	a.t.Helper()
	here, there := do(a.dirs[0]), do(a.dirs[1])
	if (here == nil) != (there == nil) {
		a.t.Fatalf("%s: %v in the volume, %v beside it", what, here, there)
	}
}

func (a *actor) step() {
	a.n++
	p, q := a.path(), a.path()
	data := []byte(strings.Repeat(fmt.Sprint(a.n, " "), a.rng.IntN(5000)))
	at := int64(a.rng.IntN(20000))
	stamp := unix.NsecToTimespec(1_700_000_000_000_000_000 + int64(a.n))
	stampIt := func(path string) error { // what was written to: through a symlink, as that was
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stamp, stamp}, 0)
	}
	switch a.rng.IntN(12) {
	case 0, 1:
		a.both("write "+p, func(r string) error {
			f, err := os.OpenFile(filepath.Join(r, p), os.O_CREATE|os.O_WRONLY, 0o640)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(data, at)
			return errors.Join(err, f.Close(), stampIt(filepath.Join(r, p)))
		})
	case 2:
		a.both("truncate "+p, func(r string) error {
			return errors.Join(os.Truncate(filepath.Join(r, p), at/2), stampIt(filepath.Join(r, p)))
		})
	case 3, 4:
		a.both("mkdir "+p, func(r string) error { return os.MkdirAll(filepath.Join(r, p), 0o750) })
	case 5:
		a.rename(p, q)
	case 6:
		a.both("remove "+p, func(r string) error { return os.Remove(filepath.Join(r, p)) })
	case 7:
		a.both("remove all "+p, func(r string) error { return os.RemoveAll(filepath.Join(r, p)) })
	case 8:
		a.both("symlink "+p, func(r string) error { return os.Symlink(q, filepath.Join(r, p)) })
	case 9:
		a.both("link "+p, func(r string) error { return os.Link(filepath.Join(r, p), filepath.Join(r, q)) })
	case 10:
		a.both("attributes of "+p, func(r string) error {
			path := filepath.Join(r, p)
			if fi, err := os.Lstat(path); err != nil || fi.Mode()&fs.ModeType&^fs.ModeDir != 0 {
				return err
			}
			return errors.Join(os.Chmod(path, fs.FileMode(0o600+a.n%64)), os.Lchown(path, a.n, 5), unix.Lsetxattr(path, "user.x", []byte(fmt.Sprint(a.n)), 0))
		})
	case 11:
		// Under a name of its own: to open one waits for another side.
		a.both("fifo "+p, func(r string) error { return unix.Mkfifo(filepath.Join(r, filepath.Dir(p), "fifo"), 0o600) })
	}
}

// rename of a directory that lies below is a copy for the program to make.
func (a *actor) rename(p, q string) {
	err := os.Rename(filepath.Join(a.dirs[0], p), filepath.Join(a.dirs[0], q))
	if errors.Is(err, unix.EXDEV) {
		return
	}
	other := os.Rename(filepath.Join(a.dirs[1], p), filepath.Join(a.dirs[1], q))
	if (err == nil) != (other == nil) {
		a.t.Fatalf("rename %s %s: %v in the volume, %v beside it", p, q, err, other)
	}
}

// splitLinks: of a file with several names that lies below, each is one of its own once
// it is written to, and of a symlink at once. So they are made one of their own in both
// places, as the directory beside the volume has them.
func (a *actor) splitLinks() {
	seen := map[uint64]bool{}
	err := filepath.WalkDir(a.dirs[1], func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(path, &st)); err != nil || d.IsDir() || st.Nlink < 2 {
			return err
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			return nil
		}
		rel, err := filepath.Rel(a.dirs[1], path)
		return errors.Join(err, os.Remove(path), os.Remove(filepath.Join(a.dirs[0], rel)))
	})
	if err != nil {
		a.t.Fatal(err)
	}
}

// A volume is what a plain directory is, whatever is done to it and however often it is
// committed, merged, mounted anew, killed and rebooted (X46).
func TestX46_RandomWorkIsWhatADirectoryWouldBe(t *testing.T) {
	b := newBench(t)
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d repeats this", s)
	if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
		t.Fatal(err)
	}
	a := &actor{t: t, rng: rand.New(rand.NewPCG(s, 0)), dirs: [2]string{b.use(), filepath.Join(b.dir, "model")}}
	if err := errors.Join(os.Mkdir(a.dirs[1], 0o755), os.Chown(a.dirs[1], 1000, 1000), os.Chmod(a.dirs[1], 0o755)); err != nil {
		t.Fatal(err)
	}
	for range *steps {
		a.step()
		switch a.rng.IntN(40) {
		case 0, 1, 2:
			b.commit()
			compare(t, "committed", b.committed(), describe(t, a.dirs[1]))
		case 3:
			b.commit()
			merge(t, b)
			compare(t, "merged", b.committed(), describe(t, a.dirs[1]))
		case 4:
			b.restart()
			b.use()
		case 5:
			b.reboot()
			b.use()
		case 7:
			token, want := b.capture(), describe(t, a.dirs[1])
			for range a.rng.IntN(5) {
				a.step()
			}
			if a.rng.IntN(2) == 0 {
				b.commit()
			}
			compare(t, "captured", b.fork(token), want)
		case 6:
			a.splitLinks()
			b.commit()
			if err := b.manager.Leave(context.Background(), "vol", "mount"); err != nil {
				t.Fatal(err)
			}
			if err := b.manager.Release(t.Context(), "vol", b.spec.Epoch); err != nil {
				t.Fatal(err)
			}
			b.spec.Epoch++
			b.use()
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	compare(t, "the volume", describe(t, a.dirs[0]), describe(t, a.dirs[1]))
	head := b.commit()
	compare(t, "committed", b.committed(), describe(t, a.dirs[1]))
	checkSize(t, head, a.dirs[1])
}

func merge(t *testing.T, b *bench) {
	t.Helper()
	v, done, err := b.manager.take(t.Context(), "vol")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if err := b.manager.mergeSome(t.Context(), v); err != nil {
		t.Fatal(err)
	}
}

func checkSize(t *testing.T, head store.Version, model string) {
	t.Helper()
	var bytes, files int64
	err := filepath.WalkDir(model, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == model {
			return err
		}
		files++
		info, err := d.Info()
		if err == nil && d.Type().IsRegular() {
			bytes += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if head.Bytes != bytes || head.Files != files {
		t.Errorf("the volume says %d bytes in %d files; there are %d in %d", head.Bytes, head.Files, bytes, files)
	}
}
