// Package tree is the directory on this machine that a replica of a volume is: it tells
// what is in it and changes it, one file at a time, each whole or not at all.
//
// Nothing outside the directory is ever read or written: every access goes through an
// os.Root, directories that are links are not followed, and paths are checked by
// CheckPath before they come here. What somebody else has changed since the caller looked
// is not overwritten. The package owns the directory .s0-sync in the root and keeps no
// other state; it knows neither the server nor what was synced before.
package tree

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"s0.run/cmd/s0/internal/sync/ignore"
)

// Kind is what there is at a path.
type Kind string

// The kinds of the journal, and what can't be synced.
const (
	None  Kind = ""
	File  Kind = "file"
	Dir   Kind = "directory"
	Other Kind = "other" // a link, a pipe, what can't be read
)

// Entry is what there is at a path. The zero value is nothing.
type Entry struct {
	Kind Kind
	Mode fs.FileMode // permissions; 0 where they are not known
	Size int64       // of a file
	Sum  string      // of a file: SHA-256 in hex
}

// Same reports whether two entries are the same to whoever reads them.
func (e Entry) Same(o Entry) bool {
	return e.SameContent(o) && (e.Mode == o.Mode || e.Mode == 0 || o.Mode == 0)
}

// SameContent is Same without permissions.
func (e Entry) SameContent(o Entry) bool {
	return e.Kind == o.Kind && e.Kind != Other && e.Sum == o.Sum
}

// Permissions are those that an entry may have here: its owner can always read it, and
// nobody runs it as somebody else.
func Permissions(kind Kind, mode fs.FileMode) fs.FileMode {
	switch {
	case mode == 0 || !modes:
		return 0
	case kind == Dir:
		return mode&fs.ModePerm | 0o700
	}
	return mode&fs.ModePerm | 0o400
}

// Stamp is how a file's state is told from an earlier one without reading it.
type Stamp struct {
	Size  int64
	Time  int64 // of the last change of its content, in ns
	Inode uint64
}

// Seen is an entry as it was found.
type Seen struct {
	Entry
	Stamp   Stamp
	Settled bool // the stamp would change with the content
}

// settling is how long a file must not have changed for its stamp to say so: clocks of
// file systems are coarse.
const settling = 2 * time.Second

// ErrChanged is returned when somebody has changed a file since it was looked at.
var ErrChanged = errors.New("somebody is changing it")

// ErrBlocked is returned when something that is no directory is where one is needed.
var ErrBlocked = errors.New("a directory above it is a link or a file here")

// Tree is a directory. It is not safe for concurrent use.
type Tree struct {
	dir     string
	root    *os.Root
	touched map[string]bool           // directories whose names are not durable yet
	ignores map[string]ignore.Matcher // by directory, as they were read last
}

// Open opens the directory at dir and makes our own in it.
func Open(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if err := root.Mkdir(Own, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		root.Close()
		return nil, err
	}
	if info, err := root.Lstat(Own); err != nil || !info.IsDir() {
		root.Close()
		return nil, errors.Join(fmt.Errorf("%s in %s is not the directory that it must be", Own, dir), err)
	}
	return &Tree{dir: dir, root: root, touched: map[string]bool{}, ignores: map[string]ignore.Matcher{}}, nil
}

// Close lets go of the directory.
func (t *Tree) Close() error { return t.root.Close() }

const mark = Own + "/replica"

// Mark leaves a sign in the directory by which Check knows it again.
func (t *Tree) Mark(id string) error {
	return errors.Join(t.root.WriteFile(mark, []byte(id+"\n"), 0o600), syncDir(t.root, Own))
}

// Check fails unless the directory is still the one that was marked, in its place: the
// files of one that is gone, or of a disk that is not mounted, have not been deleted.
func (t *Tree) Check(id string) error {
	b, err := t.root.ReadFile(mark)
	if err != nil {
		return fmt.Errorf("%s is not what was attached: %w", t.dir, err)
	}
	if strings.TrimSpace(string(b)) != id {
		return fmt.Errorf("%s is attached as something else", t.dir)
	}
	here, err := t.root.Stat(".")
	if err != nil {
		return err
	}
	there, err := os.Stat(t.dir)
	if err != nil || !os.SameFile(here, there) {
		return errors.Join(fmt.Errorf("%s is another directory now", t.dir), err)
	}
	return nil
}

// Sweep removes what an end amid our work has left behind; Unmark all that is ours.
func (t *Tree) Sweep() error {
	entries, err := fs.ReadDir(t.root.FS(), Own)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "new-") || strings.HasPrefix(e.Name(), "case-") {
			err = errors.Join(err, t.root.Remove(Own+"/"+e.Name()))
		}
	}
	return err
}

// Unmark removes all that is ours.
func (t *Tree) Unmark() error { return t.root.RemoveAll(Own) }

// CaseSensitive reports whether names that differ in case are two files here.
func (t *Tree) CaseSensitive() (bool, error) {
	name := Own + "/case-" + rand.Text()
	if err := t.root.WriteFile(name, nil, 0o600); err != nil {
		return false, err
	}
	_, err := t.root.Lstat(Own + "/" + strings.ToUpper(path.Base(name)))
	if err := t.root.Remove(name); err != nil {
		return false, err
	}
	return errors.Is(err, fs.ErrNotExist), nil
}

// Look tells what is at a path now; known, if it has a stamp, saves reading the file.
func (t *Tree) Look(ctx context.Context, name string, known Seen) (Seen, error) {
	blocked, err := t.blocked(name)
	if err != nil {
		return Seen{}, err
	}
	if blocked {
		return Seen{}, ErrBlocked
	}
	info, err := t.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Seen{}, nil
	}
	if err != nil {
		return Seen{}, err
	}
	return t.see(ctx, name, info, known)
}

// blocked reports whether something above a path is there and no directory.
func (t *Tree) blocked(name string) (bool, error) {
	for dir := range above(name) {
		info, err := t.root.Lstat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, err
		case !info.IsDir():
			return true, nil
		}
	}
	return false, nil
}

// above yields the directories above a path, the outermost first.
func above(name string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for i := range len(name) {
			if name[i] == '/' && !yield(name[:i]) {
				return
			}
		}
	}
}

func stampOf(info fs.FileInfo) Stamp {
	return Stamp{Size: info.Size(), Time: info.ModTime().UnixNano(), Inode: inode(info)}
}

func (t *Tree) see(ctx context.Context, name string, info fs.FileInfo, known Seen) (Seen, error) {
	s := Seen{Stamp: stampOf(info)}
	switch {
	case info.IsDir():
		s.Entry = Entry{Kind: Dir, Mode: Permissions(Dir, info.Mode())}
		s.Stamp = Stamp{}
	case !info.Mode().IsRegular() || links(info) > 1:
		s.Kind = Other
	case known.Kind == File && known.Settled && known.Stamp == s.Stamp:
		s.Entry, s.Settled = known.Entry, true
		s.Mode = Permissions(File, info.Mode())
	default:
		return t.read(ctx, name, info)
	}
	return s, nil
}

// read sees a file by its content.
func (t *Tree) read(ctx context.Context, name string, info fs.FileInfo) (Seen, error) {
	s := Seen{Stamp: stampOf(info)}
	began := time.Now()
	f, err := t.open(name, info)
	if err != nil {
		return s, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, &cancelled{ctx, f})
	if err != nil {
		return s, err
	}
	after, err := f.Stat()
	if err != nil {
		return s, err
	}
	s.Entry = Entry{Kind: File, Mode: Permissions(File, info.Mode()), Size: n, Sum: hexOf(sum)}
	s.Settled = stampOf(after) == s.Stamp && began.Sub(info.ModTime()) >= settling
	return s, nil
}

// open opens a regular file for reading and nothing else that has come in its place.
func (t *Tree) open(name string, info fs.FileInfo) (*os.File, error) {
	f, err := t.root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	if opened, err := f.Stat(); err != nil || !os.SameFile(info, opened) {
		f.Close()
		return nil, errors.Join(ErrChanged, err)
	}
	return f, nil
}

// Content is a file's content and what it is; more than limit bytes are an error.
func (t *Tree) Content(name string, limit int64) ([]byte, Seen, error) {
	info, err := t.root.Lstat(name)
	if err != nil {
		return nil, Seen{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, Seen{}, ErrChanged
	}
	began := time.Now()
	f, err := t.open(name, info)
	if err != nil {
		return nil, Seen{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, Seen{}, err
	}
	if int64(len(b)) > limit {
		return nil, Seen{}, ErrChanged
	}
	sum := sha256.Sum256(b)
	s := Seen{Stamp: stampOf(info), Entry: Entry{
		Kind: File, Mode: Permissions(File, info.Mode()), Size: int64(len(b)), Sum: hex.EncodeToString(sum[:]),
	}}
	after, err := f.Stat()
	s.Settled = err == nil && stampOf(after) == s.Stamp && began.Sub(info.ModTime()) >= settling
	return b, s, nil
}

func hexOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// cancelled is a reader that ends with a context.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
