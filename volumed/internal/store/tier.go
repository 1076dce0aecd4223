package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
)

// marker is the link that says which store a directory is.
const marker = "store"

// Config says where the store is, and how it is told from an empty place for it.
type Config struct {
	Dir   string
	Magic int64  // of the file system that the store is; 0: any
	Known string // a file of this machine that remembers which store it is
}

// A tier is the store's directory, proven to be it and open: what is done through it is
// done there, whatever is mounted over its name meanwhile.
type tier struct{ *os.Root }

// Open opens the store, and makes it where there has never been one.
func Open(cfg Config) (*Store, error) {
	if cfg.Magic == 0 {
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return nil, err
		}
	}
	t, err := openTier(cfg)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	known, err := os.ReadFile(cfg.Known)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	id, err := t.identity()
	if errors.Is(err, fs.ErrNotExist) && len(known) == 0 {
		id, err = t.name()
	}
	if err != nil {
		return nil, err
	}
	if len(known) > 0 && string(known) != id {
		return nil, fmt.Errorf("%s is store %.64q, and this machine's volumes are in store %.64q", cfg.Dir, id, known)
	}
	if len(known) == 0 {
		if err := remember(cfg.Known, id); err != nil {
			return nil, err
		}
	}
	for _, sub := range []string{"layers", "volumes", "removed"} {
		if err := t.MkdirAll(sub, 0o700); err != nil {
			return nil, err
		}
	}
	return &Store{cfg: cfg, id: id}, nil
}

func remember(file, id string) error {
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(id)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// openTier opens what is at the store's place, if it is of the store's kind.
func openTier(cfg Config) (*tier, error) {
	root, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return nil, away(err)
	}
	t := &tier{root}
	if cfg.Magic == 0 {
		return t, nil
	}
	magic, err := t.magic()
	if err == nil && magic != cfg.Magic {
		err = fmt.Errorf("%s: file system %#x is mounted, not %#x", cfg.Dir, magic, cfg.Magic)
	}
	if err != nil {
		_ = t.Close()
		return nil, away(err)
	}
	return t, nil
}

// away says that nothing can be known of the store now.
func away(err error) error {
	return errdefs.New(errdefs.Unavailable, "the volumes' store is not there").WithCause(err)
}

func (t *tier) magic() (int64, error) {
	f, err := t.Open(".")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Type, nil
}

// identity is a link's target: it is metadata, and known where no data is to be had.
func (t *tier) identity() (string, error) { return t.Readlink(marker) }

// name gives a new store its identity; of several nodes one does.
func (t *tier) name() (string, error) {
	if err := t.Symlink(rand.Text(), marker); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if err := t.sync("."); err != nil {
		return "", err
	}
	return t.identity()
}

// in has do work on the store, if it is there.
func (s *Store) in(do func(*tier) error) error {
	t, err := openTier(s.cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	id, err := t.identity()
	if err != nil || id != s.id {
		return away(errors.Join(err, fmt.Errorf("%s: store %.64q, want %.64q", s.cfg.Dir, id, s.id)))
	}
	return do(t)
}

// Mounted tells one mounting of the store from a later one: what was opened in one that is
// gone stays dead.
func (s *Store) Mounted() (name string, err error) {
	err = s.in(func(t *tier) error {
		info, err := t.Stat(".")
		if err != nil {
			return err
		}
		name = device(info)
		return nil
	})
	return name, err
}

func device(info fs.FileInfo) string {
	return strconv.FormatUint(info.Sys().(*syscall.Stat_t).Dev, 36)
}

// NewLayer makes the file of a layer that nobody has.
func (s *Store) NewLayer(id string) (f *os.File, err error) {
	err = s.in(func(t *tier) error {
		f, err = t.OpenFile(layerFile(id), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		return err
	})
	return f, err
}

// Layer opens a layer's image, and says in which mounting of the store.
func (s *Store) Layer(id string) (f *os.File, mounted string, err error) {
	if err := CheckID("layer", id); err != nil {
		return nil, "", err
	}
	err = s.in(func(t *tier) error {
		if f, err = t.Open(layerFile(id)); err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return err
		}
		mounted = device(info)
		return nil
	})
	return f, mounted, err
}

// RemoveLayer removes the file of a layer that no version names.
func (s *Store) RemoveLayer(id string) error {
	return s.in(func(t *tier) error { return t.Remove(layerFile(id)) })
}

// names lists a directory.
func (t *tier) names(dir string) ([]string, error) {
	f, err := t.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (t *tier) sync(dir string) error {
	f, err := t.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// hidden are names that are being written.
func hidden(name string) bool { return strings.HasPrefix(filepath.Base(name), ".") }
