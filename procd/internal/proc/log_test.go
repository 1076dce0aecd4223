package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// readAll reads to the end of the log and returns the bytes of each source and
// how many were lost; it fails the test where offsets don't fit.
func readAll(t *testing.T, r *Reader) (bySource map[Source]string, lost uint64) {
	t.Helper()
	bySource = map[Source]string{}
	next := r.Offset()
	deadline := time.After(20 * time.Second)
	for {
		c, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return bySource, lost
		case errors.Is(err, ErrNothing):
			select {
			case <-r.Ready():
			case <-deadline:
				t.Fatal("the log did not end")
			}
			continue
		}
		if c.Offset != next+c.Lost {
			t.Fatalf("chunk at offset %d after %d with %d lost", c.Offset, next, c.Lost)
		}
		next = c.Offset + uint64(len(c.Data))
		lost += c.Lost
		bySource[c.Source] += string(c.Data)
	}
}

func TestLogReplaysThenFollows(t *testing.T) {
	t.Parallel()
	l := NewLog(1 << 20)
	l.Append(Stdout, []byte("one "))
	l.Append(Stderr, []byte("error "))
	early, late := l.NewReader(0), l.NewReader(4)
	var wg sync.WaitGroup
	for name, c := range map[string]struct {
		r    *Reader
		want map[Source]string
	}{
		"from the start": {early, map[Source]string{Stdout: "one two", Stderr: "error "}},
		"from an offset": {late, map[Source]string{Stdout: "two", Stderr: "error "}},
	} {
		wg.Go(func() {
			got, lost := readAll(t, c.r)
			if fmt.Sprint(got) != fmt.Sprint(c.want) || lost != 0 {
				t.Errorf("%s: %q, %d lost", name, got, lost)
			}
		})
	}
	l.Append(Stdout, []byte("two"))
	l.Close()
	l.Append(Stdout, []byte("ignored behind the end"))
	wg.Wait()
	if got, _ := readAll(t, l.NewReader(1<<40)); len(got) != 0 {
		t.Errorf("a reader from beyond the end got %q", got)
	}
}

func TestB08_LogIsBounded(t *testing.T) {
	t.Parallel()
	const limit = 256 << 10
	l := NewLog(limit)
	slow := l.NewReader(0)
	piece := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	for range 1000 {
		l.Append(Stdout, piece)
	}
	l.Close()
	if kept := l.Kept(); kept > limit+2*maxSlab {
		t.Errorf("the log keeps %d bytes, limit %d", kept, limit)
	}
	got, lost := readAll(t, slow)
	total := uint64(1000 * len(piece))
	if lost == 0 || uint64(len(got[Stdout]))+lost != total {
		t.Errorf("read %d and lost %d of %d", len(got[Stdout]), lost, total)
	}
	if len(got[Stdout]) < limit {
		t.Errorf("the log held %d bytes, want at least %d", len(got[Stdout]), limit)
	}
	if data, lost := l.Collect(0, 100); len(data) != 0 || lost != 100 {
		t.Errorf("collecting what is gone: %d bytes, %d lost", len(data), lost)
	}
}

func TestLogManyReadersSeeTheSame(t *testing.T) {
	t.Parallel()
	l := NewLog(8 << 20)
	var want bytes.Buffer
	var wg sync.WaitGroup
	results := make([]string, 50)
	for i := range results {
		wg.Go(func() {
			got, _ := readAll(t, l.NewReader(0))
			results[i] = got[Stdout] + got[Stderr]
		})
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		p := bytes.Repeat([]byte{byte(i)}, rnd.IntN(3000))
		want.Write(p)
		l.Append(Stdout, p)
	}
	l.Close()
	wg.Wait()
	for i, got := range results {
		if got != want.String() {
			t.Errorf("reader %d got %d bytes that differ from the %d written", i, len(got), want.Len())
		}
	}
}

func TestLogAlternatingSources(t *testing.T) {
	t.Parallel()
	l := NewLog(1 << 20)
	for i := range 10 * maxRuns {
		l.Append([]Source{Stdout, Stderr}[i%2], []byte{'a' + byte(i%2)})
	}
	l.Close()
	out, _ := l.Collect(0, l.End(), Stdout)
	both, lost := l.Collect(0, l.End())
	if lost != 0 || len(both) != 10*maxRuns || len(out) != 5*maxRuns || bytes.Contains(out, []byte("b")) {
		t.Errorf("collected %d and %d bytes, %d lost", len(out), len(both), lost)
	}
}
