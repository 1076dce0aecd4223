package proc

import (
	"errors"
	"io"
	"slices"
	"sort"
	"sync"

	"s0.run/internal/procapi"
)

// Source says which stream of a process a byte came from. Its values are the
// frame types of the wire.
type Source byte

// The sources; a process on a terminal has PTY alone.
const (
	Stdout = Source(procapi.FrameStdout)
	Stderr = Source(procapi.FrameStderr)
	PTY    = Source(procapi.FramePTY)
)

const (
	minSlab = 512      // a context that prints nothing costs nothing, one that prints little, little
	maxSlab = 64 << 10 // the largest piece a reader gets, and the grain in which old output goes
	maxRuns = 4 << 10  // per slab, so that sources that alternate byte by byte can't inflate it
	maxFree = 8        // slabs kept for reuse by a log whose output is fast
)

// ErrNothing is returned by [Reader.Next] when the log has nothing new yet.
var ErrNothing = errors.New("no output yet")

// Log holds the newest output of a process, each byte at an offset that never
// changes: at least limit bytes, less only where sources alternate every few
// bytes. One or two pumps append, any number of readers follow: bytes once
// written are immutable, so readers use them without a copy or a lock, and what a
// slow reader still uses is freed when it lets go. Memory grows with the output.
// How far pumps and readers wait for each other is in hold.go.
type Log struct {
	limit int

	gate sync.Mutex // held by the pump that waits for readers

	mu      sync.Mutex
	slabs   []*slab // oldest first
	free    []*slab // empty ones of maxSlab
	kept    int     // capacity of slabs
	end     uint64  // offset of the next byte
	closed  bool
	waiting []*Reader // readers that have seen all there is
	holds   holds
}

// slab is a piece of the log. buf grows up to its capacity and never moves.
type slab struct {
	off   uint64 // of buf[0]
	buf   []byte
	runs  []run
	users int // readers whose last chunk is in it
}

// run is a stretch of a slab from one source; it ends where the next begins.
type run struct {
	at  int
	src Source
}

// NewLog returns an empty log that keeps limit bytes.
func NewLog(limit int) *Log { return &Log{limit: limit} }

// End is the offset of the next byte to be written.
func (l *Log) End() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// Kept is the memory that the log holds, in bytes.
func (l *Log) Kept() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept
}

// Append writes p, unless the log is closed.
func (l *Log) Append(src Source, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	for len(p) > 0 {
		s := l.room(src, len(p))
		n := copy(s.buf[len(s.buf):cap(s.buf)], p)
		s.buf = s.buf[:len(s.buf)+n]
		l.end += uint64(n)
		p = p[n:]
	}
	l.wakeLocked()
}

// Close marks the end: readers get io.EOF behind the last byte.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.free = nil
	l.wakeLocked()
	l.releaseLocked()
}

func (l *Log) wakeLocked() {
	for _, r := range l.waiting {
		r.waiting = false
		r.wake <- struct{}{} // never blocks: a reader waits only while wake is empty
	}
	clear(l.waiting)
	l.waiting = l.waiting[:0]
}

// room returns the newest slab, with space for at least one byte of src.
func (l *Log) room(src Source, want int) *slab {
	if n := len(l.slabs); n > 0 {
		s := l.slabs[n-1]
		last := s.runs[len(s.runs)-1].src
		if len(s.buf) < cap(s.buf) && (last == src || len(s.runs) < maxRuns) {
			if last != src {
				s.runs = append(s.runs, run{len(s.buf), src})
			}
			return s
		}
		want = max(want, 2*cap(s.buf))
	}
	s := l.newSlabLocked(min(max(want, minSlab), maxSlab))
	s.off, s.runs = l.end, append(s.runs, run{0, src})
	l.slabs = append(l.slabs, s)
	l.kept += cap(s.buf)
	l.trimLocked()
	return s
}

func (l *Log) newSlabLocked(size int) *slab {
	if n := len(l.free); n > 0 && size == maxSlab {
		s := l.free[n-1]
		l.free = l.free[:n-1]
		return s
	}
	return &slab{buf: make([]byte, 0, size)}
}

// dropLocked takes back what no reader uses any more.
func (l *Log) dropLocked(s *slab) {
	l.kept -= cap(s.buf)
	if s.users == 0 && cap(s.buf) == maxSlab && len(l.free) < maxFree && !l.closed {
		s.buf, s.runs = s.buf[:0], s.runs[:0]
		l.free = append(l.free, s)
	}
}

// trimLocked drops whole slabs that are too many, but none that a reader holds.
func (l *Log) trimLocked() {
	if !l.overfullLocked(0) {
		return
	}
	held := l.heldLocked()
	drop := 0
	for l.overfullLocked(drop) && l.slabs[drop+1].off <= held {
		l.dropLocked(l.slabs[drop])
		drop++
	}
	l.slabs = slices.Delete(l.slabs, 0, drop)
}

// overfullLocked tells whether slab i is one too many once those before it are
// gone: the rest holds limit bytes, or takes twice the memory because its slabs
// are barely filled.
func (l *Log) overfullLocked(i int) bool {
	return i < len(l.slabs)-1 && (l.end-l.slabs[i+1].off >= uint64(l.limit) || l.kept > 2*l.limit)
}

// Chunk is a stretch of output from one source. Data must not be modified, and is
// valid until the reader's next call. A chunk with Lost > 0 has no data: that many bytes before Offset were dropped.
type Chunk struct {
	Source Source
	Offset uint64
	Data   []byte
	Lost   uint64
}

// Reader follows a log from an offset. It is for one goroutine.
type Reader struct {
	log  *Log
	off  uint64        // changed by its own goroutine alone, with log.mu held
	wake chan struct{} // capacity 1

	// Guarded by log.mu.
	using   *slab // has the last chunk
	waiting bool  // in log.waiting
	hold    hold
}

// NewReader returns a reader that starts at offset off, which may be long gone.
// Nobody waits for it.
func (l *Log) NewReader(off uint64) *Reader {
	return &Reader{log: l, off: min(off, l.End()), wake: make(chan struct{}, 1)}
}

// Offset is where the next chunk begins.
func (r *Reader) Offset() uint64 { return r.off }

// Ready receives after [ErrNothing], once there may be something.
func (r *Reader) Ready() <-chan struct{} { return r.wake }

// Next returns what follows, io.EOF behind the end of a closed log, or
// [ErrNothing].
func (r *Reader) Next() (Chunk, error) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	r.useLocked(nil)
	if r.off == l.end {
		if l.closed {
			return Chunk{}, io.EOF
		}
		if !r.waiting && len(r.wake) == 0 {
			r.waiting = true
			l.waiting = append(l.waiting, r)
		}
		return Chunk{}, ErrNothing
	}
	if first := l.slabs[0].off; r.off < first {
		c := Chunk{Offset: first, Lost: first - r.off}
		r.off = first // unread bytes earn no patience
		return c, nil
	}
	i := sort.Search(len(l.slabs), func(i int) bool { return l.slabs[i].off > r.off }) - 1
	r.useLocked(l.slabs[i])
	c := l.slabs[i].chunkAt(r.off)
	r.moveLocked(r.off + uint64(len(c.Data)))
	return c, nil
}

// useLocked notes where the chunk is that the caller has now.
func (r *Reader) useLocked(s *slab) {
	if r.using != nil {
		r.using.users--
	}
	if r.using = s; s != nil {
		s.users++
	}
}

// Close withdraws the reader; it is not used afterwards.
func (r *Reader) Close() {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.useLocked(nil)
	if r.waiting {
		r.log.waiting = slices.DeleteFunc(r.log.waiting, func(w *Reader) bool { return w == r })
	}
	r.leaveLocked()
}

func (s *slab) chunkAt(off uint64) Chunk {
	pos := int(off - s.off)
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].at > pos }) - 1
	to := len(s.buf)
	if i+1 < len(s.runs) {
		to = s.runs[i+1].at
	}
	return Chunk{Source: s.runs[i].src, Offset: off, Data: s.buf[pos:to:to]}
}

// Collect copies what the log holds of [from, to), of the given sources (of all
// when none is given), and says how many bytes of that range are gone.
func (l *Log) Collect(from, to uint64, sources ...Source) (data []byte, lost uint64) {
	r := l.NewReader(from)
	defer r.Close()
	for r.off < to {
		c, err := r.Next()
		if err != nil {
			break
		}
		lost += min(c.Lost, to-from)
		if c.Lost == 0 && (len(sources) == 0 || slices.Contains(sources, c.Source)) {
			data = append(data, c.Data[:min(uint64(len(c.Data)), to-c.Offset)]...)
		}
	}
	return data, lost
}
