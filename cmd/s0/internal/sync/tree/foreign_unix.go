//go:build !windows

package tree

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// foreign is whether Windows' rules of names hold.
const foreign = false

// modes is whether files have permissions of their own.
const modes = true

// links is how many names a file has.
func links(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Nlink)
	}
	return 1
}

// inode tells a file from another of the same name.
func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}

// syncDir makes names in a directory durable.
func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// nonblock keeps a pipe that came in a file's place from holding us up.
const nonblock = syscall.O_NONBLOCK

// notEmpty reports whether a directory was not removed for what it holds.
func notEmpty(err error) bool {
	return errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST)
}
