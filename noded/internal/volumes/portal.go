package volumes

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
)

// portals is a directory with two of each sandbox's:
//
//	base/<id>/<volume>~<mount>   what is mounted; only we write here
//	shown/<id>                   that, read-only: the portal
//	empty                        covers what is being taken away
//
// base is a shared mount and each portal a slave of it: what we mount in the one shows in
// the other, and in what is bound from that. Flags are each mount's own, so a volume that
// may be written to may be in a portal that may not.
type portals struct{ dir string }

func (p portals) base(id sandbox.ID) string  { return filepath.Join(p.dir, "base", string(id)) }
func (p portals) shown(id sandbox.ID) string { return filepath.Join(p.dir, "shown", string(id)) }
func (p portals) empty() string              { return filepath.Join(p.dir, "empty") }

// openPortals makes a directory one in which the mounts are ours alone.
func openPortals(dir string) (portals, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return portals{}, err
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return portals{}, err
	}
	p := portals{dir}
	return p, errors.Join(
		makeMount(dir, unix.MS_PRIVATE), // what is mounted below is told to nobody else on the host
		mkdir(p.base(""), 0o700), makeMount(p.base(""), unix.MS_SHARED),
		mkdir(p.shown(""), 0o700), mkdir(p.empty(), 0o755),
	)
}

func makeMount(dir string, propagation uintptr) error {
	there, err := mountsAt(dir)
	if err != nil {
		return err
	}
	if !slices.Contains(there, dir) {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("making %s a mount: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", propagation, ""); err != nil {
		return fmt.Errorf("propagation of %s: %w", dir, err)
	}
	return nil
}

// show makes a sandbox's portal.
func (p portals) show(id sandbox.ID) error {
	at := p.shown(id)
	if err := errors.Join(mkdir(p.base(id), 0o755), mkdir(at, 0o755)); err != nil {
		return err
	}
	there, err := mountsAt(at)
	if err != nil || slices.Contains(there, at) {
		return err
	}
	base, err := p.open(id)
	if err != nil {
		return err
	}
	defer base.close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_SLAVE}
	if err := mountTree(base.fd, &attr, unix.AT_FDCWD, at); err != nil {
		return fmt.Errorf("portal of %s: %w", id, err)
	}
	return nil
}

// hide removes a sandbox's portal, in which nothing is mounted any more.
func (p portals) hide(id sandbox.ID) error {
	if err := unmount(p.shown(id)); err != nil {
		return err
	}
	for _, dir := range []string{p.shown(id), p.base(id)} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// list finds the sandboxes of which there is something.
func (p portals) list() (all []sandbox.ID, err error) {
	for _, dir := range []string{p.base(""), p.shown("")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if id, err := sandbox.ParseID(e.Name()); err == nil && !slices.Contains(all, id) {
				all = append(all, id)
			}
		}
	}
	return all, nil
}

// place is a sandbox's base, open.
type place struct {
	fd  int
	dir string
}

func (p portals) open(id sandbox.ID) (place, error) {
	fd, err := openDir(p.base(id))
	return place{fd, p.base(id)}, err
}

func (p place) close() { _ = unix.Close(p.fd) }

// at is the path of a name; no part of it is a symlink.
func (p place) at(name string) string { return filepath.Join(p.dir, name) }

func (p place) add(name string) error {
	if err := unix.Mkdirat(p.fd, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "mkdir", Path: p.at(name), Err: err}
	}
	return nil
}

func (p place) remove(name string) error {
	if err := unix.Unlinkat(p.fd, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: p.at(name), Err: err}
	}
	return nil
}

// names are those that were added.
func (p place) names() (all []string, err error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all, nil
}

// bind shows a directory at a name, once. It is not reached through a symlink (C06). What
// is there already and may be written to is that directory, or what is written is lost.
func (p place) bind(from, name string, readOnly bool) error {
	there, err := p.isMount(name)
	switch {
	case err != nil:
		return err
	case !there && readOnly:
		return p.mount(from, name, unix.MOUNT_ATTR_RDONLY)
	case !there:
		return p.mount(from, name, 0)
	}
	if err := p.uncover(name, false); err != nil || readOnly { // whoever covered it has died
		return err
	}
	return p.shows(from, name)
}

// isMount tells whether something is mounted at a name, and asks no file system: a claim
// waits for it, and the table of all mounts takes a millisecond to read.
func (p place) isMount(name string) (bool, error) {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	var st unix.Statx_t
	if err := unix.Statx(p.fd, name, flags, 0, &st); err != nil {
		return false, &fs.PathError{Op: "statx", Path: p.at(name), Err: err}
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("%s: the kernel does not tell mount points", p.at(name))
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// shows refuses a name at which another mount than a directory's is.
func (p place) shows(from, name string) error {
	var is, was unix.Stat_t
	if err := errors.Join(unix.Lstat(from, &is), unix.Lstat(p.at(name), &was)); err != nil {
		return err
	}
	if is.Dev != was.Dev {
		return errdefs.WithCode(errdefs.Conflict, volumeapi.CodeFenced, "what is mounted was put aside: it is mounted anew after a pause")
	}
	return nil
}

// mount mounts a directory at a name, over what is there.
func (p place) mount(from, name string, flags uint64) error {
	fd, err := openDir(from)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | flags, Propagation: unix.MS_PRIVATE}
	if err := mountTree(fd, &attr, p.fd, name); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", from, p.at(name), err)
	}
	return nil
}

// cover mounts an empty directory, which is everybody's and nobody's to write to, over what
// is mounted at a name.
func (p place) cover(name, empty string) error {
	there, err := mountsAt(p.at(name))
	if err != nil || len(there) != 1 {
		return err // nothing is there, or it is covered
	}
	return p.mount(empty, name, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC)
}

// uncover takes away what covers a name, and with all what was covered, if no file of it
// is open anywhere.
func (p place) uncover(name string, all bool) error {
	there, err := mountsAt(p.at(name))
	if err != nil {
		return err
	}
	for range len(there) - 1 {
		if err := unix.Unmount(p.at(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("uncovering %s: %w", p.at(name), err)
		}
	}
	if !all || len(there) == 0 {
		return nil
	}
	err = unix.Unmount(p.at(name), unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return ErrBusy
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", p.at(name), err)
	}
	return nil
}

// unmount takes away whatever is mounted at a path, though files of it be open.
func unmount(at string) error {
	there, err := mountsAt(at)
	if err != nil {
		return err
	}
	for range there {
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmounting %s: %w", at, err)
		}
	}
	return nil
}

// openDir opens a directory to which no symlink leads.
func openDir(path string) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// mountTree mounts what dir is at a name, with its flags from the first moment.
func mountTree(dir int, attr *unix.MountAttr, at int, name string) error {
	tree, err := unix.OpenTree(dir, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cloning: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("flags: %w", err)
	}
	return unix.MoveMount(tree, "", at, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func mkdir(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// mountsAt are the mount points at and below a directory.
func mountsAt(dir string) (all []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if at := unescape.Replace(fields[4]); at == dir || strings.HasPrefix(at, dir+"/") {
			all = append(all, at)
		}
	}
	return all, lines.Err()
}

// unescape undoes what the kernel does to the paths of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
