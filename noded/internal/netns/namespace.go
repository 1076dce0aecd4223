package netns

import (
	"errors"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const ownNamespace = "/proc/thread-self/ns/net"

// create makes a network namespace, has it prepared, and binds it at path, where it
// lives without any process in it.
func create(path string, prepare func() error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if errors.Is(err, fs.ErrExist) { // left by a creation that died before the bind
		if isNamespace(path) {
			return fs.ErrExist
		}
	} else if err != nil {
		return err
	} else {
		f.Close()
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := prepare(); err != nil { // before there is a link to address
			return err
		}
		return os.NewSyscallError("mount", unix.Mount(ownNamespace, path, "", unix.MS_BIND, ""))
	})
}

// remove unbinds the namespace; the kernel frees it with its last user.
func remove(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not a mount; no such file
		return os.NewSyscallError("umount", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// inside runs f on a thread that is in the namespace bound at path.
func inside(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own choice of namespace. The thread goes
// back to work for others only if it is certain to be home again; otherwise it
// ends with its goroutine.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(ownNamespace)
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// handleAt opens a netlink connection inside the namespace bound at path.
func handleAt(path string) (h *netlink.Handle, err error) {
	err = inside(path, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}
