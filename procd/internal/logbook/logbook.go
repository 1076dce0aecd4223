// Package logbook keeps the newest lines that the sandbox's processes printed, all
// of them in one journal.
//
// It stands beside the contexts' own logs, which hold bytes and go with their
// contexts: the journal outlives a context, and knows lines, their times and their
// order. Processes never wait for it. It reads each process's log like any other
// reader, at a pace of its own that leaves the CPU to the sandbox, and says how
// much it missed of what came faster. The package owns the journal; who calls
// [Book.Follow] owns the goroutine. Memory is bounded, whatever is printed.
package logbook

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sort"
	"sync"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// entryBytes is what a line costs beside its message.
const entryBytes = 64

// entry is a line. Its number is its place in the journal.
type entry struct {
	time      int64 // Unix nanoseconds
	from      *origin
	stream    proc.Source
	truncated bool
	lost      uint64
	message   string
}

// origin is the process of lines.
type origin struct {
	context string
	pid     int
}

// Book is the journal. Its methods are safe for concurrent use.
type Book struct {
	limit int
	epoch string
	now   func() time.Time

	mu        sync.Mutex
	lines     []entry // oldest first; lines[:gone] are free
	gone      int
	first     uint64 // number of the oldest line
	bytes     int
	followers map[*follower]struct{}
	grown     chan struct{} // closed when lines are added; nil while nobody waits
}

// New returns an empty journal that keeps limit bytes.
func New(limit int) *Book {
	var epoch [8]byte
	rand.Read(epoch[:]) // never fails
	return &Book{limit: limit, epoch: hex.EncodeToString(epoch[:]), now: time.Now, first: 1, followers: map[*follower]struct{}{}}
}

// Epoch tells this journal from others; see [procapi.LogPage].
func (b *Book) Epoch() string { return b.epoch }

// add appends lines and drops the oldest beyond the limit.
func (b *Book) add(lines []entry) {
	if len(lines) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, lines...)
	for i := range lines {
		b.bytes += lines[i].size()
	}
	b.trimLocked()
	if b.grown != nil {
		close(b.grown)
		b.grown = nil
	}
}

func (b *Book) trimLocked() {
	for b.bytes > b.limit {
		e := &b.lines[b.gone]
		b.bytes -= e.size()
		*e = entry{}
		b.gone++
		b.first++
	}
	if b.gone > len(b.lines)/2 {
		kept := copy(b.lines, b.lines[b.gone:])
		clear(b.lines[kept:])
		b.lines, b.gone = b.lines[:kept], 0
	}
}

func (e *entry) size() int { return entryBytes + len(e.message) }

// Query says which lines are wanted. Zero fields ask for all.
type Query struct {
	After   uint64 // number of a line of this journal
	Limit   int
	Context string
	Stream  proc.Source
	Since   time.Time
	Until   time.Time
}

func (q *Query) wants(e *entry) bool {
	return (q.Context == "" || q.Context == e.from.context) && (q.Stream == 0 || q.Stream == e.stream) &&
		(q.Since.IsZero() || e.time >= q.Since.UnixNano()) && (q.Until.IsZero() || e.time < q.Until.UnixNano())
}

// Read returns the oldest lines that the query wants, as many as an answer holds.
// What processes printed before the call is among them, unless they print faster
// than the journal takes it.
func (b *Book) Read(q Query) procapi.LogPage {
	for _, f := range b.following() {
		f.catchUp()
	}
	return b.read(q)
}

// Await is Read that waits, until ctx ends, for the first line that is wanted.
func (b *Book) Await(ctx context.Context, q Query) procapi.LogPage {
	page := b.Read(q)
	dropped := page.Dropped
	for len(page.Lines) == 0 {
		q.After = page.Next
		select {
		case <-b.growth(q.After):
		case <-ctx.Done():
			page.Dropped = dropped
			return page
		}
		page = b.read(q)
		dropped += page.Dropped
	}
	page.Dropped = dropped
	return page
}

// growth is closed when there are lines behind one.
func (b *Book) growth(after uint64) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.grown == nil {
		b.grown = make(chan struct{})
	}
	if after+1 < b.nextLocked() {
		already := make(chan struct{})
		close(already)
		return already
	}
	return b.grown
}

func (b *Book) read(q Query) procapi.LogPage {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := b.nextLocked()
	q.After = min(q.After, next-1)
	page := procapi.LogPage{Epoch: b.epoch, Lines: []procapi.LogLine{}, Next: q.After}
	if q.After+1 < b.first {
		page.Next = b.first - 1
		if !b.reachesLocked(q.Since) {
			page.Dropped = b.first - 1 - q.After
		}
	}
	size := 0
	for n := page.Next + 1; n < next; n++ {
		e := &b.lines[b.gone+int(n-b.first)]
		if q.wants(e) {
			size += len(e.message)
			if full := len(page.Lines); full == q.Limit || full > 0 && size > procapi.MaxLogPageBytes {
				page.More = true
				break
			}
			page.Lines = append(page.Lines, e.line(n))
		}
		page.Next = n
	}
	return page
}

// reachesLocked tells whether all that is gone was printed before a time.
func (b *Book) reachesLocked(t time.Time) bool {
	return !t.IsZero() && b.gone < len(b.lines) && b.lines[b.gone].time < t.UnixNano()
}

// nextLocked is the number of the next line.
func (b *Book) nextLocked() uint64 { return b.first + uint64(len(b.lines)-b.gone) }

func (e *entry) line(number uint64) procapi.LogLine {
	return procapi.LogLine{
		Seq: number, Time: time.Unix(0, e.time).UTC(), ContextID: e.from.context, PID: e.from.pid, Stream: streamNames[e.stream],
		Message: e.message, Truncated: e.truncated, LostBytes: e.lost,
	}
}

var streamNames = map[proc.Source]string{proc.Stdout: "stdout", proc.Stderr: "stderr", proc.PTY: "pty"}

// Stream is the source that has a name; ok is false for a name that none has.
func Stream(name string) (src proc.Source, ok bool) {
	for src, n := range streamNames {
		if n == name {
			return src, true
		}
	}
	return 0, false
}

// following lists the followers in the order in which they came.
func (b *Book) following() []*follower {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]*follower, 0, len(b.followers))
	for f := range b.followers {
		all = append(all, f)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].began.Before(all[j].began) })
	return all
}
