// Package archive packs directories of the user's into tar archives and unpacks those
// that a sandbox has made. A sandbox is nobody's friend: nothing is written outside of
// the directory that is unpacked to, through no link either, and no more than
// [MaxBytes] and [MaxEntries]. The package owns no state and talks to nobody.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// What a server takes and gives.
const (
	MaxBytes   = 2 << 30
	MaxEntries = 100_000
)

const blockBytes = 512 // of a tar archive

// Size is how large about the archive of a directory is.
func Size(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		bytes += blockBytes
		if e.Type().IsRegular() {
			info, err := e.Info()
			if err != nil {
				return err
			}
			bytes += (info.Size() + blockBytes - 1) / blockBytes * blockBytes
		}
		return nil
	})
	return bytes, err
}

// Pack writes everything below dir to w as a tar archive: directories, regular files
// and symlinks. It calls skipped with the paths of other things, of which there can't
// be a copy.
func Pack(w io.Writer, dir string, skipped func(path string)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || name == ".":
			return err
		case !e.IsDir() && !e.Type().IsRegular() && e.Type() != fs.ModeSymlink:
			skipped(filepath.Join(dir, name))
			return nil
		}
		return pack(archive, root, name)
	})
	return errors.Join(err, archive.Close())
}

// pack writes one entry. Owners are left out: they mean nothing elsewhere, and are
// nobody's business.
func pack(archive *tar.Writer, root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	h := tar.Header{Name: name, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime(), Format: tar.FormatPAX}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return archive.WriteHeader(&h)
	case info.Mode().Type() == fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		target, err := root.Readlink(name)
		if err != nil {
			return err
		}
		h.Linkname = filepath.ToSlash(target)
		return archive.WriteHeader(&h)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s has become something else while it was read", name)
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := archive.WriteHeader(&h); err != nil {
		return err
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.Copy(archive, io.LimitReader(f, h.Size)); err != nil || n < h.Size {
		return errors.Join(err, fmt.Errorf("%s has changed while it was read", name))
	}
	return nil
}
