// Package install puts a file where others use it: whole or not at all.
//
// The new file is renamed into place, so that what runs from the older one goes on
// running. The package keeps nothing.
package install

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// File puts a copy of a file into a directory that there is, by its own name.
func File(from, dir string, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("installing %s in %s: %w", filepath.Base(from), dir, err)
		}
	}()
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.CreateTemp(dir, "."+filepath.Base(from)+"-") // nobody else reads it yet
	if err != nil {
		return err
	}
	defer os.Remove(dst.Name()) // which fails once it has its name
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Chmod(mode), dst.Sync(), dst.Close()); err != nil {
		return err
	}
	return os.Rename(dst.Name(), filepath.Join(dir, filepath.Base(from)))
}
