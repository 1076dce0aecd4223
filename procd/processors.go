package procd

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A read or write of this many bytes is part of something large.
	bulkBytes = 16 << 10
	// mostProcessors are as many as reading, framing and writing a stream keep busy.
	mostProcessors = 4
	// lull is how long nothing large has moved when it is over.
	lull = time.Second
)

// processors decides on how many processors procd's own code runs. It is one while calls
// are small: several threads would wake each other for every step of one, through the
// sandbox's kernel, and a round trip to an interpreter took a fifth longer. While bytes
// move in bulk they are moved by several.
type processors struct {
	set  func(n int)
	most int

	began time.Time
	many  atomic.Bool  // there are several; changed with mu held
	last  atomic.Int64 // when something large moved last, a Duration after began

	mu sync.Mutex
}

func newProcessors() *processors {
	p := &processors{began: time.Now(), set: func(n int) { runtime.GOMAXPROCS(n) }, most: min(mostProcessors, runtime.NumCPU())}
	p.set(1)
	return p
}

// moved is told of every piece that was read or written.
func (p *processors) moved(n int) {
	if n < bulkBytes || p.most == 1 {
		return
	}
	p.last.Store(int64(time.Since(p.began)))
	if p.many.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.many.Load() {
		p.many.Store(true)
		p.set(p.most)
		time.AfterFunc(lull, p.look)
	}
}

// look ends it after a lull.
func (p *processors) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if quiet := time.Since(p.began) - time.Duration(p.last.Load()); quiet < lull {
		time.AfterFunc(lull-quiet, p.look)
		return
	}
	p.many.Store(false)
	p.set(1)
}
