// Package relay carries bytes between a sandbox and the world, and knows which
// flows are open.
//
// A [Line] passes two TCP connections' bytes on unchanged, with their ends: a half
// that closes is closed on the other side, a reset is a reset there. What waits holds
// no buffer and no pipe, so that a line that is paused is nothing but its two sockets,
// and another process can go on with it. The [Registry] cuts flows that a changed
// policy no longer allows, and those that hardly move. The package judges nothing.
package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is what one read takes; what fills it is followed by a splice of
	// what waits behind it, if that is worth a pipe.
	bufferSize = 32 << 10
	spliceFrom = 16 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// ErrPaused is what passing ends in that was paused: every byte that was read of one
// side is written to the other, and both are open.
var ErrPaused = errors.New("the line is paused")

// errStuck is what passing ends in that could not be paused.
var errStuck = errors.New("a side took nothing while the line was to pause")

// Line is a connection of a sandbox and the one that it leads to.
type Line struct {
	Client, Upstream *net.TCPConn
	Flow             *Flow
	// UpDone and DownDone say that what the client, and what upstream, has to say is at
	// its end, which the other side knows. Pass sets them.
	UpDone, DownDone bool

	paused atomic.Bool
	limit  *time.Timer // of a pause; set before paused is
	broken atomic.Bool // a way of it, so that nobody can go on with the other
}

// Pass passes bytes on both ways until both sides are done or one breaks, and closes
// both, or until it is paused. head is what was read of the client already.
func (l *Line) Pass(head []byte) error {
	done := make(chan error, 1)
	go func() { done <- l.way(l.Client, l.Upstream, &l.DownDone, l.Flow.addDown) }()
	err := write(l.Upstream, head, l.Flow.addUp)
	if err != nil {
		l.abort()
	} else {
		err = l.way(l.Upstream, l.Client, &l.UpDone, l.Flow.addUp)
	}
	back := <-done
	pausing := errors.Is(err, ErrPaused) || errors.Is(back, ErrPaused)
	if l.broken.Load() || pausing && !l.limit.Stop() {
		l.abort()
		return broken(err, back)
	}
	if pausing {
		return ErrPaused
	}
	l.Client.Close()
	l.Upstream.Close()
	return nil
}

// broken is what a line ends in with which nobody can go on, though a way of it may be
// paused.
func broken(ways ...error) error {
	ways = slices.DeleteFunc(ways, func(err error) bool { return errors.Is(err, ErrPaused) })
	if err := errors.Join(ways...); err != nil {
		return err
	}
	return errStuck
}

// Pause has Pass return as soon as nothing is under way. Where a side takes nothing for
// so long, the line is cut. It is called once.
func (l *Line) Pause(within time.Duration) {
	l.limit = time.AfterFunc(within, l.abort)
	l.paused.Store(true)
	for _, c := range []*net.TCPConn{l.Client, l.Upstream} {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // a closed one ends by itself
	}
}

// abort makes both sides see a reset, as the broken one did: what was cut must not
// look complete. It also ends what is blocked on either.
func (l *Line) abort() {
	l.broken.Store(true)
	for _, c := range []*net.TCPConn{l.Client, l.Upstream} {
		c.SetLinger(0) //nolint:errcheck // a closed one needs none
		c.Close()
	}
}

// way moves src's bytes to dst until src's end, and passes that on. A failure breaks
// both sides, so that the other way ends, too.
func (l *Line) way(dst, src *net.TCPConn, done *bool, count func(int)) error {
	if *done {
		return nil
	}
	err := copyAll(dst, src, count)
	if err != nil && l.paused.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrPaused
	}
	if err == nil {
		*done = true
		err = dst.CloseWrite()
		if errors.Is(err, unix.ENOTCONN) {
			err = nil
		}
	}
	if err != nil {
		l.abort()
	}
	return err
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
