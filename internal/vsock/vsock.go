// Package vsock is the socket between a virtual machine and its host, as package net
// has sockets. It keeps nothing, and decides nothing but this: a listener, which is
// inside a machine, takes the connections of its host alone.
package vsock

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// backlog is how many connections may wait: one host has one caller.
const backlog = 4

// Addr is one end: a machine's context id, and a port there.
type Addr struct{ CID, Port uint32 }

// Network implements [net.Addr].
func (Addr) Network() string { return "vsock" }

// String implements [net.Addr].
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// Dial connects to a port of a machine. It fails after the two seconds that the kernel
// waits for one that does not answer.
func Dial(to Addr) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: to.CID, Port: to.Port}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	return &conn{File: os.NewFile(uintptr(fd), to.Network()), local: Addr{CID: unix.VMADDR_CID_ANY}, remote: to}, nil
}

// conn is a connected socket; files have deadlines, too.
type conn struct {
	*os.File
	local, remote Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Listen takes the host's connections to a port of this machine.
func Listen(port uint32) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	addr := Addr{CID: unix.VMADDR_CID_ANY, Port: port}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: addr.CID, Port: addr.Port}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("listen", err)
	}
	return &listener{file: os.NewFile(uintptr(fd), addr.Network()), addr: addr}, nil
}

type listener struct {
	file *os.File
	addr Addr
}

func (l *listener) Addr() net.Addr { return l.addr }
func (l *listener) Close() error   { return l.file.Close() }

// Accept waits for the host. Whoever else connects, from inside the machine, is shown
// out.
func (l *listener) Accept() (net.Conn, error) {
	for {
		fd, from, err := l.accept()
		if err != nil {
			return nil, err
		}
		if fromHost(from) {
			return &conn{File: os.NewFile(uintptr(fd), l.addr.Network()), local: l.addr, remote: from}, nil
		}
		unix.Close(fd)
	}
}

func fromHost(a Addr) bool { return a.CID == unix.VMADDR_CID_HOST }

func (l *listener) accept() (fd int, from Addr, err error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return -1, Addr{}, err
	}
	var peer unix.Sockaddr
	var failed error
	err = raw.Read(func(listening uintptr) bool {
		fd, peer, failed = unix.Accept4(int(listening), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return failed != unix.EAGAIN && failed != unix.EINTR && failed != unix.ECONNABORTED
	})
	if err != nil { // nothing else ends the wait
		return -1, Addr{}, net.ErrClosed
	}
	if failed != nil {
		return -1, Addr{}, os.NewSyscallError("accept", failed)
	}
	if vm, ok := peer.(*unix.SockaddrVM); ok {
		from = Addr{CID: vm.CID, Port: vm.Port}
	}
	return fd, from, nil
}
