package inproc

import (
	"io"
	"sync"
)

// pipeBytes is what a writer may be ahead of its reader.
const pipeBytes = 128 << 10

// spaces are shared by all pipes: one that has nothing in it holds no memory.
var spaces = sync.Pool{New: func() any { return new([pipeBytes]byte) }}

// pipe is a body on its way, from one writer to one reader.
type pipe struct {
	mu       sync.Mutex
	moved    sync.Cond        // any field has changed
	space    *[pipeBytes]byte // nil: nothing is in it
	from, to int              // of space: what nobody has read yet
	ended    error            // what Read gives behind that; nil: more may come
	lost     error            // what Write, and Read at once, give since nobody reads
}

func newPipe() *pipe {
	p := &pipe{}
	p.moved.L = &p.mu
	return p
}

// Write waits while the reader is far behind.
func (p *pipe) Write(b []byte) (written int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		for p.lost == nil && p.ended == nil && p.to-p.from == pipeBytes {
			p.moved.Wait()
		}
		if p.lost != nil {
			return written, p.lost
		}
		if p.ended != nil {
			return written, io.ErrClosedPipe
		}
		n := p.putLocked(b)
		written, b = written+n, b[n:]
		p.moved.Signal()
	}
	return written, nil
}

// putLocked takes what fits of b.
func (p *pipe) putLocked(b []byte) int {
	if p.space == nil {
		p.space = spaces.Get().(*[pipeBytes]byte)
	}
	if pipeBytes-p.to < len(b) && p.from > 0 {
		p.from, p.to = 0, copy(p.space[:], p.space[p.from:p.to])
	}
	n := copy(p.space[p.to:], b)
	p.to += n
	return n
}

// Read implements io.Reader.
func (p *pipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.lost != nil:
			return 0, p.lost
		case p.space != nil:
			n := copy(b, p.space[p.from:p.to])
			if p.from += n; p.from == p.to {
				p.emptyLocked()
			}
			p.moved.Signal()
			return n, nil
		case p.ended != nil:
			return 0, p.ended
		case len(b) == 0:
			return 0, nil
		}
		p.moved.Wait()
	}
}

func (p *pipe) emptyLocked() {
	if p.space != nil {
		spaces.Put(p.space)
	}
	p.space, p.from, p.to = nil, 0, 0
}

// end says what the reader finds behind what was written; nil is a clean end. The first
// end counts.
func (p *pipe) end(err error) {
	if err == nil {
		err = io.EOF
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended == nil {
		p.ended = err
	}
	p.moved.Broadcast()
}

// breakOff ends both sides at once. The first reason counts.
func (p *pipe) breakOff(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost == nil {
		p.lost = err
	}
	p.emptyLocked()
	p.moved.Broadcast()
}

// Close is the reader's.
func (p *pipe) Close() error {
	p.breakOff(io.ErrClosedPipe)
	return nil
}

// broken is why a write would fail.
func (p *pipe) broken() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}
