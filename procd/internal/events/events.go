// Package events keeps what happened in the sandbox until noded has stored it.
//
// The [Queue] numbers events, holds a bounded number of them, and hands them out
// from any number on, as often as it is asked: an event leaves when its storing
// is acknowledged. What there is no room for is counted, and the count is told as
// an event of its own once there is room. Keeping is off until noded turns it on,
// for of most sandboxes nobody wants to know. The queue decides nothing about
// what it keeps, never waits for a reader, and does no I/O.
package events

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// batchLines is how many events a reader gets at a time.
const batchLines = 32

// fileEvents is how much of the queue changes of files may take: a build that
// writes thousands must not keep its own end from being told.
const fileEvents = procapi.MaxEvents * 3 / 4

// retryAfter is when a publisher may try again that found the queue full.
const retryAfter = time.Second

// Queue is safe for concurrent use.
type Queue struct {
	now func() time.Time

	mu      sync.Mutex
	on      bool
	seq     uint64 // of the newest event
	kept    []line // oldest first
	bytes   int    // of kept
	dropped uint64 // events that nobody was told of yet
	changed chan struct{}
}

// line is an event as it is sent.
type line struct {
	seq  uint64
	json []byte
}

// NewQueue makes an empty queue that keeps nothing yet.
func NewQueue(now func() time.Time) *Queue { return &Queue{now: now, changed: make(chan struct{})} }

// Enable turns the keeping of events on.
func (q *Queue) Enable() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.on = true
}

// Add keeps an event, if events are kept and there is room.
func (q *Queue) Add(eventType string, payload any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.on {
		return
	}
	q.tellDropped()
	if eventType == procapi.EventFileModified && len(q.kept) >= fileEvents || !q.add(newID(), eventType, payload) {
		q.dropped++
	}
}

// Publish keeps what a process in the sandbox has to say, under an id of its own
// choice if it has one. Unlike an event that just happens, it is refused when
// there is no room: its sender can try again.
func (q *Queue) Publish(id string, payload json.RawMessage) (string, error) {
	if id == "" {
		id = newID()
	} else if err := checkID(id); err != nil {
		return "", err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.on {
		return id, nil
	}
	q.tellDropped()
	if !q.add(id, procapi.EventAgent, payload) {
		return "", errdefs.WithCode(errdefs.Exhausted, "too_many_events", "more events wait to be delivered than may").WithRetryAfter(retryAfter)
	}
	return id, nil
}

// tellDropped tells how many events got lost, once the queue is half empty: while
// it is full, more are about to be.
func (q *Queue) tellDropped() {
	if q.dropped == 0 || len(q.kept) > procapi.MaxEvents/2 {
		return
	}
	if q.add(newID(), procapi.EventsDropped, procapi.DroppedEvents{Count: q.dropped}) {
		q.dropped = 0
	}
}

// add reports false when there is no room.
func (q *Queue) add(id, eventType string, payload any) bool {
	b, err := json.Marshal(procapi.Event{Seq: q.seq + 1, ID: id, Type: eventType, Time: q.now().UTC(), Payload: payload})
	if err != nil {
		panic(fmt.Sprintf("an event of ours must marshal: %v", err))
	}
	b = append(b, '\n')
	if len(b) > procapi.MaxEventBytes || len(q.kept) >= procapi.MaxEvents || q.bytes+len(b) > procapi.MaxEventsBytes {
		return false
	}
	q.seq++
	q.kept = append(q.kept, line{q.seq, b})
	q.bytes += len(b)
	close(q.changed)
	q.changed = make(chan struct{})
	return true
}

// After returns the next events behind a number, as lines of JSON, or none and
// what is closed once there are.
func (q *Queue) After(seq uint64) (lines [][]byte, last uint64, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	last = seq
	for _, l := range q.kept {
		if l.seq > seq && len(lines) < batchLines {
			lines, last = append(lines, l.json), l.seq
		}
	}
	return lines, last, q.changed
}

// Ack forgets the events up to a number.
func (q *Queue) Ack(through uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(q.kept) && q.kept[n].seq <= through {
		q.bytes -= len(q.kept[n].json)
		n++
	}
	q.kept = append([]line(nil), q.kept[n:]...) // a copy: the slice must not keep what left
	q.tellDropped()
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// reservedIDs are of events that happen to a sandbox, not in it.
const reservedIDs = "evt_sandbox_"

func checkID(id string) error {
	if !idPattern.MatchString(id) || strings.HasPrefix(id, reservedIDs) {
		return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", "event_id: want at most 128 of A-Z a-z 0-9 . _ : -, not beginning with %s", reservedIDs)
	}
	return nil
}

// newID is `evt_` and a random UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("evt_%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
