// Package cage starts processes that may do next to nothing, for what reads what tenants
// made or say.
//
// A caged process has the descriptors that it is given, the capabilities that are named
// and, when it has called [Enter], a root directory of its own. It gets no others,
// whatever it executes. The package starts them and keeps nothing.
package cage

import (
	"errors"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Start starts cmd as a user with these capabilities and the one that Enter needs, in a
// session of its own. It does so from a thread that can pass on no more, and ends with that.
func Start(cmd *exec.Cmd, uid, gid uint32, caps ...uintptr) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Credential = true, &syscall.Credential{Uid: uid, Gid: gid}
	cmd.SysProcAttr.AmbientCaps = append([]uintptr{unix.CAP_SYS_CHROOT}, caps...)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		err := bound(cmd.SysProcAttr.AmbientCaps)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// bound takes every other capability from this thread and what it starts, root or not.
func bound(caps []uintptr) error {
	keep := map[uintptr]bool{}
	for _, c := range caps {
		keep[c] = true
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // one that this kernel does not have
			return errors.New("capability " + strconv.Itoa(int(c)) + ": " + err.Error())
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// Enter makes a directory the root of this process, closes it, and gives up every
// capability but these.
func Enter(dir int, caps ...uintptr) error {
	if err := errors.Join(unix.Fchdir(dir), unix.Chroot("."), unix.Close(dir)); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, c := range caps {
		data[c/32].Permitted |= 1 << (c % 32)
	}
	data[0].Effective, data[1].Effective = data[0].Permitted, data[1].Permitted
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 && errno != unix.ENOTSUP { // a build with cgo, which tests alone are, can't
		return errno
	}
	return nil
}
