// Package relay carries bytes between a sandbox and the world, and knows which
// flows are open.
//
// [Splice] passes two TCP connections' bytes on unchanged, with their ends: a half
// that closes is closed on the other side, a reset is a reset there. A flow that
// waits holds no buffer and no pipe. The [Registry] cuts flows that a changed
// policy no longer allows, and those that hardly move. The package judges nothing.
package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is what one read takes; what fills it is followed by a splice of
	// what waits behind it, if that is worth a pipe.
	bufferSize = 32 << 10
	spliceFrom = 16 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// Splice passes bytes on both ways until both sides are done or one breaks, and
// closes both. head is what was read of the client already.
func Splice(client, upstream *net.TCPConn, head []byte, flow *Flow) error {
	done := make(chan error, 1)
	go func() { done <- pass(client, upstream, flow.addDown) }()
	err := write(upstream, head, flow.addUp)
	if err == nil {
		err = pass(upstream, client, flow.addUp)
	}
	if err != nil {
		abort(client, upstream)
	}
	back := <-done
	err = errors.Join(err, back)
	if err != nil {
		abort(client, upstream)
	}
	client.Close()
	upstream.Close()
	return err
}

// abort makes both sides see a reset, as the broken one did: what was cut must not
// look complete. It also ends what is blocked on either.
func abort(conns ...*net.TCPConn) {
	for _, c := range conns {
		c.SetLinger(0) //nolint:errcheck // a closed one needs none
		c.Close()
	}
}

// pass moves src's bytes to dst until src's end, and passes that on. A failure
// breaks both sides, so that the other way ends, too.
func pass(dst, src *net.TCPConn, count func(int)) error {
	err := copyAll(dst, src, count)
	if err != nil {
		abort(dst, src)
		return err
	}
	if err := dst.CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return err
	}
	return nil
}

func copyAll(dst, src *net.TCPConn, count func(int)) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	for {
		full, err := copySome(dst, raw, count)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !full {
			continue
		}
		if n := waiting(raw); n >= spliceFrom {
			moved, err := io.CopyN(dst, src, int64(n)) // splice(2)
			count(int(moved))
			if err != nil {
				return err
			}
		}
	}
}

// copySome waits for bytes and passes on what one read takes. The buffer is taken
// when there is something to read, and not before.
func copySome(dst *net.TCPConn, src syscall.RawConn, count func(int)) (full bool, err error) {
	var buf *[]byte
	var n int
	var readErr error
	err = src.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[]byte)
		n, readErr = readOnce(int(fd), *buf)
		if readErr == unix.EAGAIN {
			buffers.Put(buf)
			return false
		}
		return true
	})
	if err != nil {
		return false, err
	}
	defer buffers.Put(buf)
	switch {
	case readErr != nil:
		return false, readErr
	case n == 0:
		return false, io.EOF
	}
	return n == len(*buf), write(dst, (*buf)[:n], count)
}

func readOnce(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// waiting is how many bytes can be read at once.
func waiting(src syscall.RawConn) (n int) {
	if src.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) != nil {
		return 0
	}
	return n
}

func write(dst *net.TCPConn, b []byte, count func(int)) error {
	if len(b) == 0 {
		return nil
	}
	n, err := dst.Write(b)
	count(n)
	return err
}

// Counted is a connection from a sandbox whose bytes count for a flow.
type Counted struct {
	net.Conn
	Flow *Flow
}

func (c Counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.Flow.addUp(n)
	return n, err
}

func (c Counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.Flow.addDown(n)
	return n, err
}
