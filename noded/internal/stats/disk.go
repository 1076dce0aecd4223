package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// upperPrefix begins the name of the file in which a sentry keeps the upper
	// layer of a root filesystem. It unlinks the file as soon as it has it open, so
	// that the only way to it is the sentry's descriptor.
	upperPrefix = "runsc-filestore-"
	// searchPause is how long nothing is looked for that was not there.
	searchPause = time.Minute
	// blockBytes is the unit of stat's blocks, on every filesystem.
	blockBytes = 512
)

// upper is the upper layer of a sandbox's root filesystem: a sparse file, whose
// blocks are what the sandbox has written and not removed.
type upper struct {
	dir string // where the file was made

	mu       sync.Mutex
	at       place
	searched time.Time // in vain
}

// place is a descriptor and what is open there; the descriptor's process may end
// and its pid become another's.
type place struct {
	link     string // /proc/<pid>/fd/<n>; "" while it is not known
	dev, ino uint64
}

// bytes is what the layer takes on the host's disk; false where there is no such
// file. processes lists the sandbox's, in one of which it is open.
func (u *upper) bytes(processes func() ([]int, error)) (int64, bool) {
	u.mu.Lock()
	at, searched := u.at, u.searched
	u.mu.Unlock()
	if st, ok := stat(at.link); ok && at == placeOf(at.link, st) {
		return st.Blocks * blockBytes, true
	}
	if time.Since(searched) < searchPause {
		return 0, false
	}
	pids, err := processes()
	if err != nil {
		return 0, false
	}
	at, size, ok := search(pids, filepath.Join(u.dir, upperPrefix))
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.at = at; !ok {
		u.searched = time.Now()
	}
	return size, ok
}

// search looks for a file whose name begins with prefix among what processes have
// open. Names are the kernel's word, and to look at a descriptor opens nothing.
func search(pids []int, prefix string) (place, int64, bool) {
	for _, pid := range pids {
		fds := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(fds)
		if err != nil {
			continue // it has ended
		}
		for _, e := range entries {
			link := filepath.Join(fds, e.Name())
			if name, err := os.Readlink(link); err != nil || !strings.HasPrefix(name, prefix) {
				continue
			}
			if st, ok := stat(link); ok {
				return placeOf(link, st), st.Blocks * blockBytes, true
			}
		}
	}
	return place{}, 0, false
}

func placeOf(link string, st *syscall.Stat_t) place { return place{link, st.Dev, st.Ino} }

func stat(link string) (*syscall.Stat_t, bool) {
	if link == "" {
		return nil, false
	}
	info, err := os.Stat(link)
	if err != nil || !info.Mode().IsRegular() {
		return nil, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}
