// Package files reads and writes the files of a tree for callers that have a right to
// all of it.
//
// It runs where nothing but the tree is to be reached: inside a sandbox as its root, or
// in a process whose root is a volume's. So whoever calls may name every file there is,
// whatever symlinks lead to it; that nothing leads out is the kernel's part, and no code
// with another root ever opens such a path. What this package guards is its own process:
// it never blocks on a FIFO or a device, never reads more than a file had when it was
// opened, never writes more than it was told to, and never leaves half a file under the
// name that was asked for. It keeps no state.
package files

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files/walk"
	"s0.run/internal/procapi"
)

const (
	maxPath = 4095 // PATH_MAX without its NUL

	// Bounds of one listing: its JSON, with escapes, stays within procapi.MaxJSONBytes.
	maxEntries   = 50_000
	maxListBytes = procapi.MaxJSONBytes * 3 / 4
	entryBytes   = 150 // of an entry without its name

	copyBuffer   = 256 << 10
	resolveTries = 3

	newDirMode  = 0o755
	newFileMode = 0o644
)

// Tree is where the paths of calls lead.
type Tree struct {
	Base    string   // relative paths lie below it
	Fixed   []string // what must not be removed or moved, with what it is in and what is in it; so is the root
	Durable bool     // a change is on the disk when it is answered
	Copy    bool     // a directory that can't be renamed is copied: the tree is one file system
}

// Resolve gives the absolute path that a client means. NUL bytes, `..` elements and endless paths are refused.
func (t Tree) Resolve(path string) (string, error) {
	switch {
	case path == "":
		return "", invalid("path is required")
	case len(path) > maxPath:
		return "", invalid("path has %d bytes, the limit is %d", len(path), maxPath)
	case strings.ContainsRune(path, 0):
		return "", invalid("path contains a NUL byte")
	}
	for element := range strings.SplitSeq(path, "/") {
		if element == ".." {
			return "", invalid("path contains `..`; send it without")
		}
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(t.Base, path)
	}
	return filepath.Clean(path), nil
}

// Open opens a regular file for reading and says how many bytes it has now: no
// more than these are to be read from it, however it grows.
func Open(path string) (*os.File, int64, error) {
	// O_NONBLOCK: opening a FIFO must not wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, Failure(err, "reading")
	}
	info, err := f.Stat()
	if err == nil {
		err = readable(f, info)
	}
	if err != nil {
		f.Close()
		return nil, 0, Failure(err, "reading")
	}
	return f, info.Size(), nil
}

func readable(f *os.File, info fs.FileInfo) error {
	if info.IsDir() {
		return notFile()
	}
	if !info.Mode().IsRegular() {
		return notRegular()
	}
	if walk.IsVirtual(f) {
		return invalid("the path is no stored file and has no size to be read by; run a command such as cat")
	}
	return nil
}

// Names under which content waits beside the place that it is meant for. Watches,
// searches and archives pass them by; who finds one left over may delete it.
const (
	StagedNew    = ".s0-new-"    // becomes a file that was not there
	StagedChange = ".s0-change-" // replaces a file
	StagedTree   = ".s0-tree-"   // becomes a directory, or is merged into one
)

// Staged reports whether a file's name is one of those.
func Staged(name string) bool {
	return strings.HasPrefix(name, StagedNew) || strings.HasPrefix(name, StagedChange) || strings.HasPrefix(name, StagedTree)
}

// Write replaces or creates the file with what r holds, at most limit bytes:
// under its name there is either the old content or all of the new. Missing
// parents are created; an existing file keeps its mode; a symlink is followed.
func (t Tree) Write(path string, r io.Reader, limit int64) error {
	path, old, err := target(path)
	if err != nil {
		return Failure(err, "writing")
	}
	staged, mode := StagedNew, fs.FileMode(newFileMode)
	if old != nil {
		staged, mode = StagedChange, old.Mode().Perm()
	}
	if err := t.mkdirAll(filepath.Dir(path)); err != nil {
		return Failure(err, "creating the parent directory")
	}
	// The directory is held: whatever takes its name meanwhile, what was begun in it
	// ends in it.
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return Failure(err, "writing")
	}
	defer dir.Close()
	staged += rand.Text()
	f, err := dir.OpenFile(staged, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Failure(err, "writing")
	}
	err = t.fill(f, r, limit, mode)
	if err == nil {
		err = dir.Rename(staged, filepath.Base(path))
	}
	if err != nil {
		_ = dir.Remove(staged) // who finds it left over may delete it
		return Failure(err, "writing")
	}
	return Failure(t.keep(filepath.Dir(path)), "writing")
}

// target follows symlinks to the file that shall be replaced; old is nil when there
// is none.
func target(path string) (real string, old fs.FileInfo, err error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(path); err == nil {
			return "", nil, conflict("path_exists", "the path is a symlink to a missing file")
		}
		return path, nil, nil
	case err != nil:
		return "", nil, err
	case info.IsDir():
		return "", nil, notFile()
	case !info.Mode().IsRegular():
		return "", nil, notRegular()
	}
	// A symlink that turns into a directory between two steps is EINVAL.
	for range resolveTries {
		if real, err = filepath.EvalSymlinks(path); !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return real, info, err
}

func (t Tree) fill(f *os.File, r io.Reader, limit int64, mode fs.FileMode) error {
	n, err := Copy(f, io.LimitReader(r, limit+1), make([]byte, copyBuffer))
	if err == nil && n > limit {
		err = TooLarge(limit)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && t.Durable {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Copy is io.CopyBuffer that fills buf before it writes: what comes over a connection
// comes in small pieces, and a system call is dear in a sandbox.
func Copy(w io.Writer, r io.Reader, buf []byte) (n int64, err error) {
	for err == nil {
		filled := 0
		for filled < len(buf) && err == nil {
			var m int
			m, err = r.Read(buf[filled:])
			filled += m
		}
		if filled > 0 {
			if _, err := w.Write(buf[:filled]); err != nil {
				return n, err
			}
			n += int64(filled)
		}
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// TooLarge is the answer to more than limit bytes.
func TooLarge(limit int64) error {
	return errdefs.WithCode(errdefs.TooLarge, "file_too_large", "the file is larger than %d bytes", limit)
}

// Mkdir makes a directory; with recursive also its parents, and one that is
// there already is fine.
func (t Tree) Mkdir(path string, recursive bool) error {
	if recursive {
		return Failure(t.mkdirAll(path), "creating a directory")
	}
	err := os.Mkdir(path, newDirMode)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound("directory_not_found", "the parent directory does not exist")
	}
	if err == nil {
		err = t.keep(filepath.Dir(path))
	}
	return Failure(err, "creating a directory")
}

// mkdirAll is os.MkdirAll for this tree.
func (t Tree) mkdirAll(path string) error {
	there := path
	for t.Durable && there != "/" {
		if _, err := os.Stat(there); err == nil {
			break
		}
		there = filepath.Dir(there)
	}
	if err := os.MkdirAll(path, newDirMode); err != nil {
		return err
	}
	var made []string // and where
	for dir := path; dir != there; dir = filepath.Dir(dir) {
		made = append(made, filepath.Dir(dir))
	}
	return t.keep(made...)
}

// keep has what changed in directories on the disk. One that has gone since is somebody
// else's change.
func (t Tree) keep(dirs ...string) error {
	if !t.Durable {
		return nil
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Remove deletes the path and everything below it, a symlink itself; nothing
// there is fine. What is fixed is refused.
func (t Tree) Remove(path string) error {
	if t.fixed(path) {
		return forbidden("%s is needed where it is", path)
	}
	err := os.RemoveAll(path)
	if err == nil {
		err = t.keep(filepath.Dir(path))
	}
	return Failure(err, "deleting")
}

// fixed reports whether path is, contains or lies in what is fixed, by whichever symlinks
// it leads there; the path itself is not followed.
func (t Tree) fixed(path string) bool {
	if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(parent, filepath.Base(path))
	}
	if path == "/" {
		return true
	}
	for _, f := range t.Fixed {
		if path == f || strings.HasPrefix(path, f+"/") || strings.HasPrefix(f, path+"/") {
			return true
		}
	}
	return false
}

// Move renames source to destination, which must not exist. A symlink is moved
// itself.
func (t Tree) Move(ctx context.Context, source, destination string) error {
	if t.fixed(source) || t.fixed(destination) {
		return forbidden("%s or %s is needed where it is", source, destination)
	}
	if _, err := os.Lstat(source); err != nil {
		return Failure(err, "moving")
	}
	err := unix.Renameat2(unix.AT_FDCWD, source, unix.AT_FDCWD, destination, unix.RENAME_NOREPLACE)
	if t.Copy && errors.Is(err, unix.EXDEV) {
		err = t.moveCopy(ctx, source, destination)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return notFound("directory_not_found", "the destination's directory does not exist")
	case errors.Is(err, unix.EXDEV):
		return errdefs.WithCode(errdefs.Internal, "operation_failed", "source and destination are on different file systems; run a command such as mv").WithCause(err)
	case errors.Is(err, unix.EINVAL):
		return invalid("a directory can't be moved into itself")
	case err == nil:
		err = t.keep(filepath.Dir(source), filepath.Dir(destination))
	}
	return Failure(err, "moving")
}

// Stat describes the path itself: a symlink is not followed.
func Stat(path string) (procapi.FileInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return procapi.FileInfo{}, Failure(err, "reading")
	}
	return describe(path, info), nil
}

// List describes what is in a directory, by name.
func List(path string) ([]procapi.FileInfo, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound("directory_not_found", "the directory does not exist")
	}
	if err != nil {
		return nil, Failure(err, "listing")
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxEntries + 1)
	if err != nil && err != io.EOF {
		return nil, Failure(err, "listing")
	}
	if len(names) > maxEntries || listBytes(path, names) > maxListBytes {
		return nil, errdefs.WithCode(errdefs.TooLarge, "file_too_large", "the directory has too many entries to list; run a command such as find")
	}
	return describeAll(path, names), nil
}

// listBytes is about what a listing's JSON takes.
func listBytes(dir string, names []string) int {
	n := len(names) * (len(dir) + entryBytes)
	for _, name := range names {
		n += 2 * len(name) // once by itself, once in its path
	}
	return n
}

// describeAll leaves out what has gone since its name was read.
func describeAll(dir string, names []string) []procapi.FileInfo {
	entries := make([]procapi.FileInfo, 0, len(names))
	slices.Sort(names)
	for _, name := range names {
		path := filepath.Join(dir, name)
		if info, err := os.Lstat(path); err == nil {
			entries = append(entries, describe(path, info))
		}
	}
	return entries
}

func describe(path string, info fs.FileInfo) procapi.FileInfo {
	out := procapi.FileInfo{
		Name: info.Name(), Path: path, Type: "file", Size: info.Size(),
		Mode: octal(info), ModTime: info.ModTime().UTC(),
	}
	switch {
	case info.IsDir():
		out.Type = "dir"
	case info.Mode()&fs.ModeSymlink != 0:
		out.Type, out.IsLink = "symlink", true
		out.LinkTarget, _ = os.Readlink(path) // gone since: an empty target is the truth
	}
	return out
}

// Failure translates an error of the kernel; one that is typed stays as it is.
func Failure(err error, doing string) error {
	var typed *errdefs.Error
	if err == nil || errors.As(err, &typed) {
		return err
	}
	for _, k := range kernelErrors {
		if errors.Is(err, k.errno) {
			return errdefs.WithCode(k.kind, k.code, "%s: %s", doing, k.errno.Error()).WithCause(err)
		}
	}
	return errdefs.WithCode(errdefs.Internal, "operation_failed", "%s failed", doing).WithCause(err)
}

var kernelErrors = []struct {
	errno syscall.Errno
	kind  errdefs.Kind
	code  string
}{
	{unix.ENOENT, errdefs.NotFound, "file_not_found"},
	{unix.EEXIST, errdefs.Conflict, "path_exists"},
	{unix.ENOTEMPTY, errdefs.Conflict, "path_exists"},
	{unix.ENOTDIR, errdefs.Conflict, "path_not_directory"},
	{unix.EISDIR, errdefs.Conflict, "path_not_file"},
	{unix.EACCES, errdefs.PermissionDenied, "permission_denied"},
	{unix.EPERM, errdefs.PermissionDenied, "permission_denied"},
	{unix.EROFS, errdefs.PermissionDenied, "permission_denied"},
	{unix.EBUSY, errdefs.PermissionDenied, "permission_denied"},
	{unix.ELOOP, errdefs.InvalidArgument, "invalid_request"},
	{unix.EINVAL, errdefs.InvalidArgument, "invalid_request"},
	{unix.ENAMETOOLONG, errdefs.InvalidArgument, "invalid_request"},
	{unix.ENXIO, errdefs.InvalidArgument, "invalid_request"}, // a socket, a FIFO without its other end
	{unix.ENODEV, errdefs.InvalidArgument, "invalid_request"},
	{unix.ENOSPC, errdefs.Internal, "operation_failed"},
	{unix.EDQUOT, errdefs.Internal, "operation_failed"},
}

func invalid(format string, args ...any) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", format, args...)
}

func forbidden(format string, args ...any) error {
	return errdefs.WithCode(errdefs.PermissionDenied, "permission_denied", format, args...)
}

func notFound(code, message string) error {
	return errdefs.WithCode(errdefs.NotFound, code, "%s", message)
}

func conflict(code, message string) error {
	return errdefs.WithCode(errdefs.Conflict, code, "%s", message)
}

func notFile() error { return conflict("path_not_file", "the path is a directory") }

func notRegular() error { return invalid("the path is no regular file") }

// octal is the permission bits with setuid, setgid and sticky, as in "0755" or "4755".
func octal(info fs.FileInfo) string {
	bits := uint32(info.Mode().Perm())
	for mode, bit := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if info.Mode()&mode != 0 {
			bits |= bit
		}
	}
	return fmt.Sprintf("%04o", bits)
}
