// Package posix says what programs may expect of a directory, case by case.
//
// A case works in an empty directory of its own and needs root, on the host as inside a
// sandbox. What it finds to be otherwise is its error. The package knows no file system: what
// one can't do is for its tests to leave out, by name.
package posix

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Case is one expectation.
type Case struct {
	Name  string
	Check func(dir string) error
}

// Run runs all cases but those that are left out, each in a new directory below dir, and
// answers what is wrong, by case.
func Run(dir string, leaveOut ...string) map[string]error {
	failed := map[string]error{}
	for i, c := range Cases {
		if slices.Contains(leaveOut, c.Name) {
			continue
		}
		at := filepath.Join(dir, fmt.Sprint("case", i))
		err := os.Mkdir(at, 0o755)
		if err == nil {
			err = errors.Join(c.Check(at), os.RemoveAll(at))
		}
		if err != nil {
			failed[c.Name] = err
		}
	}
	return failed
}

// Cases are all expectations.
var Cases = []Case{
	{"create exclusively", createExclusively},
	{"modes and the umask", modes},
	{"rename over a file", renameOver},
	{"rename over nothing", renameNoReplace},
	{"rename of directories", renameDirs},
	{"hard links", hardLinks},
	{"an unlinked file that is open", unlinkedOpen},
	{"symlinks", symlinks},
	{"owners", owners},
	{"truncate", truncate},
	{"holes", holes},
	{"fallocate", allocate},
	{"append", appends},
	{"times", times},
	{"directories that are not empty", notEmpty},
	{"readdir while files go", readdirWhileFilesGo},
	{"names", names},
	{"extended attributes", xattrs},
	{"flock", flocks},
	{"record locks", recordLocks},
	{"shared mappings", mappings},
	{"fsync", syncs},
	{"fifos", fifos},
}

// wantErr wants a call to fail.
func wantErr(what string, err error, want unix.Errno) error {
	if errors.Is(err, want) {
		return nil
	}
	return fmt.Errorf("%s: %w, want %q", what, errors.Join(err, errors.New("it ended")), want)
}

func want[T comparable](what string, got, want T) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("%s: %v, want %v", what, got, want)
}

func stat(path string) *unix.Stat_t {
	st := new(unix.Stat_t)
	_ = unix.Lstat(path, st) // what is not there is zero
	return st
}

func put(path, content string) error { return os.WriteFile(path, []byte(content), 0o644) }

func holds(path, content string) error {
	b, err := os.ReadFile(path)
	return errors.Join(err, want(filepath.Base(path), string(b), content))
}

func createExclusively(dir string) error {
	p := filepath.Join(dir, "f")
	f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, again := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	_, missing := os.Open(filepath.Join(dir, "none"))
	_, through := os.Open(filepath.Join(p, "x"))
	_, asDir := os.OpenFile(dir, os.O_WRONLY, 0)
	return errors.Join(
		wantErr("again", again, unix.EEXIST), wantErr("what is not there", missing, unix.ENOENT),
		wantErr("through a file", through, unix.ENOTDIR), wantErr("a directory for writing", asDir, unix.EISDIR),
	)
}

func modes(dir string) error {
	p := filepath.Join(dir, "f")
	old := unix.Umask(0o027)
	err := os.WriteFile(p, nil, 0o666)
	unix.Umask(old)
	err = errors.Join(err, want("mode with a umask", stat(p).Mode&0o7777, 0o640))
	for _, mode := range []uint32{0, 0o777, 0o4755, 0o2755, 0o1777} {
		err = errors.Join(err, unix.Chmod(p, mode), want("mode", stat(p).Mode&0o7777, mode))
	}
	return err
}

func renameOver(dir string) error {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	err := errors.Join(put(a, "new"), put(b, "old"))
	open, oerr := os.Open(b)
	if err = errors.Join(err, oerr); err != nil {
		return err
	}
	defer open.Close()
	ino := stat(a).Ino
	err = errors.Join(os.Rename(a, b), holds(b, "new"), want("inode", stat(b).Ino, ino))
	was := make([]byte, 3)
	_, rerr := open.ReadAt(was, 0)
	_, gone := os.Lstat(a)
	return errors.Join(err, rerr, want("who has the old one open", string(was), "old"), wantErr("the old name", gone, unix.ENOENT))
}

func renameNoReplace(dir string) error {
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	rename := func(from, to string) error {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	}
	err := errors.Join(put(a, "a"), put(b, "b"))
	return errors.Join(err, wantErr("replacing", rename(a, b), unix.EEXIST), rename(a, c), holds(c, "a"), holds(b, "b"))
}

func renameDirs(dir string) error {
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	err := errors.Join(os.Mkdir(a, 0o755), put(filepath.Join(a, "f"), "x"), os.Mkdir(b, 0o755), os.Mkdir(c, 0o755), put(filepath.Join(c, "f"), "y"))
	return errors.Join(err,
		unix.Rename(a, b), holds(filepath.Join(b, "f"), "x"),
		wantErr("onto one that is not empty", unix.Rename(b, c), unix.ENOTEMPTY),
		wantErr("into itself", unix.Rename(b, filepath.Join(b, "x")), unix.EINVAL),
		wantErr("onto a file", unix.Rename(b, filepath.Join(c, "f")), unix.ENOTDIR),
		wantErr("a file onto one", unix.Rename(filepath.Join(c, "f"), b), unix.EISDIR),
	)
}

func hardLinks(dir string) error {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	err := errors.Join(put(a, "x"), os.Link(a, b), put(b, "longer"))
	return errors.Join(err, holds(a, "longer"), want("inode", stat(a).Ino, stat(b).Ino), want("links", uint64(stat(a).Nlink), 2),
		wantErr("onto what is there", os.Link(a, b), unix.EEXIST), wantErr("of a directory", os.Link(dir, filepath.Join(dir, "d")), unix.EPERM),
		os.Remove(a), holds(b, "longer"), want("links", uint64(stat(b).Nlink), 1))
}

func unlinkedOpen(dir string) error {
	p := filepath.Join(dir, "f")
	f, err := os.OpenFile(p, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = os.Remove(p)
	_, werr := f.WriteString("still")
	b := make([]byte, 5)
	_, rerr := f.ReadAt(b, 0)
	var st unix.Stat_t
	return errors.Join(err, werr, rerr, want("content", string(b), "still"), unix.Fstat(int(f.Fd()), &st), want("links", uint64(st.Nlink), 0),
		put(p, "another"), holds(p, "another"))
}

func symlinks(dir string) error {
	l, loop := filepath.Join(dir, "l"), filepath.Join(dir, "loop")
	err := errors.Join(os.Symlink("f", l), os.Symlink("loop", loop), put(filepath.Join(dir, "f"), "x"), holds(l, "x"))
	to, rerr := os.Readlink(l)
	_, looped := os.Open(loop)
	_, direct := unix.Open(l, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	return errors.Join(err, rerr, want("target", to, "f"), want("size", stat(l).Size, 1), wantErr("a loop", looped, unix.ELOOP), wantErr("not followed", direct, unix.ELOOP),
		wantErr("again", os.Symlink("f", l), unix.EEXIST), os.Remove(l), holds(filepath.Join(dir, "f"), "x"))
}

func owners(dir string) error {
	p, l := filepath.Join(dir, "f"), filepath.Join(dir, "l")
	err := errors.Join(put(p, ""), unix.Chmod(p, 0o6755), os.Chown(p, 1234, 2345), os.Symlink("f", l), os.Lchown(l, 7, 8))
	return errors.Join(err, want("owner", stat(p).Uid, 1234), want("group", stat(p).Gid, 2345), want("a symlink's owner", stat(l).Uid, 7),
		want("mode when somebody else owns it", stat(p).Mode&0o7777, 0o755))
}

func truncate(dir string) error {
	p := filepath.Join(dir, "f")
	return errors.Join(put(p, "0123456789"), os.Truncate(p, 3), holds(p, "012"), os.Truncate(p, 6), holds(p, "012\x00\x00\x00"),
		wantErr("a directory", unix.Truncate(dir, 0), unix.EISDIR), wantErr("to less than nothing", unix.Truncate(p, -1), unix.EINVAL))
}

func holes(dir string) error {
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	defer f.Close()
	const at = 32 << 20
	_, err = f.WriteAt([]byte("end"), at)
	b := bytes.Repeat([]byte{1}, 4096)
	_, rerr := f.ReadAt(b, at/2)
	st := stat(f.Name())
	if st.Blocks*512 > at/2 {
		err = errors.Join(err, fmt.Errorf("%d bytes are allocated of 3", st.Blocks*512))
	}
	return errors.Join(err, rerr, want("size", st.Size, at+3), want("what is in a hole", string(b), string(make([]byte, 4096))))
}

func allocate(dir string) error {
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 10000), want("size", stat(f.Name()).Size, 10000))
}

func appends(dir string) error {
	p := filepath.Join(dir, "f")
	open := func() (*os.File, error) { return os.OpenFile(p, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) }
	a, err := open()
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := open()
	if err != nil {
		return err
	}
	defer b.Close()
	for range 3 {
		_, first := a.WriteString("a")
		_, second := b.WriteString("b")
		err = errors.Join(err, first, second)
	}
	return errors.Join(err, holds(p, "ababab"))
}

func times(dir string) error {
	p := filepath.Join(dir, "f")
	then := time.Unix(1_000_000_000, 123_456_789)
	err := errors.Join(put(p, "x"), os.Chtimes(p, then, then), want("mtime", stat(p).Mtim.Nano(), then.UnixNano()))
	before := stat(dir).Mtim.Nano()
	for end := time.Now().Add(time.Minute); stat(dir).Mtim.Nano() == before && time.Now().Before(end); {
		err = errors.Join(err, put(filepath.Join(dir, "g"), ""), os.Remove(filepath.Join(dir, "g")))
	}
	if stat(dir).Mtim.Nano() == before {
		err = errors.Join(err, errors.New("a directory's time does not change with what is in it"))
	}
	return errors.Join(err, put(p, "y"), want("a write changes it", stat(p).Mtim.Nano() > then.UnixNano(), true))
}

func notEmpty(dir string) error {
	d := filepath.Join(dir, "d")
	err := errors.Join(os.Mkdir(d, 0o755), put(filepath.Join(d, "f"), ""))
	return errors.Join(err, wantErr("again", unix.Mkdir(d, 0o755), unix.EEXIST), wantErr("not empty", unix.Rmdir(d), unix.ENOTEMPTY),
		wantErr("of a file", unix.Rmdir(filepath.Join(d, "f")), unix.ENOTDIR), wantErr("unlink of one", unix.Unlink(d), unix.EISDIR),
		os.Remove(filepath.Join(d, "f")), unix.Rmdir(d), wantErr("of nothing", unix.Rmdir(d), unix.ENOENT))
}

func readdirWhileFilesGo(dir string) error {
	const count = 600
	for i := range count {
		if err := put(filepath.Join(dir, fmt.Sprint(i)), ""); err != nil {
			return err
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	seen := map[string]bool{}
	for {
		list, err := f.Readdirnames(50)
		for _, name := range list {
			if seen[name] {
				return fmt.Errorf("%q comes twice", name)
			}
			seen[name] = true
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		if err != nil {
			break
		}
	}
	left, err := os.ReadDir(dir)
	return errors.Join(err, want("seen", len(seen), count), want("left", len(left), 0))
}

func names(dir string) error {
	long := string(bytes.Repeat([]byte("n"), 255))
	err := wantErr("a longer name", put(filepath.Join(dir, long+"n"), ""), unix.ENAMETOOLONG)
	for _, name := range []string{long, "\xff\xfe", "new\nline", " ", "…", "-rf"} {
		err = errors.Join(err, put(filepath.Join(dir, name), name), holds(filepath.Join(dir, name), name))
	}
	list, lerr := os.ReadDir(dir)
	return errors.Join(err, lerr, want("names", len(list), 6))
}

func xattrs(dir string) error {
	p := filepath.Join(dir, "f")
	err := errors.Join(put(p, ""), unix.Setxattr(p, "user.a", []byte("one"), unix.XATTR_CREATE),
		wantErr("again", unix.Setxattr(p, "user.a", nil, unix.XATTR_CREATE), unix.EEXIST),
		unix.Setxattr(p, "user.a", []byte("two"), unix.XATTR_REPLACE))
	b := make([]byte, 16)
	n, gerr := unix.Getxattr(p, "user.a", b)
	_, none := unix.Getxattr(p, "user.b", b)
	return errors.Join(err, gerr, want("value", string(b[:max(n, 0)]), "two"), wantErr("what is not there", none, unix.ENODATA),
		unix.Removexattr(p, "user.a"), wantErr("removed", unix.Removexattr(p, "user.a"), unix.ENODATA))
}

// two opens a file twice.
func two(dir string) (a, b *os.File, end func(), err error) {
	a, err = os.Create(filepath.Join(dir, "f"))
	if err != nil {
		return nil, nil, nil, err
	}
	if b, err = os.OpenFile(a.Name(), os.O_RDWR, 0); err != nil {
		a.Close()
		return nil, nil, nil, err
	}
	return a, b, func() { a.Close(); b.Close() }, nil
}

func flocks(dir string) error {
	a, b, end, err := two(dir)
	if err != nil {
		return err
	}
	defer end()
	return errors.Join(unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB),
		wantErr("a second one", unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK),
		unix.Flock(int(a.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB))
}

// recordLocks are those of an open file: one's own process has no conflict with itself else.
func recordLocks(dir string) error {
	a, _, end, err := two(dir)
	if err != nil {
		return err
	}
	defer end()
	lock := &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10}
	return errors.Join(unix.FcntlFlock(a.Fd(), unix.F_SETLK, lock), unix.FcntlFlock(a.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
}

func mappings(dir string) error {
	a, b, end, err := two(dir)
	if err != nil {
		return err
	}
	defer end()
	if err := a.Truncate(8192); err != nil {
		return err
	}
	first, err := unix.Mmap(int(a.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(first) }()
	second, err := unix.Mmap(int(b.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(second) }()
	copy(first[4094:], "mapped")
	_, werr := b.WriteAt([]byte("written"), 10)
	got := make([]byte, 6)
	_, rerr := b.ReadAt(got, 4094)
	return errors.Join(werr, rerr, want("read of what is mapped", string(got), "mapped"), want("the other mapping", string(second[4094:4100]), "mapped"),
		want("what was written, mapped", string(first[10:17]), "written"), unix.Msync(first, unix.MS_SYNC))
}

func syncs(dir string) error {
	a, _, end, err := two(dir)
	if err != nil {
		return err
	}
	defer end()
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = a.WriteString("x")
	return errors.Join(err, a.Sync(), unix.Fdatasync(int(a.Fd())), d.Sync())
}

func fifos(dir string) error {
	p := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(p, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("x")
	b := make([]byte, 1)
	_, rerr := f.Read(b)
	return errors.Join(err, rerr, want("kind", stat(p).Mode&unix.S_IFMT, unix.S_IFIFO), want("content", string(b), "x"))
}
