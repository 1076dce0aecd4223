package logbook

import (
	"errors"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

const (
	// pause is what passes between two looks at a process that prints, and between
	// its first output and the first look: lines get their time this exactly, and a
	// chatty process costs few wake-ups.
	pause = 20 * time.Millisecond
	// A process is busy when it prints this much between two looks. Then the
	// journal rests share times longer than it has worked, whoever asks meanwhile:
	// it takes a twentieth of a CPU, however much is printed, and misses the rest.
	busyBytes = 256 << 10
	share     = 19
	// maxWork bounds the work at a time, and so the rest: the last lines of a
	// process come no later than that.
	maxWork = 50 * time.Millisecond
)

// follower makes lines of one process's output.
type follower struct {
	book  *Book
	from  *origin
	began time.Time

	mu      sync.Mutex
	reader  *proc.Reader
	streams map[proc.Source]*stream
	rest    time.Time // of the last time that there was much to do: until when
	ended   bool
}

// stream is what is known of an unfinished line.
type stream struct {
	partial []byte
	cut     bool   // the line has been written as far as a line may be long
	lost    uint64 // to be told with the next line
}

// Follow begins to write down what a process prints; pid is what the lines say of
// it. The caller calls run, on a goroutine of its own: it returns after the log's
// end.
func (b *Book) Follow(contextID string, pid int, log *proc.Log) (run func()) {
	f := &follower{
		book: b, from: &origin{contextID, pid}, began: b.now(), reader: log.NewReader(0), streams: map[proc.Source]*stream{},
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.followers[f] = struct{}{}
	return f.run
}

func (f *follower) run() {
	defer func() {
		f.book.mu.Lock()
		defer f.book.mu.Unlock()
		delete(f.book.followers, f)
	}()
	for {
		rest, left := f.take()
		if left == nothing {
			return
		}
		if left == unknown {
			<-f.reader.Ready()
		}
		time.Sleep(max(pause, rest.Sub(f.book.now()))) // whoever waits for this output goes first
	}
}

// left is what remains to be taken.
type left int

const (
	nothing left = iota // the process has ended
	unknown             // the reader will tell
	some
)

// catchUp takes what there is now, on behalf of somebody who asks for it.
func (f *follower) catchUp() {
	f.mu.Lock()
	resting := f.book.now().Before(f.rest)
	f.mu.Unlock()
	if !resting {
		f.take()
	}
}

// take writes down what the log holds, as far as it may at a time. It says until
// when to leave the process alone then.
func (f *follower) take() (rest time.Time, left left) {
	f.mu.Lock()
	defer f.mu.Unlock()
	began, from := f.book.now(), f.reader.Offset()
	worked := time.Duration(0)
	for left = some; left == some && worked < maxWork; worked = f.book.now().Sub(began) {
		left = f.next(began)
	}
	if f.reader.Offset()-from >= busyBytes {
		f.rest = began.Add((share + 1) * worked)
	}
	return f.rest, left
}

func (f *follower) next(now time.Time) left {
	if f.ended {
		return nothing
	}
	c, err := f.reader.Next()
	switch {
	case errors.Is(err, io.EOF):
		f.ended = true
		f.reader.Close()
		f.finish(now)
		return nothing
	case err != nil:
		return unknown
	}
	f.chunk(c, now)
	return some
}

// chunk splits a piece of the log into lines.
func (f *follower) chunk(c proc.Chunk, now time.Time) {
	if c.Lost > 0 {
		f.skip(c.Lost)
		return
	}
	s := f.stream(c.Source)
	lines, kept := []entry(nil), 0
	text := string(c.Data) // lines share it
	for text != "" {
		line, rest, whole := strings.Cut(text, "\n")
		text = rest
		if e, ok := s.end(line, whole); ok {
			e.time, e.from, e.stream = now.UnixNano(), f.from, c.Source
			e.message = clean(e.message, c.Source)
			lines, kept = append(lines, e), kept+len(e.message)
		}
	}
	if kept < len(c.Data)/2 { // sharing would hold on to what is in no line
		for i := range lines {
			lines[i].message = strings.Clone(lines[i].message)
		}
	}
	f.book.add(lines)
}

func (f *follower) stream(src proc.Source) *stream {
	s := f.streams[src]
	if s == nil {
		s = new(stream)
		f.streams[src] = s
	}
	return s
}

// skip notes that bytes are missing. Nobody knows of which stream they were, so
// that no line that was under way can be trusted to go on.
func (f *follower) skip(lost uint64) {
	for _, s := range f.streams {
		s.lost += lost + uint64(len(s.partial))
		s.partial, s.cut = nil, false
		lost = 0 // told once
	}
	if len(f.streams) == 0 {
		f.stream(proc.Stdout).lost = lost
	}
}

// finish writes down the line that no newline ended.
func (f *follower) finish(now time.Time) {
	for src, s := range f.streams {
		if len(s.partial) == 0 {
			continue
		}
		e, _ := s.end("", true)
		e.time, e.from, e.stream, e.message = now.UnixNano(), f.from, src, clean(e.message, src)
		f.book.add([]entry{e})
	}
}

// end takes the next part of the stream's line, the last if whole. It returns an
// entry when there is one to write: at the end, or when no more of it will be kept.
func (s *stream) end(part string, whole bool) (entry, bool) {
	if s.cut {
		s.cut = !whole
		return entry{}, false
	}
	long := len(s.partial)+len(part) > procapi.MaxLogLineBytes
	if !whole && !long {
		s.partial = append(s.partial, part...)
		return entry{}, false
	}
	e := entry{message: part, truncated: long, lost: s.lost}
	if len(s.partial) > 0 {
		e.message = string(s.partial) + part[:min(len(part), procapi.MaxLogLineBytes)]
	}
	if long {
		e.message, s.cut = e.message[:procapi.MaxLogLineBytes], !whole
	}
	s.partial, s.lost = nil, 0
	return e, true
}

// clean makes a line fit for JSON. A terminal ends its lines with "\r\n".
func clean(line string, src proc.Source) string {
	if src == proc.PTY {
		line = strings.TrimSuffix(line, "\r")
	}
	if !utf8.ValidString(line) {
		line = strings.ToValidUTF8(line, "\uFFFD")
	}
	return line
}
