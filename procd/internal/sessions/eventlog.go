package sessions

import (
	"sync"
	"time"

	"s0.run/internal/procapi"
)

// eventCost is what an event takes beside its data.
const eventCost = 256

// eventLog keeps a session's newest events within bounds of bytes and age. Events
// once in it are immutable, so that readers use them without a copy.
type eventLog struct {
	mu       sync.Mutex
	events   []procapi.SessionEvent // with numbers that follow each other
	last     uint64                 // number of the newest event there was
	bytes    int64
	maxBytes int64
	maxAge   time.Duration // 0: no bound
	changed  chan struct{} // closed at the next event; nil while nobody waits
	closed   bool
}

// keep sets the bounds.
func (l *eventLog) keep(r procapi.SessionRetention) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.maxBytes, l.maxAge = r.MaxBytes, time.Duration(r.MaxAgeSeconds)*time.Second
	l.trimLocked()
}

// add numbers an event and appends it.
func (l *eventLog) add(ev procapi.SessionEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	ev.Seq, ev.OccurredAt = l.last, time.Now()
	l.events = append(l.events, ev)
	l.bytes += cost(ev)
	l.trimLocked()
	l.wakeLocked()
}

func cost(ev procapi.SessionEvent) int64 { return int64(len(ev.Data)+len(ev.Reason)) + eventCost }

// close marks the end of the log.
func (l *eventLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wakeLocked()
}

func (l *eventLog) wakeLocked() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// trimLocked drops what is too much or too old. The newest event is never too much.
func (l *eventLog) trimLocked() {
	now, n := time.Now(), 0
	for ; n < len(l.events); n++ {
		ev := l.events[n]
		tooOld := l.maxAge > 0 && now.Sub(ev.OccurredAt) >= l.maxAge
		tooMuch := l.bytes > l.maxBytes && n < len(l.events)-1
		if !tooOld && !tooMuch {
			break
		}
		l.bytes -= cost(ev)
	}
	clear(l.events[:n])
	if l.events = l.events[n:]; len(l.events) == 0 {
		l.events = nil
	}
}

// cursor is which events there are.
func (l *eventLog) cursor() procapi.SessionCursor {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trimLocked()
	return l.cursorLocked()
}

func (l *eventLog) cursorLocked() procapi.SessionCursor {
	return procapi.SessionCursor{Earliest: l.last + 1 - uint64(len(l.events)), Latest: l.last}
}

// after returns the oldest events behind a number, at most limit of them.
func (l *eventLog) after(seq uint64, limit int) procapi.SessionEventPage {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trimLocked()
	page := procapi.SessionEventPage{Events: []procapi.SessionEvent{}, Cursor: l.cursorLocked()}
	if seq >= l.last {
		return page
	}
	from := 0
	if seq >= page.Cursor.Earliest {
		from = int(seq + 1 - page.Cursor.Earliest)
	}
	bytes := int64(0)
	for _, ev := range l.events[from:] {
		if bytes += cost(ev); len(page.Events) == limit || bytes > procapi.MaxEventPageBytes && len(page.Events) > 0 {
			break
		}
		page.Events = append(page.Events, ev)
	}
	return page
}

// wait returns a channel that is closed once there is something behind a number;
// nil when nothing will ever be.
func (l *eventLog) wait(seq uint64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed && seq >= l.last {
		return nil
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	changed := l.changed
	if seq < l.last {
		l.wakeLocked()
	}
	return changed
}
