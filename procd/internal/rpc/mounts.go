package rpc

import (
	"bufio"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const mountPointMode = 0o755

// mount binds what noded has put into the portal to its place. The sandbox's own kernel
// does: where it does not like the place, nothing of the host is harmed.
func (s *server) mount(w http.ResponseWriter, r *http.Request) error {
	m, from, err := decodeMount(w, r)
	if err != nil {
		return err
	}
	there, err := mountedAt(m.Target)
	if err != nil {
		return err
	}
	if there {
		return ok(w, struct{}{}) // it is repeated, or was restored with the sandbox
	}
	if err := os.MkdirAll(m.Target, mountPointMode); err != nil {
		return errdefs.New(errdefs.Conflict, "mount point %.200q: %v", m.Target, errno(err))
	}
	if err := unix.Mount(from, m.Target, "", unix.MS_BIND, ""); err != nil {
		return errdefs.New(errdefs.Conflict, "mounting at %.200q: %v", m.Target, err)
	}
	return ok(w, struct{}{})
}

// unmount takes a mount away that nothing uses.
func (s *server) unmount(w http.ResponseWriter, r *http.Request) error {
	m, _, err := decodeMount(w, r)
	if err != nil {
		return err
	}
	err = unix.Unmount(m.Target, unix.UMOUNT_NOFOLLOW)
	switch {
	case errors.Is(err, unix.EBUSY):
		return errdefs.New(errdefs.Conflict, "processes use what is mounted at %.200q", m.Target)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // it is none
	case err != nil:
		return errdefs.New(errdefs.Conflict, "unmounting %.200q: %v", m.Target, err)
	}
	return ok(w, struct{}{})
}

func decodeMount(w http.ResponseWriter, r *http.Request) (m procapi.Mount, from string, err error) {
	if err := decode(w, r, &m); err != nil {
		return m, "", err
	}
	if m.Name == "" || m.Name != filepath.Base(m.Name) || strings.HasPrefix(m.Name, ".") {
		return m, "", invalid("name %.80q", m.Name)
	}
	if !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) != m.Target || m.Target == "/" {
		return m, "", invalid("target %.200q: want an absolute and clean path", m.Target)
	}
	return m, filepath.Join(procapi.Portal, m.Name), nil
}

func errno(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// mountedAt asks the sandbox's kernel.
func mountedAt(target string) (bool, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && fields[4] == target {
			return true, nil
		}
	}
	return false, lines.Err()
}
