// Package audit keeps the records of flows until somebody has them stored.
//
// Records hold names, verdicts and sizes, and nothing of what a flow carried: no
// path, no header, no credential's value. A sandbox has so many records told a
// minute, and so many waiting; what is more it has counted, in one record that says
// so. When there is no room at all, who has the most waiting gives up its oldest: one
// sandbox that makes noise never costs another a record. What a reader was given, and
// has not yet stored, is given up by nobody, or it would be told and counted. Nobody
// here waits for a reader, and how many sandboxes are remembered without one is
// bounded, too.
package audit

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"time"

	"s0.run/internal/netdapi"
)

// Record is one flow, in the contract's words.
type Record = netdapi.Event

// What happened to a flow.
const (
	Allow     = "allow"
	Deny      = "deny"
	WouldDeny = "would-deny"

	Completed = "completed"
	Denied    = "denied"
	Failed    = "error"
)

const (
	// perWindow is how many records of a sandbox are told in a window.
	window    = time.Minute
	perWindow = 240
	// perSandbox and inAll bound what waits: some 500 bytes each. What one reader is
	// given at once is a part of either.
	perSandbox = 512
	inAll      = 1 << 14
	// owners bounds who is remembered: as many sandboxes as a node can have. Only
	// when nobody reads there are more, all but these long gone.
	owners = 1 << 14
)

// Queue holds records. It is safe for concurrent use.
type Queue struct {
	now    func() time.Time
	inAll  int
	owners int
	ready  chan struct{} // holds one when there may be something

	mu    sync.Mutex
	boxes map[owner]*box
	held  int    // records in all boxes
	last  uint64 // number given out
	given uint64 // number of the last record that a reader was given
	lost  uint64 // flows that nothing is told of, nor counted
}

// owner is one instance of a sandbox.
type owner struct {
	sandbox    string
	generation uint64
}

// box is what waits of one owner.
type box struct {
	records []numbered // in the order of their numbers
	opened  time.Time  // the window
	told    int        // in the window
	more    *Record    // counts what is not told; nil: nothing
}

type numbered struct {
	Record
	number uint64
}

// NewQueue makes an empty queue.
func NewQueue() *Queue {
	return &Queue{now: time.Now, inAll: inAll, owners: owners, ready: make(chan struct{}, 1), boxes: map[owner]*box{}}
}

// Add queues a record, or counts it when it is one too many. It never blocks.
func (q *Queue) Add(r Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, now := q.of(r), q.now()
	q.turn(b, now)
	if b.told >= perWindow {
		b.count(r)
		return
	}
	b.told++
	q.put(b, r)
}

// of is called with mu held, as are those below.
func (q *Queue) of(r Record) *box {
	key := owner{r.SandboxID, r.Generation}
	if q.boxes[key] == nil {
		if len(q.boxes) >= q.owners {
			q.forget()
		}
		q.boxes[key] = &box{opened: q.now()}
	}
	return q.boxes[key]
}

// forget makes room for one more owner: who was heard of least lately goes.
func (q *Queue) forget() {
	var last owner
	var oldest *box
	for key, b := range q.boxes {
		if oldest == nil || b.opened.Before(oldest.opened) {
			last, oldest = key, b
		}
	}
	q.giveUp(oldest, len(oldest.records))
	if oldest.more != nil {
		q.lost += oldest.more.More.Flows
	}
	q.drop(oldest, 0, len(oldest.records)) // what a reader has, who may store it yet
	delete(q.boxes, last)
}

// Lost is how many flows there were of which neither a record nor a count is left.
func (q *Queue) Lost() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lost
}

// turn closes a window that is over and tells what it did not tell.
func (q *Queue) turn(b *box, now time.Time) {
	if now.Sub(b.opened) < window {
		return
	}
	more := b.more
	b.opened, b.told, b.more = now, 0, nil
	if more != nil {
		more.DurationMS = now.Sub(more.Timestamp).Milliseconds()
		q.put(b, *more)
	}
}

// put makes room for a record and queues it, or counts it when there is none.
func (q *Queue) put(b *box, r Record) {
	if len(b.records) >= perSandbox {
		q.giveUp(b, 1)
	} else if q.held >= q.inAll {
		if most := q.longest(); most != nil {
			q.giveUp(most, (len(most.records)-q.givenOf(most)+1)/2)
		}
	}
	if len(b.records) >= perSandbox || q.held >= q.inAll {
		b.count(r)
		return
	}
	q.last++
	q.held++
	b.records = append(b.records, numbered{r, q.last})
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// longest is the box with the most that can be given up; nil: none has any.
func (q *Queue) longest() (most *box) {
	n := 0
	for _, b := range q.boxes {
		if can := len(b.records) - q.givenOf(b); can > n {
			most, n = b, can
		}
	}
	return most
}

// givenOf is how many of a box's records a reader was given: they are its first.
func (q *Queue) givenOf(b *box) int { return b.until(q.given) }

// until is how many of a box's records have a number up to this.
func (b *box) until(number uint64) int {
	n, _ := slices.BinarySearchFunc(b.records, number+1, func(r numbered, number uint64) int { return cmp.Compare(r.number, number) })
	return n
}

// giveUp counts up to n of a box's oldest records in place of telling them.
func (q *Queue) giveUp(b *box, n int) {
	from := q.givenOf(b)
	to := min(from+n, len(b.records))
	for _, r := range b.records[from:to] {
		b.count(r.Record)
	}
	q.drop(b, from, to)
}

func (q *Queue) drop(b *box, from, to int) {
	b.records = slices.Delete(b.records, from, to)
	q.held -= to - from
}

// count adds a record to the one that stands for those that are not told.
func (b *box) count(r Record) {
	if b.more == nil {
		b.more = &Record{
			Timestamp: r.Timestamp, FlowID: rand.Text(), SandboxID: r.SandboxID, Generation: r.Generation, TeamID: r.TeamID,
			Action: Allow, Outcome: Completed, Reason: "more flows than are told one by one", More: &netdapi.More{},
		}
	}
	m := b.more
	if r.Timestamp.Before(m.Timestamp) {
		m.Timestamp = r.Timestamp
	}
	m.EgressBytes += r.EgressBytes
	m.IngressBytes += r.IngressBytes
	switch {
	case r.More != nil:
		m.More.Flows += r.More.Flows
		m.More.Denied += r.More.Denied
		m.More.WouldDeny += r.More.WouldDeny
		return
	case r.Action == Deny:
		m.More.Denied++
	case r.Action == WouldDeny:
		m.More.WouldDeny++
	}
	m.More.Flows++
}

// Take forgets the records up to a number, and answers up to most of those behind it,
// oldest first, with the last one's number. It waits until there is one, or ctx ends;
// then it answers none.
func (q *Queue) Take(ctx context.Context, through uint64, most int) ([]Record, uint64) {
	for {
		if list := q.behind(through, most); len(list) > 0 {
			records := make([]Record, len(list))
			for i, n := range list {
				records[i] = n.Record
			}
			return records, list[len(list)-1].number
		}
		select {
		case <-q.ready:
		case <-ctx.Done():
			return nil, through
		}
	}
}

func (q *Queue) behind(through uint64, most int) (all []numbered) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for _, b := range q.boxes {
		q.drop(b, 0, b.until(through))
	}
	for key, b := range q.boxes {
		q.turn(b, now) // which may have another box give something up
		if len(b.records) == 0 && b.told == 0 && b.more == nil {
			delete(q.boxes, key)
		}
	}
	for _, b := range q.boxes {
		all = append(all, b.records...)
	}
	slices.SortFunc(all, func(a, b numbered) int { return cmp.Compare(a.number, b.number) })
	all = all[:min(len(all), most)]
	if len(all) > 0 {
		q.given = max(q.given, all[len(all)-1].number)
	}
	return all
}
