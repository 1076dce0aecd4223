package snapshots

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// aside is what a name ends in until what it names is whole.
const aside = ".part"

// Clone makes dst, which is not there yet, an image of m's with the parts of the image in
// src, such as its files without its memory. It costs names alone. dst is there whole and
// durably, or not at all; what is left of an attempt that was cut off is removed by the
// next one, or with the directory that dst is in.
func Clone(src, dst string, m Manifest, parts ...string) error {
	part := dst + aside
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	err := clone(src, part, m, parts)
	if err == nil {
		err = os.Rename(part, dst)
	}
	if err == nil {
		err = syncDir(filepath.Dir(dst))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cloning the image in %s: %w", src, err), os.RemoveAll(part))
	}
	return nil
}

func clone(src, dst string, m Manifest, parts []string) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	for _, part := range parts {
		if err := linkFiles(filepath.Join(src, part), filepath.Join(dst, part)); err != nil {
			return err
		}
	}
	return Write(dst, m)
}

// linkFiles makes dst a directory with the same files as src. It takes no other things:
// an image has none.
func linkFiles(src, dst string) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s in %s is no file", e.Name(), src)
		}
		if err := os.Link(filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())); err != nil {
			return err
		}
	}
	return syncDir(dst)
}
