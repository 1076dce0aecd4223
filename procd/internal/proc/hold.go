package proc

import (
	"math"
	"time"
)

// A process waits for the readers of its log, as it would for the reader of a
// pipe, but never for long:
//
//   - A reader that is attached holds what it hasn't read. While the log is full
//     of that, pumps don't read the process's streams, and the process waits.
//   - A reader has readPatience of such waiting, and gets more by reading, at
//     readPace. Once that is used up, the log drops what is too old and the reader
//     finds a gap. So one that keeps the pace misses nothing, and all readers
//     together cost a process at most readPatience and the time that its output
//     takes at readPace.
//   - With nobody attached the oldest output is dropped, but somebody who is
//     expected has a place, which waits for absentPatience: whoever started a
//     command and is about to attach, and the last reader when it went before the
//     end, for its connection may have broken.
const (
	readPatience   = 10 * time.Second
	readPace       = 256 << 10 // bytes a second: a poor network
	absentPatience = 5 * time.Second

	// resumeRoom is how much room pumps wait for, so that they and the readers take
	// turns in large pieces.
	resumeRoom = 512 << 10
)

// hold is what a reader has to do with it.
type hold struct {
	attached bool
	patience time.Duration // how long the process still waits for it
	late     bool          // a pump waits for it now
}

// holds is what a log has to do with it, guarded by its mu.
type holds struct {
	readers  map[*Reader]struct{} // attached; place among them
	place    *Reader              // of somebody who is expected; nil if nobody is
	released bool                 // nobody is waited for any more
	late     int                  // readers that a pump waits for
	since    time.Time            // when it began to
	goal     uint64               // the offset that they must reach
	moved    chan struct{}        // closed when none is late any more; nil while no pump waits
}

// Attach returns a reader that the process waits for; see [Log.NewReader].
func (l *Log) Attach(off uint64) *Reader {
	r := l.NewReader(off)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetLocked()
	l.enterLocked(r, readPatience)
	return r
}

// Expect keeps a place at the beginning for a reader to come.
func (l *Log) Expect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expectLocked(0)
}

// Forget gives up the place of a reader that was expected.
func (l *Log) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetLocked()
}

// Release ends all waiting for readers, for good.
func (l *Log) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseLocked()
}

// Await returns when more output is welcome.
func (l *Log) Await() {
	l.gate.Lock() // two pumps must not charge the same time twice
	defer l.gate.Unlock()
	for {
		moved, patience := l.awaitMove()
		if moved == nil {
			return
		}
		timer := time.NewTimer(patience)
		select {
		case <-moved:
		case <-timer.C:
		}
		timer.Stop()
		l.stopWaiting()
	}
}

// awaitMove returns what tells that all readers have made room and how long to
// wait for it at most; nil when there is room.
func (l *Log) awaitMove() (moved <-chan struct{}, patience time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trimLocked()
	if l.closed || !l.overfullLocked(0) {
		return nil, 0
	}
	l.holds.goal = max(l.slabs[1].off, l.end-min(l.end, uint64(max(0, l.limit-resumeRoom))))
	patience = math.MaxInt64
	for r := range l.holds.readers {
		if r.hold.late = r.hold.patience > 0 && r.off < l.holds.goal; r.hold.late {
			l.holds.late++
			patience = min(patience, r.hold.patience)
		}
	}
	if l.holds.late == 0 {
		return nil, 0
	}
	l.holds.since, l.holds.moved = time.Now(), make(chan struct{})
	return l.holds.moved, patience
}

// stopWaiting charges those that did not make room.
func (l *Log) stopWaiting() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.holds.readers {
		if r.hold.late {
			r.onTimeLocked()
		}
	}
	if p := l.holds.place; p != nil && p.hold.patience <= 0 {
		l.forgetLocked()
	}
}

// heldLocked is the offset of the first byte that must not be dropped.
func (l *Log) heldLocked() uint64 {
	held := uint64(math.MaxUint64)
	for r := range l.holds.readers {
		if r.hold.patience > 0 {
			held = min(held, r.off)
		}
	}
	return held
}

func (l *Log) enterLocked(r *Reader, patience time.Duration) {
	if l.holds.released {
		return
	}
	if l.holds.readers == nil {
		l.holds.readers = map[*Reader]struct{}{}
	}
	r.hold = hold{attached: true, patience: patience}
	l.holds.readers[r] = struct{}{}
}

func (l *Log) expectLocked(off uint64) {
	if l.closed || l.holds.released {
		return
	}
	l.holds.place = &Reader{log: l, off: off}
	l.enterLocked(l.holds.place, absentPatience)
}

func (l *Log) forgetLocked() {
	if p := l.holds.place; p != nil {
		l.holds.place = nil
		p.dropLocked()
	}
}

func (l *Log) releaseLocked() {
	l.holds.released = true
	l.holds.place = nil
	for r := range l.holds.readers {
		r.dropLocked()
	}
}

// moveLocked takes the reader on, which earns it patience.
func (r *Reader) moveLocked(off uint64) {
	n := off - r.off
	r.off = off
	if !r.hold.attached {
		return
	}
	earned := time.Duration(min(n, readPace)) * time.Second / readPace
	r.hold.patience = min(readPatience, max(0, r.hold.patience)+earned)
	if r.hold.late && r.off >= r.log.holds.goal {
		r.onTimeLocked()
	}
}

// onTimeLocked notes that a pump need not wait for this reader any more, and
// charges it for the wait so far.
func (r *Reader) onTimeLocked() {
	h := &r.log.holds
	r.hold.late = false
	r.hold.patience -= time.Since(h.since)
	if h.late--; h.late == 0 {
		close(h.moved)
		h.moved = nil
	}
}

// dropLocked takes the reader out of those that are waited for.
func (r *Reader) dropLocked() {
	delete(r.log.holds.readers, r)
	if r.hold.late {
		r.onTimeLocked()
	}
	r.hold = hold{}
}

// leaveLocked is dropLocked for one that goes; the last one may come back.
func (r *Reader) leaveLocked() {
	attached := r.hold.attached
	r.dropLocked()
	if attached && len(r.log.holds.readers) == 0 {
		r.log.expectLocked(r.off)
	}
}
