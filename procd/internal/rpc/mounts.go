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

func (s *server) mount(w http.ResponseWriter, r *http.Request) error {
	var m procapi.Mount
	if err := decode(w, r, &m); err != nil {
		return err
	}
	if _, err := mountAll([]procapi.Mount{m}); err != nil {
		return err
	}
	return ok(w, struct{}{})
}

// mountAll makes mounts that are not there yet: they may be repeated, or were restored
// with the sandbox. some tells whether there were any.
func mountAll(all []procapi.Mount) (some bool, err error) {
	for _, m := range all {
		from, err := portalOf(m)
		if err != nil {
			return some, err
		}
		there, err := mountedAt(m.Target)
		if err != nil {
			return some, err
		}
		if there {
			continue
		}
		if err := bind(from, m.Target); err != nil {
			return some, err
		}
		some = true
	}
	return some, nil
}

// bind binds what noded has put into the portal to its place. The sandbox's own kernel
// does: where it does not like the place, nothing of the host is harmed.
func bind(from, target string) error {
	if err := os.MkdirAll(target, mountPointMode); err != nil {
		return errdefs.New(errdefs.Conflict, "mount point %.200q: %v", target, errno(err))
	}
	if err := unix.Mount(from, target, "", unix.MS_BIND, ""); err != nil {
		return errdefs.New(errdefs.Conflict, "mounting at %.200q: %v", target, err)
	}
	return nil
}

// unmount takes a mount away that nothing uses.
func (s *server) unmount(w http.ResponseWriter, r *http.Request) error {
	var m procapi.Mount
	if err := decode(w, r, &m); err != nil {
		return err
	}
	if _, err := portalOf(m); err != nil {
		return err
	}
	err := unix.Unmount(m.Target, unix.UMOUNT_NOFOLLOW)
	switch {
	case errors.Is(err, unix.EBUSY):
		return errdefs.New(errdefs.Conflict, "processes use what is mounted at %.200q", m.Target)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // it is none
	case err != nil:
		return errdefs.New(errdefs.Conflict, "unmounting %.200q: %v", m.Target, err)
	}
	return ok(w, struct{}{})
}

// portalOf checks a mount and says where in the portal it is.
func portalOf(m procapi.Mount) (from string, err error) {
	if m.Name == "" || m.Name != filepath.Base(m.Name) || strings.HasPrefix(m.Name, ".") {
		return "", invalid("name %.80q", m.Name)
	}
	if !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) != m.Target || m.Target == "/" {
		return "", invalid("target %.200q: want an absolute and clean path", m.Target)
	}
	return filepath.Join(procapi.Portal, m.Name), nil
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
