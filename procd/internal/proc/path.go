package proc

import (
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LookPath finds the executable that name means for a process that will run in
// dir with PATH path: as execvp(3) would, but with the process's own PATH and
// directory in place of procd's. The error is ENOENT, or EACCES where the only
// matches can't be executed.
func LookPath(name, dir, path string) (string, error) {
	if strings.Contains(name, "/") {
		return executable(join(dir, name))
	}
	found := error(unix.ENOENT)
	for _, d := range filepath.SplitList(path) {
		p, err := executable(join(join(dir, d), name))
		if err == nil {
			return p, nil
		}
		if err == unix.EACCES {
			found = err
		}
	}
	return "", found
}

// join is filepath.Join where an absolute second part wins.
func join(dir, p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(dir, p)
}

func executable(p string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return "", unix.EACCES
	}
	return p, nil
}
