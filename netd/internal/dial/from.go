package dial

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// ResolverFrom connects to the operator's resolvers, which no sandbox chooses, from
// another network namespace: what a machine's resolv.conf names may be its own
// loopback. here is the namespace to come back to.
func ResolverFrom(there, here *os.File) func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, network string, to netip.AddrPort) (conn net.Conn, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err = dialFrom(ctx, there, here, network, to)
		}()
		<-done
		return conn, err
	}
}

// dialFrom connects by hand, for net's dialler may change threads: the socket
// belongs to the namespace of the thread that makes it, and of that thread alone.
func dialFrom(ctx context.Context, there, here *os.File, network string, to netip.AddrPort) (net.Conn, error) {
	fd, err := socketFrom(there, here, network, to)
	if err != nil {
		return nil, err
	}
	return connect(ctx, fd, to)
}

// socketFrom makes a socket in another namespace. A thread that does not come back
// from there is not used again.
func socketFrom(there, here *os.File, network string, to netip.AddrPort) (fd int, err error) {
	runtime.LockOSThread()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return -1, os.NewSyscallError("setns", err)
	}
	family, kind := unix.AF_INET, unix.SOCK_DGRAM
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	if network == "tcp" {
		kind = unix.SOCK_STREAM
	}
	fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back == nil {
		runtime.UnlockOSThread() // else the goroutine's end takes the thread along
	}
	return fd, os.NewSyscallError("socket", err)
}

// connect connects a socket without blocking a thread.
func connect(ctx context.Context, fd int, to netip.AddrPort) (net.Conn, error) {
	err := unix.Connect(fd, sockaddr(to))
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	file := os.NewFile(uintptr(fd), "resolver")
	defer file.Close()
	if err == unix.EINPROGRESS {
		if err := connected(ctx, file); err != nil {
			return nil, fmt.Errorf("connecting to %s: %w", to, err)
		}
	}
	return net.FileConn(file)
}

func connected(ctx context.Context, file *os.File) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := file.SetWriteDeadline(deadline); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, func() { file.SetWriteDeadline(time.Unix(1, 0)) })() //nolint:errcheck // it is closed
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	asked := false
	err = raw.Write(func(fd uintptr) bool {
		if !asked { // wait once: it was in progress a moment ago
			asked = true
			return false
		}
		var code int
		if code, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); failed == nil && code != 0 {
			failed = unix.Errno(code)
		}
		return true
	})
	if err != nil {
		return err
	}
	return failed
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}
