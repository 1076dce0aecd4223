package noded

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// kataShim is what containerd starts for io.containerd.kata.v2.
	kataShim  = "containerd-shim-kata-v2"
	kvmDevice = "/dev/kvm"
	// kvmVersion is the only one that there has been, and getKVMVersion asks for it.
	kvmVersion, getKVMVersion = 12, 0xAE00
)

// checkKata says what is missing for sandboxes that are virtual machines.
func checkKata(containerd, kvm string) error {
	if _, err := findShim(kataShim, shimDirs(containerd)); err != nil {
		return err
	}
	return checkKVM(kvm)
}

// findShim is where containerd finds a shim.
func findShim(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue // of containerd's own directory, and not to be trusted
		}
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no %s where containerd looks for it: %q", name, dirs)
}

// shimDirs are the directories in which the containerd of a socket looks for shims:
// those of its PATH, and its own. Where that can't be seen, because it is away or
// another's process, this process's PATH stands for it.
func shimDirs(socket string) []string {
	process, err := serverOf(socket)
	if err != nil {
		return filepath.SplitList(os.Getenv("PATH"))
	}
	environ, err := os.ReadFile(filepath.Join(process, "environ"))
	if err != nil {
		return filepath.SplitList(os.Getenv("PATH"))
	}
	var dirs []string
	for variable := range bytes.SplitSeq(environ, []byte{0}) {
		if path, is := bytes.CutPrefix(variable, []byte("PATH=")); is {
			dirs = filepath.SplitList(string(path))
		}
	}
	if exe, err := os.Readlink(filepath.Join(process, "exe")); err == nil {
		dirs = append(dirs, filepath.Dir(exe))
	}
	return dirs
}

// serverOf is what /proc shows of the process that listens on a unix socket.
func serverOf(socket string) (string, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "", err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return "", err
	}
	if failed != nil {
		return "", failed
	}
	if peer.Pid == 0 {
		return "", errors.New("it is not in this namespace of processes")
	}
	return fmt.Sprintf("/proc/%d", peer.Pid), nil
}

// checkKVM asks the kernel's hypervisor for its version.
func checkKVM(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("virtual machines need the kernel's hypervisor: %w", err)
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), getKVMVersion)
	if err != nil {
		return fmt.Errorf("asking %s for its version: %w", device, err)
	}
	if version != kvmVersion {
		return fmt.Errorf("%s has version %d, which is not known here", device, version)
	}
	return nil
}
