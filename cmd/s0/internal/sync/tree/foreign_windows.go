package tree

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// foreign is whether Windows' rules of names hold.
const foreign = true

// modes is whether files have permissions of their own.
const modes = false

// nonblock is for systems whose pipes are files.
const nonblock = 0

func links(fs.FileInfo) uint64 { return 1 }

func inode(fs.FileInfo) uint64 { return 0 }

// syncDir has nothing to do: NTFS keeps names in its journal.
func syncDir(*os.Root, string) error { return nil }

// notEmpty reports whether a directory was not removed for what it holds.
func notEmpty(err error) bool { return errors.Is(err, windows.ERROR_DIR_NOT_EMPTY) }
