package tree

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"
)

// Staged is a file's new content, whole and durable, but not in its place yet.
type Staged struct {
	name string
	Size int64
	Sum  string
}

// Stage takes a file's new content; more than limit bytes are an error. Who does not
// Place it must Drop it.
func (t *Tree) Stage(ctx context.Context, content io.Reader, limit int64) (s Staged, err error) {
	s.name = Own + "/new-" + rand.Text()
	f, err := t.root.OpenFile(s.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return s, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			t.Drop(s)
		}
	}()
	sum := sha256.New()
	s.Size, err = io.Copy(io.MultiWriter(f, sum), io.LimitReader(&cancelled{ctx, content}, limit+1))
	if err != nil {
		return s, err
	}
	if s.Size > limit {
		return s, fmt.Errorf("more than %d bytes", limit)
	}
	s.Sum = hexOf(sum)
	return s, f.Sync()
}

// Drop forgets staged content.
func (t *Tree) Drop(s Staged) { t.root.Remove(s.name) } //nolint:errcheck // Sweep removes what is left

// Place puts staged content at a path in one step, if what is there is still what was
// seen. On failure it is still staged.
func (t *Tree) Place(s Staged, name string, mode fs.FileMode, seen Seen) (Seen, error) {
	mode = Permissions(File, mode)
	if mode == 0 {
		mode = Permissions(File, 0o644)
		if seen.Kind == File && seen.Mode != 0 {
			mode = seen.Mode
		}
	}
	if modes {
		if err := t.root.Chmod(s.name, mode); err != nil {
			return Seen{}, err
		}
	}
	info, err := t.root.Lstat(s.name)
	if err != nil {
		return Seen{}, err
	}
	if err := t.unchanged(name, seen); err != nil {
		return Seen{}, err
	}
	if err := t.root.Rename(s.name, name); err != nil {
		return Seen{}, err
	}
	t.touch(name)
	placed := Seen{Stamp: stampOf(info), Entry: Entry{Kind: File, Mode: mode, Size: s.Size, Sum: s.Sum}}
	placed.Settled = time.Since(info.ModTime()) >= settling
	return placed, nil
}

// unchanged fails when a path is not what it was when it was seen.
func (t *Tree) unchanged(name string, seen Seen) error {
	if blocked, err := t.blocked(name); err != nil || blocked {
		return errors.Join(ErrBlocked, err)
	}
	info, err := t.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if seen.Kind != None {
			return ErrChanged
		}
		return nil
	case err != nil:
		return err
	case seen.Kind == Dir && info.IsDir():
		return nil
	case seen.Kind == None || info.IsDir() || stampOf(info) != seen.Stamp:
		return ErrChanged
	}
	return nil
}

// Make makes a directory, and those above it that are missing; made are these.
func (t *Tree) Make(name string, mode fs.FileMode) (made []string, err error) {
	for dir := range above(name + "/") {
		err := t.root.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) {
			if info, err := t.root.Lstat(dir); err != nil || !info.IsDir() {
				return made, errors.Join(ErrBlocked, err)
			}
			continue
		}
		if err != nil {
			return made, err
		}
		made = append(made, dir)
		t.touch(dir)
	}
	if mode = Permissions(Dir, mode); mode == 0 {
		return made, nil
	}
	return made, t.root.Chmod(name, mode)
}

// Chmod sets permissions, where there are any.
func (t *Tree) Chmod(name string, kind Kind, mode fs.FileMode) error {
	if mode = Permissions(kind, mode); mode == 0 {
		return nil
	}
	return t.root.Chmod(name, mode)
}

// Remove removes a file, or a directory without anything in it, if it is still what was
// seen. It reports whether it did: a directory that holds something stays.
func (t *Tree) Remove(name string, seen Seen) (bool, error) {
	if err := t.unchanged(name, seen); err != nil {
		return false, err
	}
	err := t.root.Remove(name)
	if err != nil && seen.Kind == Dir && notEmpty(err) {
		return false, nil
	}
	t.touch(name)
	return err == nil, err
}

// Move gives what is at a path another name in its directory, one that nothing has yet.
func (t *Tree) Move(name, to string) error {
	if blocked, err := t.blocked(name); err != nil || blocked {
		return errors.Join(ErrBlocked, err)
	}
	if _, err := t.root.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fs.ErrExist, err)
	}
	t.touch(name)
	t.touch(to)
	return t.root.Rename(name, to)
}

// Has reports whether there is anything at a path.
func (t *Tree) Has(name string) bool {
	_, err := t.root.Lstat(name)
	return err == nil
}

func (t *Tree) touch(name string) {
	t.touched[path.Dir(name)] = true
	if path.Base(name) == ignoreFile {
		t.Forget()
	}
}

// Flush makes all changes durable.
func (t *Tree) Flush() error {
	for dir := range t.touched {
		if err := syncDir(t.root, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		delete(t.touched, dir)
	}
	return nil
}
