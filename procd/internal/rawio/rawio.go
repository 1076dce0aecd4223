// Package rawio reads and writes descriptors that never block, without telling the Go
// scheduler.
//
// An ordinary system call of a program that was idle wakes the scheduler's own watcher,
// sysmon, which then looks every 20 µs until the program is idle again. Each of that is a
// system call too, and a thread more, and in a sandbox both cost what a small call's whole
// answer does. A call that can't block needs no watcher.
//
// A goroutine that always finds something to do needs one, however: nothing else interrupts
// it. So only a few calls in a row are raw, counted anew whenever a descriptor had nothing
// to read: its goroutine waits for the network then, and lets every other run.
//
// The package owns that count and nothing else.
package rawio

import (
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mostInARow is more than a small call takes: its pieces in, its pieces out.
const mostInARow = 16

var inARow atomic.Int32

// Read reads from a descriptor in non-blocking mode; 0 bytes without an error are its end.
func Read(fd int, b []byte) (int, error) {
	for {
		n, err := call(unix.SYS_READ, unix.Read, fd, b)
		if err == unix.EAGAIN {
			inARow.Store(0)
		}
		if err != unix.EINTR {
			return n, err
		}
	}
}

// write writes to a descriptor in non-blocking mode.
func write(fd int, b []byte) (int, error) {
	for {
		if n, err := call(unix.SYS_WRITE, unix.Write, fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

func call(raw uintptr, ordinary func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	if len(b) == 0 || inARow.Add(1) > mostInARow {
		return ordinary(fd, b)
	}
	n, _, errno := unix.RawSyscall(raw, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// WriteAll writes all of b, and waits where the descriptor takes no more.
func WriteAll(conn syscall.RawConn, b []byte) (written int, err error) {
	var failed error
	err = conn.Write(func(fd uintptr) (done bool) {
		for len(b) > 0 {
			n, err := write(int(fd), b)
			if err == unix.EAGAIN {
				return false
			}
			if failed = err; err != nil {
				return true
			}
			written, b = written+n, b[n:]
		}
		return true
	})
	if err == nil {
		err = failed
	}
	return written, err
}

// Conn is a connection whose reads and writes are such calls.
type Conn struct {
	net.Conn
	raw syscall.RawConn
}

// NewConn takes over a connection of the kernel's.
func NewConn(conn interface {
	net.Conn
	syscall.Conn
}) (*Conn, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: conn, raw: raw}, nil
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (n int, err error) {
	var failed error
	err = c.raw.Read(func(fd uintptr) (done bool) {
		n, failed = Read(int(fd), b)
		return failed != unix.EAGAIN
	})
	if err == nil {
		err = failed
	}
	if n == 0 && err == nil && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) { return WriteAll(c.raw, b) }
