package rpc

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

const (
	mountPointMode = 0o755
	// maxCover bounds how often something may be mounted over a volume that is taken away.
	maxCover = 8
)

func (s *server) mount(w http.ResponseWriter, r *http.Request) error {
	var m procapi.Mount
	if err := answer.Decode(w, r, &m); err != nil {
		return err
	}
	if _, err := mountAll([]procapi.Mount{m}); err != nil {
		return err
	}
	return answer.OK(w, struct{}{})
}

// mountAll makes mounts that are not there yet: they may be repeated, or were restored
// with the sandbox. some tells whether there were any.
func mountAll(all []procapi.Mount) (some bool, err error) {
	for _, m := range all {
		from, err := portalOf(m)
		if err != nil {
			return some, err
		}
		made, err := bind(from, m.Target)
		if err != nil {
			return some, err
		}
		some = some || made
	}
	return some, nil
}

// bind binds what noded has put into the portal to its place, unless it is there. The
// sandbox's own kernel does: where it does not like the place, nothing of the host is
// harmed.
func bind(from, at string) (made bool, err error) {
	source, err := openPlace(from)
	if err != nil {
		return false, placeError(from, err)
	}
	defer source.Close()
	target, err := makePlace(at)
	if err != nil {
		return false, placeError(at, err)
	}
	defer target.Close()
	same, err := sameFile(source, target)
	if err == nil && !same {
		err = unix.Mount(byFD(source), byFD(target), "", unix.MS_BIND, "")
	}
	if err != nil {
		return false, placeError(at, err)
	}
	return !same, nil
}

// unmount takes a mount away that nothing uses, with what was mounted over it. It has
// succeeded when the place does not show the volume.
func (s *server) unmount(w http.ResponseWriter, r *http.Request) error {
	var m procapi.Mount
	if err := answer.Decode(w, r, &m); err != nil {
		return err
	}
	from, err := portalOf(m)
	if err != nil {
		return err
	}
	source, err := openPlace(from)
	if errors.Is(err, unix.ENOENT) {
		return answer.OK(w, struct{}{}) // noded has taken it away
	}
	if err != nil {
		return placeError(from, err)
	}
	defer source.Close()
	for range maxCover {
		there, err := shows(source, m.Target)
		if err != nil {
			return placeError(m.Target, err)
		}
		if !there {
			return answer.OK(w, struct{}{})
		}
		if err := unix.Unmount(m.Target, unix.UMOUNT_NOFOLLOW); err != nil {
			return placeError(m.Target, err)
		}
	}
	return errdefs.New(errdefs.Conflict, "%.200q is covered too often", m.Target)
}

// shows tells whether a directory is what a place shows. What is not there, or is reached
// through a symlink, shows nothing that was mounted.
func shows(source *os.File, place string) (bool, error) {
	target, err := openPlace(place)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer target.Close() // before it is unmounted
	return sameFile(source, target)
}

// portalOf checks a mount and says where in the portal it is.
func portalOf(m procapi.Mount) (from string, err error) {
	if m.Name == "" || m.Name != filepath.Base(m.Name) || strings.HasPrefix(m.Name, ".") {
		return "", answer.Invalid("name %.80q", m.Name)
	}
	if !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) != m.Target || m.Target == "/" {
		return "", answer.Invalid("target %.200q: want an absolute and clean path", m.Target)
	}
	return filepath.Join(procapi.Portal, m.Name), nil
}

// placeError says why there is no mounting or unmounting at a place.
func placeError(place string, err error) error {
	var errno unix.Errno
	switch {
	case errors.Is(err, unix.EBUSY):
		return errdefs.New(errdefs.Conflict, "processes use what is mounted at %.200q", place)
	case errors.Is(err, unix.ELOOP):
		return errdefs.New(errdefs.Conflict, "mount point %.200q: a part of it is a symlink", place)
	case errors.As(err, &errno):
		return errdefs.New(errdefs.Conflict, "mount point %.200q: %v", place, errno)
	}
	return fmt.Errorf("mount point %.200q: %w", place, err)
}

// openPlace opens a directory to which no symlink leads, only to name it.
func openPlace(path string) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// makePlace is openPlace of a directory that is made with those above it, unless it is there.
func makePlace(path string) (*os.File, error) {
	dir, err := openPlace("/")
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if err != nil {
			return nil, err
		}
		dir, err = enter(dir, name)
	}
	return dir, err
}

// enter goes from a directory to one in it.
func enter(dir *os.File, name string) (*os.File, error) {
	defer dir.Close()
	at := int(dir.Fd())
	if err := unix.Mkdirat(at, name, mountPointMode); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EROFS) {
		return nil, err
	}
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, notSymlink(at, name, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
}

// notSymlink tells a symlink from what else is no directory.
func notSymlink(at int, name string, err error) error {
	var st unix.Stat_t
	if errors.Is(err, unix.ENOTDIR) && unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.ELOOP
	}
	return err
}

func sameFile(a, b *os.File) (bool, error) {
	ai, err := a.Stat()
	if err != nil {
		return false, err
	}
	bi, err := b.Stat()
	return err == nil && os.SameFile(ai, bi), err
}

// byFD is a path that leads to what is open, whatever has taken its name since.
func byFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
