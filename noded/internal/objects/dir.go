package objects

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"strings"
	"time"
)

const (
	// asideDir holds what is being written. No key begins with a dot.
	asideDir = ".aside"
	// asideFor is how long a file there may be somebody's: far longer than an attempt.
	asideFor = time.Hour
)

// dir is a store in a local directory, which several nodes may share. Nothing of it
// is reached but below the directory, whatever links somebody puts there.
type dir struct{ root *os.Root }

func openDir(at string) (dir, error) {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return dir{}, err
	}
	root, err := os.OpenRoot(at)
	if err != nil {
		return dir{}, err
	}
	d := dir{root}
	if err := d.clearAside(time.Now().Add(-asideFor)); err != nil {
		root.Close()
		return dir{}, err
	}
	return d, nil
}

// clearAside makes the directory for what is being written, without what a writer
// left there that died.
func (d dir) clearAside(before time.Time) error {
	if err := d.root.Mkdir(asideDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	left, err := fs.ReadDir(d.root.FS(), asideDir)
	for _, e := range left {
		info, gone := e.Info()
		if gone == nil && info.ModTime().Before(before) {
			err = errors.Join(err, ignoreAbsent(d.root.Remove(path.Join(asideDir, e.Name()))))
		}
	}
	return err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d dir) put(_ context.Context, key string, data []byte) (err error) {
	aside := path.Join(asideDir, rand.Text())
	defer func() {
		if err != nil {
			d.root.Remove(aside)
		}
	}()
	if err := d.write(aside, data); err != nil {
		return local(err)
	}
	made := d.makeParents(key)
	if err := d.root.Rename(aside, key); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a directory went away: %w", err) // removed while it was empty; it is made again
	} else if err != nil {
		return local(err)
	}
	for _, parent := range made {
		if err := d.sync(parent); err != nil {
			return local(err)
		}
	}
	return nil
}

func (d dir) write(name string, data []byte) error {
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// makeParents makes the directories that lead to a key and returns those whose
// entries change by it: up to the first that was there.
func (d dir) makeParents(key string) []string {
	all := parents(key)
	for i, parent := range all {
		if _, err := d.root.Stat(parent); err == nil {
			_ = d.root.MkdirAll(all[0], 0o700) // the rename says what is wrong
			return all[:i+1]
		}
	}
	return all
}

func (d dir) sync(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d dir) get(_ context.Context, key string, limit int64) ([]byte, error) {
	f, err := d.root.Open(key)
	if err != nil {
		return nil, local(err)
	}
	defer f.Close()
	return readAll(f, limit)
}

// readAll reads at most limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, ErrTooLarge
	}
	return data, err
}

// remove removes the directories as well that lead to nothing any more.
func (d dir) remove(_ context.Context, key string) error {
	if err := ignoreAbsent(d.root.Remove(key)); err != nil {
		return local(err)
	}
	for _, parent := range parents(key) {
		if parent == "." || d.root.Remove(parent) != nil { // it is not empty
			break
		}
	}
	return nil
}

func (d dir) list(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		err := fs.WalkDir(d.root.FS(), path.Dir(prefix+"x"), func(name string, e fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went away, or never was
			}
			if err != nil {
				return err
			}
			if e.IsDir() {
				if name == asideDir {
					return fs.SkipDir
				}
				return nil
			}
			info, err := e.Info()
			if err != nil || !strings.HasPrefix(name, prefix) {
				return ignoreAbsent(err)
			}
			if !yield(Object{Key: name, Modified: info.ModTime()}, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(Object{}, local(err))
		}
	}
}

// local says what an error of the file system means. A full disk is none that passes
// within an attempt or two, but one that passes.
func local(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return err
}
