package wsapi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"s0.run/internal/procapi"
)

const (
	idleBuffer = 2 << 10
	bulkBuffer = 256 << 10 // several frames of procd's in one read

	frameHeader = 5
)

var bulkBuffers = sync.Pool{New: func() any { return new([bulkBuffer]byte) }}

// frameReader reads procd's frames (see procapi.ReadFrame), through a buffer that
// is large only while they come in bulk: most sessions are idle most of the time.
type frameReader struct {
	r      io.Reader
	buf    []byte
	bulk   *[bulkBuffer]byte // what buf is a part of, if it is a shared one
	unread []byte            // within buf
	large  bool              // the last read filled the buffer
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: r, buf: make([]byte, idleBuffer)}
}

// next returns the next frame, whose payload is valid until the following call.
func (f *frameReader) next() (typ byte, payload []byte, err error) {
	if err := f.fill(frameHeader); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(f.unread[1:])
	if n > procapi.MaxFrameBytes {
		return 0, nil, fmt.Errorf("%w: payload of %d bytes", procapi.ErrFrame, n)
	}
	whole := frameHeader + int(n)
	if err := f.fill(whole); err != nil {
		return 0, nil, err
	}
	typ, payload = f.unread[0], f.unread[frameHeader:whole]
	f.unread = f.unread[whole:]
	return typ, payload, nil
}

// fill reads until n bytes are unread. The stream ends between frames or too early.
func (f *frameReader) fill(n int) error {
	for len(f.unread) < n {
		f.makeRoom(n)
		read := f.buf[len(f.unread):]
		got, err := f.r.Read(read)
		f.unread = f.buf[:len(f.unread)+got]
		f.large = got == len(read)
		if err != nil && len(f.unread) < n {
			if errors.Is(err, io.EOF) && len(f.unread) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// makeRoom moves what is unread to the beginning of a buffer that fits n bytes
// and what is to be expected.
func (f *frameReader) makeRoom(n int) {
	switch {
	case n > len(f.buf) && n > bulkBuffer:
		f.use(make([]byte, n), nil)
	case f.bulk == nil && (f.large || n > len(f.buf)):
		bulk := bulkBuffers.Get().(*[bulkBuffer]byte)
		f.use(bulk[:], bulk)
	case len(f.buf) > idleBuffer && len(f.unread) == 0 && !f.large:
		f.use(make([]byte, idleBuffer), nil)
	default:
		copy(f.buf, f.unread)
	}
}

func (f *frameReader) use(buf []byte, bulk *[bulkBuffer]byte) {
	copy(buf, f.unread)
	f.close()
	f.buf, f.bulk = buf, bulk
}

// close gives the buffer back; the last payload is not valid any more.
func (f *frameReader) close() {
	if f.bulk != nil {
		bulkBuffers.Put(f.bulk)
	}
	f.buf, f.bulk = nil, nil
}
