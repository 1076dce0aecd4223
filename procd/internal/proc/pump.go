package proc

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/procd/internal/rawio"
)

const (
	// A stream is read in small pieces until one fills its buffer; from then on in
	// large ones, from a larger pipe, which more than doubles what goes through.
	smallRead = 16 << 10
	largeRead = 256 << 10
	largePipe = 1 << 20 // what an unprivileged process may have

	// drainLimit bounds what is still taken from a stream whose process has ended
	// while another one goes on writing: no pipe holds more.
	drainLimit = 1 << 20
)

// Buffers are shared by all pumps and taken only while there is something to
// read, so that an idle stream costs a goroutine and nothing else.
var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallRead); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeRead); return &b }}
)

var errStreamEnd = errors.New("end of stream")

// pump moves one stream of a process into its log.
type pump struct {
	file *os.File
	conn syscall.RawConn
	log  *Log
	emit func([]byte)
	busy bool // reads large pieces

	settled chan struct{} // closed once everything that belongs to the log is in it
}

// newPump takes over file, which must be in non-blocking mode.
func newPump(file *os.File, log *Log, emit func([]byte)) (*pump, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &pump{file: file, conn: conn, log: log, emit: emit, settled: make(chan struct{})}, nil
}

// run returns when every writer has closed the stream, or the pump was closed.
// After [pump.settle] it takes what is there and from then on drops the rest.
func (p *pump) run() {
	defer p.file.Close()
	if err := p.copy(p.log.Await, p.emit); errors.Is(err, os.ErrDeadlineExceeded) {
		_ = p.file.SetReadDeadline(time.Time{})
		p.drain()
		close(p.settled)
		_ = p.copy(func() {}, func([]byte) {}) // a writer must not get SIGPIPE for outliving its parent
		return
	}
	close(p.settled)
}

// settle makes run stop waiting for the end of the stream.
func (p *pump) settle() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) }

// copy reads until the stream ends or the deadline interrupts it, each time when
// await returns.
func (p *pump) copy(await func(), emit func([]byte)) error {
	for {
		await()
		var ended error
		err := p.conn.Read(func(fd uintptr) (done bool) {
			var n int
			n, ended = p.read(int(fd), emit)
			return n > 0 || ended != nil
		})
		if err != nil {
			return err
		}
		if ended != nil {
			return ended
		}
	}
}

// drain takes what is in the stream now.
func (p *pump) drain() {
	for total := 0; total < drainLimit; {
		p.log.Await()
		var n int
		var ended error
		err := p.conn.Read(func(fd uintptr) (done bool) {
			n, ended = p.read(int(fd), p.emit)
			return true
		})
		if err != nil || ended != nil || n == 0 {
			return
		}
		total += n
	}
}

// read emits what one read gives; 0 without an error means nothing is there.
func (p *pump) read(fd int, emit func([]byte)) (int, error) {
	buffers := &smallBuffers
	if p.busy {
		buffers = &largeBuffers
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := rawio.Read(fd, *buf)
	if err == unix.EIO {
		// A terminal's end of file. Linux looks for output first and for the program's end
		// then, so what came in between is still there: it is found by another look.
		n, err = rawio.Read(fd, *buf)
	}
	switch {
	case err == unix.EAGAIN:
		return 0, nil
	case err != nil:
		return 0, err
	case n == 0:
		return 0, errStreamEnd
	}
	emit((*buf)[:n])
	if n == len(*buf) && !p.busy {
		p.busy = true
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, largePipe) // a terminal has none
	}
	return n, nil
}
