// Package room bounds what is written below a directory, in bytes and in files.
//
// A directory with a limit has a room: a file system of its own, in a file beside it, as
// large as the limit. So whoever writes more is told by the kernel, at once, that there is
// no space left, and nothing beside his directory is touched. No quota of the file system
// below is needed, which few have. A directory without a limit is what it is.
//
// The file is sparse: the disk below has what was written at some time, at most the limit,
// until the directory goes. The package keeps no state; mounts are the kernel's and
// outlive this process.
package room

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/loop"
)

const (
	// makeTimeout is for a disk that is slow: most of a new file system is not written.
	makeTimeout = 30 * time.Second
	journalMiB  = 16
	blockBytes  = 4096
	inodeBytes  = 256
	// bytesPerFile is how large files are at least, on average, where the limit is what
	// ends first; there are never fewer than minFiles nor more than maxFiles.
	bytesPerFile, minFiles, maxFiles = 8 << 10, 16 << 10, 1 << 20
	imageName, mountName             = "room.img", "room"
)

// Make bounds a directory, which exists and is empty, to so many bytes, but no more than the
// disk has in all; 0: not at all. It may be repeated, and changes nothing then.
func Make(ctx context.Context, dir string, limit int64) error {
	image := filepath.Join(dir, imageName)
	if _, err := os.Lstat(image); limit == 0 || err == nil {
		return nil
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	limit = min(limit, int64(disk.Blocks)*disk.Bsize)
	files := min(max(limit/bytesPerFile, minFiles), maxFiles)
	f, err := os.OpenFile(image+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size(limit, files))
	if err == nil {
		err = format(ctx, f.Name(), files)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("making room in %s: %w", dir, errors.Join(err, os.Remove(f.Name())))
	}
	return os.Rename(f.Name(), image)
}

// size is how large a file system is that has room for so many bytes and files: the tables
// of these, a journal, and what describes the blocks.
func size(limit, files int64) int64 {
	n := limit + files*inodeBytes + (journalMiB+1)<<20
	n += n / 128
	return (n + 1<<20 - 1) &^ (1<<20 - 1)
}

func format(ctx context.Context, image string, files int64) error {
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-b", strconv.Itoa(blockBytes), "-I", strconv.Itoa(inodeBytes),
		"-N", strconv.FormatInt(files, 10), "-J", fmt.Sprintf("size=%d", journalMiB), "-O", "^resize_inode",
		"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", image)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %.200q", err, bytes.TrimSpace(out))
	}
	return nil
}

// Path is where to write below a directory.
func Path(dir string) string {
	if _, err := os.Lstat(filepath.Join(dir, imageName)); errors.Is(err, fs.ErrNotExist) {
		return dir
	}
	return filepath.Join(dir, mountName)
}

// Open makes a directory's room be where [Path] says. It may be repeated.
func Open(dir string) error {
	at := Path(dir)
	if at == dir {
		return nil
	}
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if there, err := isMount(at); err != nil || there {
		return err
	}
	if err := mount(filepath.Join(dir, imageName), at); err != nil {
		return fmt.Errorf("opening the room in %s: %w", dir, err)
	}
	return nil
}

// Close takes the room away. Whoever has files of it open keeps these.
func Close(dir string) error {
	err := unix.Unmount(filepath.Join(dir, mountName), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // it is none
		return nil
	}
	return err
}

func isMount(at string) (bool, error) {
	var dir, above unix.Stat_t
	if err := errors.Join(unix.Lstat(at, &dir), unix.Lstat(filepath.Dir(at), &above)); err != nil {
		return false, err
	}
	return dir.Dev != above.Dev, nil
}

// mount mounts an image. One that is mounted still, for somebody has files of it open, has
// a device: two would damage each other.
func mount(image, at string) error {
	device, err := deviceOf(image)
	if err != nil {
		return err
	}
	if device != "" {
		return mountDevice(device, at)
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	on, err := loop.Open(f, 0)
	if err != nil {
		return err
	}
	defer on.Close()                                                                                                   // the device goes with its last mount
	if err := unix.IoctlSetInt(int(on.Fd()), unix.LOOP_SET_DIRECT_IO, 1); err != nil && !errors.Is(err, unix.EINVAL) { // else all is cached twice
		return err
	}
	return mountDevice(on.Name(), at)
}

func mountDevice(device, at string) error {
	return unix.Mount(device, at, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, "errors=remount-ro")
}

// deviceOf finds the loop device of an image; "": it has none.
func deviceOf(image string) (string, error) {
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it is going
		}
		if strings.TrimSuffix(string(b), "\n") == image {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(name)))), nil
		}
	}
	return "", nil
}
