package layers

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/loop"
)

// safe are the flags of every mount that has a tenant's files in it.
const safe = unix.MS_NOSUID | unix.MS_NODEV

// overlayOptions leave out what would let a layer's content lead anywhere.
const overlayOptions = "redirect_dir=nofollow,metacopy=off,index=off,nfs_export=off"

// MaxDir is the longest path of the directory that layers are mounted in: 36 of them fit
// into the one page of an overlay's options.
const MaxDir = 85

// Image mounts an open image where there is an empty directory.
func Image(image *os.File, at string) error {
	err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", image.Fd()), at, "erofs", unix.MS_RDONLY|safe, "")
	if errors.Is(err, unix.ENOTBLK) { // a kernel that wants a device
		err = imageOnLoop(image, at)
	}
	if err != nil {
		return fmt.Errorf("mounting a layer: %w", err)
	}
	return nil
}

// imageOnLoop has the kernel make a device of the file, which goes with its mount.
func imageOnLoop(image *os.File, at string) error {
	device, err := loop.Open(image, unix.LO_FLAGS_READ_ONLY)
	if err != nil {
		return err
	}
	defer device.Close()
	return unix.Mount(device.Name(), at, "erofs", unix.MS_RDONLY|safe, "")
}

// Overlay mounts layers over each other, the topmost first; without upper nothing can be
// written. There are at least two of them.
func Overlay(at string, lower []string, upper, work string) error {
	flags := uintptr(safe)
	options := overlayOptions + ",lowerdir=" + strings.Join(lower, ":")
	if upper != "" {
		options += ",upperdir=" + upper + ",workdir=" + work
	} else {
		flags |= unix.MS_RDONLY
	}
	if strings.ContainsAny(at+upper+work+strings.Join(lower, ""), ",:\\") {
		return fmt.Errorf("overlay at %s: a directory's name has a comma, colon or backslash", at)
	}
	if len(options) >= unix.Getpagesize() {
		return fmt.Errorf("overlay at %s: options of %d bytes", at, len(options))
	}
	if err := unix.Mount("s0-volume", at, "overlay", flags, options); err != nil {
		return fmt.Errorf("mounting the volume's layers: %w", err)
	}
	return nil
}

// Unmount takes a mount away; what is not mounted is no error.
func Unmount(at string, lazily bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazily {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(at, flags)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Mounts lists the mount points below a directory, as the kernel tells them: the
// innermost last.
func Mounts(below string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], below+"/") {
			all = append(all, fields[4])
		}
	}
	return all, lines.Err()
}
