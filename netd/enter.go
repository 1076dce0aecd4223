package netd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// hostEnv carries the descriptor of the host's network namespace to the process that
// is inside the other.
const hostEnv = "S0_NETD_HOST_NS"

const (
	namespaceLimit = 30 * time.Second // for a noded that is started at the same time
	namespaceLook  = 100 * time.Millisecond
)

// enter puts the whole process into the data plane's network namespace, so that
// whatever it opens is there, and returns the host's. Only one thread can change its
// namespace; so that thread starts the program anew. It should be the main thread:
// another loses the signal that the process asked for at its parent's death.
func enter(ctx context.Context, path string) (host *os.File, err error) {
	if value := os.Getenv(hostEnv); value != "" {
		fd, err := strconv.Atoi(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", hostEnv, err)
		}
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), "host network namespace"), nil
	}
	inside, err := awaitNamespace(ctx, path)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0) // stays open over the exec
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	runtime.LockOSThread() // for good: the thread can't come back
	if err := unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, os.NewSyscallError("setns", err)
	}
	env := append(os.Environ(), hostEnv+"="+strconv.Itoa(fd))
	return nil, os.NewSyscallError("exec", unix.Exec("/proc/self/exe", os.Args, env))
}

// awaitNamespace opens the data plane's namespace. noded makes it, and a pod starts both at
// once: one that is not there yet is waited for.
func awaitNamespace(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, namespaceLimit)
	defer cancel()
	for {
		ns, err := openNamespace(path)
		if !errors.Is(err, os.ErrNotExist) {
			return ns, err
		}
		select {
		case <-time.After(namespaceLook):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: noded makes it; is noded running?", err)
		}
	}
}

// openNamespace takes a file on which no namespace is mounted yet for none.
func openNamespace(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err = unix.Fstatfs(int(f.Fd()), &fs); err == nil && fs.Type != unix.NSFS_MAGIC {
		err = os.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// UplinkName is the host's end of a data plane's way out, the same at every start.
func UplinkName(netns string) string {
	h := fnv.New32a()
	h.Write([]byte(filepath.Clean(netns)))
	return fmt.Sprintf("s0up%08x", h.Sum32())
}

// runID names this process among all netds.
func runID() string { return rand.Text() }
