package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Result is what was unpacked, in the words of the API's answer to an upload.
type Result struct {
	Bytes       int64 `json:"bytes"`
	Directories int   `json:"directories"`
	Files       int   `json:"files"`
	Symlinks    int   `json:"symlinks"`
}

// Unpack makes what an archive holds in dir, a directory that exists. A link that
// leads outside is left out: whoever opens it on this machine would open a file of
// theirs, not the sandbox's; skipped is called with its name and what it leads to.
func Unpack(r io.Reader, dir string, skipped func(name, target string)) (Result, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Result{}, err
	}
	defer root.Close()
	u := unpacking{root: root, skipped: skipped, left: MaxBytes}
	archive := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return u.done, drain(r)
		}
		if err == nil && n == MaxEntries {
			err = fmt.Errorf("more than %d files", MaxEntries)
		}
		if err == nil {
			err = u.entry(h, archive)
		}
		if err != nil {
			return u.done, err
		}
	}
}

// drain reads what follows an archive: that the answer was whole is known at its end.
func drain(r io.Reader) error {
	const padding = 1 << 20
	n, err := io.CopyN(io.Discard, r, padding)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil && n == padding:
		return errors.New("something follows the archive")
	}
	return err
}

type unpacking struct {
	root    *os.Root
	skipped func(name, target string)
	left    int64 // bytes that may still come
	done    Result
}

func (u *unpacking) entry(h *tar.Header, content io.Reader) error {
	name := path.Clean(h.Name)
	if name == "." {
		return nil
	}
	local, err := filepath.Localize(name)
	if err != nil {
		return fmt.Errorf("the archive has a file %q, which can't be one here", h.Name)
	}
	if err := u.parents(local); err != nil {
		return err
	}
	perm := fs.FileMode(h.Mode) & fs.ModePerm
	switch h.Typeflag {
	case tar.TypeDir:
		u.done.Directories++
		return u.dir(local, perm)
	case tar.TypeSymlink:
		return u.link(name, local, h.Linkname)
	case tar.TypeReg:
		return u.file(local, perm, h, content)
	}
	return fmt.Errorf("the archive's %q is neither file, directory nor symlink", h.Name)
}

// parents makes the directories above an entry. None may be a link: what a link below
// it leads to could not be told from its name.
func (u *unpacking) parents(local string) error {
	for i, r := range local {
		if r != filepath.Separator {
			continue
		}
		if err := u.dir(local[:i], 0o755); err != nil {
			return err
		}
	}
	return nil
}

// dir makes a directory that can be written to for as long as files are to follow.
func (u *unpacking) dir(local string, perm fs.FileMode) error {
	err := u.root.Mkdir(local, perm|0o700)
	if errors.Is(err, fs.ErrExist) {
		var info fs.FileInfo
		if info, err = u.root.Lstat(local); err == nil && !info.IsDir() {
			err = fmt.Errorf("the archive has %q twice", local)
		}
	}
	return err
}

func (u *unpacking) link(name, local, target string) error {
	if !inside(name, target) {
		u.skipped(name, target)
		return nil
	}
	u.done.Symlinks++
	return u.root.Symlink(filepath.FromSlash(target), local)
}

// inside reports whether a link at name stays within the archive.
func inside(name, target string) bool {
	return target != "" && !path.IsAbs(target) && !strings.Contains(target, `\`) && filepath.IsLocal(filepath.FromSlash(path.Join(path.Dir(name), target)))
}

func (u *unpacking) file(local string, perm fs.FileMode, h *tar.Header, content io.Reader) (err error) {
	if u.left -= h.Size; h.Size < 0 || u.left < 0 {
		return fmt.Errorf("more than %d bytes", int64(MaxBytes))
	}
	f, err := u.root.OpenFile(local, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm|0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, content)
	u.done.Files++
	u.done.Bytes += n
	return errors.Join(err, f.Close())
}
