package logbook

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// everything reads the whole journal, page by page.
func everything(t *testing.T, b *Book, q Query) (lines []procapi.LogLine, dropped uint64) {
	t.Helper()
	if q.Limit == 0 {
		q.Limit = procapi.MaxLogLines
	}
	for {
		p := b.Read(q)
		lines, dropped = append(lines, p.Lines...), dropped+p.Dropped
		if q.After = p.Next; !p.More {
			return lines, dropped
		}
	}
}

func messages(lines []procapi.LogLine) string {
	var all []string
	for _, l := range lines {
		all = append(all, l.Message)
	}
	return strings.Join(all, "|")
}

// printer is a process whose output the book follows.
type printer struct {
	*proc.Log
	done chan struct{}
}

func follow(b *Book, context string, pid int) *printer {
	p := &printer{proc.NewLog(procapi.LogBytes), make(chan struct{})}
	run := b.Follow(context, pid, p.Log)
	go func() {
		defer close(p.done)
		run()
	}()
	return p
}

func (p *printer) end() {
	p.Close()
	<-p.done
}

func TestLinesOfAllProcessesInOneJournal(t *testing.T) {
	t.Parallel()
	b := New(1 << 20)
	one, two := follow(b, "ctx-1", 11), follow(b, "ctx-2", 22)
	before := time.Now()
	one.Append(proc.Stdout, []byte("a\nb"))
	one.Append(proc.Stderr, []byte("error\n"))
	one.Append(proc.Stdout, []byte("c\n\nlast"))
	everything(t, b, Query{}) // processes are followed each for itself: this one's lines are in now
	two.Append(proc.PTY, []byte(">>> 1\r\n"))
	got, _ := everything(t, b, Query{})
	if m := messages(got); m != "a|error|bc||>>> 1" {
		t.Errorf("%q", m) // what was printed before the question is in the answer
	}
	one.end()
	two.end()
	got, dropped := everything(t, b, Query{})
	if m := messages(got); m != "a|error|bc||>>> 1|last" || dropped != 0 {
		t.Errorf("%q, %d dropped", m, dropped)
	}
	for i, l := range got {
		if l.Seq != uint64(i+1) || l.Time.Before(before.Add(-time.Millisecond)) || l.Time.After(time.Now()) {
			t.Errorf("line %d: %+v", i, l)
		}
	}
	if l := got[1]; l.ContextID != "ctx-1" || l.PID != 11 || l.Stream != "stderr" {
		t.Errorf("%+v", l)
	}
	for want, q := range map[string]Query{
		"a|bc||last": {Context: "ctx-1", Stream: proc.Stdout}, ">>> 1": {Context: "ctx-2"}, "error": {Stream: proc.Stderr},
		"last": {After: 5}, "": {Context: "ctx-3"}, "a|error|bc||>>> 1|last": {Since: before.Add(-time.Second), Until: time.Now().Add(time.Second)},
	} {
		if m := messages(b.Read(withLimit(q)).Lines); m != want {
			t.Errorf("%+v: %q, want %q", q, m, want)
		}
	}
	for _, q := range []Query{{Until: before.Add(-time.Second)}, {Since: time.Now().Add(time.Hour)}} {
		if p := b.Read(withLimit(q)); len(p.Lines) != 0 || p.Next != 6 {
			t.Errorf("%+v: %+v", q, p)
		}
	}
}

func withLimit(q Query) Query {
	q.Limit = procapi.MaxLogLines
	return q
}

func TestPages(t *testing.T) {
	t.Parallel()
	b := New(1 << 20)
	p := follow(b, "ctx-1", 1)
	for i := range 25 {
		p.Append(proc.Stdout, fmt.Appendf(nil, "%d\n", i))
	}
	p.end()
	var seen []string
	for q := (Query{Limit: 10}); ; {
		page := b.Read(q)
		seen = append(seen, fmt.Sprint(len(page.Lines)))
		if q.After = page.Next; !page.More {
			break
		}
	}
	if fmt.Sprint(seen) != "[10 10 5]" {
		t.Errorf("pages of %v", seen)
	}
	if page := b.Read(Query{After: 1 << 60, Limit: 10}); len(page.Lines) != 0 || page.Next != 25 || page.Dropped != 0 {
		t.Errorf("from the future: %+v", page)
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	b := New(1 << 20)
	p := follow(b, "ctx-1", 1)
	defer p.end()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := make(chan procapi.LogPage)
	go func() { got <- b.Await(ctx, Query{Limit: 10, Stream: proc.Stderr}) }()
	p.Append(proc.Stdout, []byte("not this\n"))
	p.Append(proc.Stderr, []byte("this\n"))
	page := <-got
	if messages(page.Lines) != "this" || page.Next != 2 {
		t.Errorf("%+v", page)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if page := b.Await(short, Query{After: 2, Limit: 10}); len(page.Lines) != 0 || page.Next != 2 {
		t.Errorf("%+v", page)
	}
}

// D07: whatever is printed, memory is bounded and what is missing is counted.
func TestD07_FloodAndHugeLines(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	b := New(limit)
	p := follow(b, "ctx-1", 1)
	p.Append(proc.Stdout, []byte(strings.Repeat("x", 3<<20))) // one line without an end
	p.Append(proc.Stdout, []byte("\nafter\n"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b.Await(ctx, Query{After: 1, Limit: 1})
	got, _ := everything(t, b, Query{})
	if len(got) != 2 || len(got[0].Message) != procapi.MaxLogLineBytes || !got[0].Truncated || got[1].Message != "after" || got[1].Truncated {
		t.Fatalf("%d lines", len(got))
	}
	for range 100_000 {
		p.Append(proc.Stdout, []byte("y\n"))
	}
	p.end()
	got, dropped := everything(t, b, Query{})
	if kept := len(got) * (entryBytes + 1); kept > limit || kept < limit-2*entryBytes {
		t.Errorf("%d bytes of a limit of %d are kept", kept, limit)
	}
	if n := uint64(len(got)) + dropped; n != 100_002 {
		t.Errorf("%d lines kept, %d dropped: want 100002 together", len(got), dropped)
	}
	if got[0].Seq != dropped+1 {
		t.Errorf("first kept is %d after %d dropped", got[0].Seq, dropped)
	}
	if p := b.Read(withLimit(Query{Since: time.Now()})); p.Dropped != 0 || len(p.Lines) != 0 {
		t.Errorf("of what is printed from now on %d lines are missing", p.Dropped)
	}
}

// B08: of a process that prints faster than the journal takes it, the end is
// there and the rest is counted.
func TestB08_LostBytesAreCounted(t *testing.T) {
	t.Parallel()
	b := New(1 << 20)
	log := proc.NewLog(64 << 10)
	line := strings.Repeat("z", 99) + "\n"
	for range 10_000 {
		log.Append(proc.Stdout, []byte(line))
	}
	log.Append(proc.Stdout, []byte("the end\n"))
	log.Close()
	b.Follow("ctx-1", 1, log)()
	got, _ := everything(t, b, Query{})
	total := uint64(0)
	for _, l := range got {
		total += uint64(len(l.Message)) + 1 + l.LostBytes
	}
	if want := uint64(10_000*100 + 8); total != want || got[0].LostBytes == 0 {
		t.Errorf("%d bytes are accounted for, %d were printed; the first line: %+v", total, want, got[0])
	}
	if last := got[len(got)-1]; last.Message != "the end" {
		t.Errorf("%+v", last)
	}
}

func TestHostileBytesBecomeText(t *testing.T) {
	t.Parallel()
	b := New(1 << 20)
	p := follow(b, "ctx-1", 1)
	p.Append(proc.Stdout, []byte("\xff\xfe\x00\x1b[31m\xc3\n"))
	p.end()
	got, _ := everything(t, b, Query{})
	j, err := json.Marshal(got)
	if err != nil || !utf8.Valid(j) || !strings.Contains(got[0].Message, "\x1b[31m") {
		t.Errorf("%s: %v", j, err)
	}
}

// However output is cut into pieces, its lines are the same.
func TestPiecesDoNotMatter(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("short\n\nlonger line\n", 50) + strings.Repeat("w", 40_000) + "\nend"
	want := ""
	for seed := range uint64(20) {
		b := New(1 << 20)
		p := follow(b, "ctx-1", 1)
		r := rand.New(rand.NewPCG(seed, 0))
		for rest := text; rest != ""; {
			n := min(len(rest), 1+r.IntN(3000))
			p.Append(proc.Stdout, []byte(rest[:n]))
			rest = rest[n:]
			if r.IntN(4) == 0 {
				b.Read(Query{Limit: 1})
			}
		}
		p.end()
		got, _ := everything(t, b, Query{})
		if m := messages(got); want == "" {
			want = m
		} else if m != want {
			t.Fatalf("seed %d: other lines", seed)
		}
	}
	if !strings.HasSuffix(want, "|end") || strings.Count(want, "short") != 50 {
		t.Errorf("%.100q", want)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	b := New(256 << 10)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := follow(b, fmt.Sprintf("ctx-%d", i), i)
			for n := range 200 {
				p.Append(proc.Stdout, fmt.Appendf(nil, "%d\n", n))
			}
			p.end()
		})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			for q := (Query{Limit: 7}); ctx.Err() == nil; {
				q.After = b.Await(ctx, q).Next
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		got, _ := everything(t, b, Query{Context: fmt.Sprintf("ctx-%d", i)})
		if len(got) != 200 || got[0].Message != "0" || got[199].Message != "199" {
			t.Errorf("context %d: %d lines", i, len(got))
		}
	}
	if left := b.following(); len(left) != 0 {
		t.Errorf("%d followers are left", len(left))
	}
}

// BenchmarkFlood is what the journal costs a process that prints short lines as
// fast as it can: bytes a second through its log, with and without the journal.
func BenchmarkFlood(b *testing.B) {
	piece := []byte(strings.Repeat("0123456789abcde\n", 16<<10)) // 256 KiB
	for _, followed := range []bool{false, true} {
		b.Run(fmt.Sprintf("followed=%v", followed), func(b *testing.B) {
			log := proc.NewLog(procapi.LogBytes)
			done := make(chan struct{})
			go func() {
				defer close(done)
				if followed {
					New(procapi.LogJournalBytes).Follow("ctx-1", 1, log)()
				}
			}()
			b.SetBytes(int64(len(piece)))
			for b.Loop() {
				log.Append(proc.Stdout, piece)
			}
			log.Close()
			<-done
		})
	}
}
