// Package volumes puts volumes where sandboxes find them.
//
// Every sandbox has a portal: a directory of the host that is bound into it when it is
// warmed, and below which what is mounted later shows inside at once. volumed says where a
// volume is mounted; this package binds that into the portal, under a name that tells
// volume and mount. So what a sandbox holds can be told from the directory alone, whatever
// noded remembers: that is what a teardown goes by. The directories are ours and empty,
// and no path of a mount comes from a sandbox. Who may have which volume is for others to
// know, and so is the sandbox's own half, which procd does.
package volumes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
)

const (
	// useTimeout bounds a mount, which fetches what describes the volume's files.
	useTimeout = 30 * time.Second
	// commitTimeout bounds a commit: as much as a sandbox can write on a slow disk.
	commitTimeout = 10 * time.Minute
	separator     = "~"
)

// names are those that ids of volumes and mounts may have.
var names = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$`)

// Mount is one of a sandbox's.
type Mount struct {
	ID       string
	Volume   volumeapi.Volume
	ReadOnly bool
}

// Name is the mount's in the portal.
func (m Mount) Name() string { return m.Volume.ID + separator + m.ID }

func (m Mount) validate() error {
	if !names.MatchString(m.ID) || !names.MatchString(m.Volume.ID) {
		return errdefs.New(errdefs.InvalidArgument, "mount %.64q of volume %.64q", m.ID, m.Volume.ID)
	}
	return nil
}

// Agent is safe for concurrent use, but for one sandbox by one caller at a time.
type Agent struct {
	dir string // a shared mount
	*volumeapi.Client
}

// Open makes dir the place of portals; volumed listens on a socket.
func Open(dir, socket string) (*Agent, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	there, err := mountsAt(dir)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(there, dir) {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("making %s a mount: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return nil, fmt.Errorf("sharing %s: %w", dir, err)
	}
	return &Agent{dir: dir, Client: volumeapi.NewClient(socket)}, nil
}

// Dir is a sandbox's portal.
func (a *Agent) Dir(id sandbox.ID) string { return filepath.Join(a.dir, string(id)) }

// Prepare makes a sandbox's portal.
func (a *Agent) Prepare(id sandbox.ID) error {
	if err := os.Mkdir(a.Dir(id), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Attach shows a volume in a sandbox's portal, under the mount's name. It may be repeated,
// and is when volumed or noded have restarted.
func (a *Agent) Attach(ctx context.Context, id sandbox.ID, m Mount) error {
	if err := m.validate(); err != nil {
		return err
	}
	at := filepath.Join(a.Dir(id), m.Name())
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) { // before the use: see DetachAll
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, useTimeout)
	defer cancel()
	mounted, err := a.Use(ctx, volumeapi.Use{Volume: m.Volume, Use: m.ID, ReadOnly: m.ReadOnly})
	if err != nil {
		return fmt.Errorf("volume %s: %w", m.Volume.ID, err)
	}
	there, err := mountsAt(at)
	if err != nil || slices.Contains(there, at) {
		return err
	}
	if err := bind(mounted.Path, at, m.ReadOnly); err != nil {
		return fmt.Errorf("volume %s: %w", m.Volume.ID, err)
	}
	return nil
}

// bind binds a directory that is not reached through a symlink (C06).
func bind(from, at string, readOnly bool) error {
	fd, err := unix.Openat2(unix.AT_FDCWD, from, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return fmt.Errorf("opening %s: %w", from, err)
	}
	defer unix.Close(fd)
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("binding %s: %w", from, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("flags of %s: %w", from, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting at %s: %w", at, err)
	}
	return nil
}

// Detach takes a mount out of a sandbox's portal and ends its use, which commits. An error
// of the commit alone is told when the mount is gone.
func (a *Agent) Detach(ctx context.Context, id sandbox.ID, m Mount) error {
	if err := m.validate(); err != nil {
		return err
	}
	return a.detach(ctx, filepath.Join(a.Dir(id), m.Name()), m.Volume.ID, m.ID)
}

func (a *Agent) detach(ctx context.Context, at, volume, use string) error {
	if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting %s: %w", at, err)
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err := a.Leave(ctx, volumeapi.Leave{ID: volume, Use: use})
	if errors.Is(err, volumeapi.ErrDown) {
		return err // it has to be told
	}
	// The directory says that there is a use, so it goes last.
	if gone := os.Remove(at); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		return gone
	}
	return err
}

// DetachAll takes away whatever a sandbox has in its portal, and the portal. That what was
// written could not be committed now does not hold it up: volumed has it.
func (a *Agent) DetachAll(ctx context.Context, id sandbox.ID) error {
	entries, err := os.ReadDir(a.Dir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		volume, use, ok := strings.Cut(e.Name(), separator)
		if !ok {
			return fmt.Errorf("portal of %s: %q is no mount", id, e.Name())
		}
		at := filepath.Join(a.Dir(id), e.Name())
		if err := a.detach(ctx, at, volume, use); err != nil && !isGone(at) {
			return err
		}
	}
	if err := os.Remove(a.Dir(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func isGone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// CommitAll makes what was written through mounts durable.
func (a *Agent) CommitAll(ctx context.Context, mounts []Mount) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	var failed []error
	for _, m := range mounts {
		if m.ReadOnly {
			continue
		}
		if _, err := a.Commit(ctx, m.Volume.ID); err != nil {
			failed = append(failed, fmt.Errorf("volume %s: %w", m.Volume.ID, err))
		}
	}
	return errors.Join(failed...)
}

// List finds the sandboxes that have a portal.
func (a *Agent) List() (all []sandbox.ID, err error) {
	entries, err := os.ReadDir(a.dir)
	for _, e := range entries {
		if id, err := sandbox.ParseID(e.Name()); err == nil {
			all = append(all, id)
		}
	}
	return all, err
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
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			all = append(all, fields[4])
		}
	}
	return all, lines.Err()
}
