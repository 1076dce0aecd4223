package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

const (
	holdLimit = 1 << 20
	holdTotal = 20 << 20
)

// produce appends total bytes as a pump does, from its own goroutine, and closes the
// log. The channel says how long that took.
func produce(l *Log, total int) <-chan time.Duration {
	took := make(chan time.Duration, 1)
	piece := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	began := time.Now()
	go func() {
		for n := 0; n < total; n += len(piece) {
			l.Await()
			l.Append(Stdout, piece)
		}
		took <- time.Since(began)
		l.Close()
	}()
	return took
}

// follow reads to the end, pausing before each chunk.
func follow(t *testing.T, r *Reader, pause time.Duration) (got, lost uint64) {
	t.Helper()
	for {
		time.Sleep(pause)
		c, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return got, lost
		case errors.Is(err, ErrNothing):
			<-r.Ready()
			continue
		}
		got += uint64(len(c.Data))
		lost += c.Lost
	}
}

func TestAReaderThatKeepsThePaceMissesNothing(t *testing.T) {
	t.Parallel()
	for _, pause := range []time.Duration{0, time.Millisecond, 240 * time.Millisecond} { // of 250 for 64 KiB
		synctest.Test(t, func(t *testing.T) {
			l := NewLog(holdLimit)
			fast, slow := l.Attach(0), l.Attach(0)
			took := produce(l, holdTotal)
			go follow(t, fast, 0)
			if got, lost := follow(t, slow, pause); got != holdTotal || lost != 0 {
				t.Errorf("pause %s: read %d, lost %d of %d", pause, got, lost, holdTotal)
			}
			<-took
			if kept := l.Kept(); kept > holdLimit+4*maxSlab {
				t.Errorf("pause %s: the log keeps %d bytes", pause, kept)
			}
		})
	}
}

func TestB08_AStalledReaderHoldsTheProcessOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(holdLimit)
		r := l.Attach(0)
		if took := <-produce(l, holdTotal); took != readPatience {
			t.Errorf("the process was held for %s, want %s", took, readPatience)
		}
		if kept := l.Kept(); kept > holdLimit+4*maxSlab {
			t.Errorf("the log keeps %d bytes", kept)
		}
		if got, lost := follow(t, r, 0); got < holdLimit || got+lost != holdTotal {
			t.Errorf("read %d and was told of %d lost, of %d", got, lost, holdTotal)
		}
	})
}

func TestB08_ASlowReaderCostsABoundedTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(holdLimit)
		r := l.Attach(0)
		took := produce(l, holdTotal)
		got, lost := follow(t, r, 2*time.Second) // 32 KiB a second
		if lost == 0 || got+lost != holdTotal {
			t.Errorf("read %d, lost %d of %d", got, lost, holdTotal)
		}
		if most := readPatience + holdTotal/readPace*time.Second; <-took > most {
			t.Errorf("the process was held for longer than %s", most)
		}
	})
}

func TestAPlaceIsKeptForTheFirstReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(holdLimit)
		l.Expect()
		took := produce(l, holdTotal)
		time.Sleep(absentPatience - time.Second)
		if got, lost := follow(t, l.Attach(0), 0); got != holdTotal || lost != 0 {
			t.Errorf("read %d, lost %d of %d", got, lost, holdTotal)
		}
		<-took
	})
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(holdLimit)
		l.Expect()
		if took := <-produce(l, holdTotal); took != absentPatience {
			t.Errorf("held for %s for nobody, want %s", took, absentPatience)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(holdLimit)
		l.Expect()
		took := produce(l, holdTotal)
		time.Sleep(time.Second)
		l.Forget()
		if took := <-took; took != time.Second {
			t.Errorf("held for %s, although nobody was expected after 1s", took)
		}
	})
	if took := <-produce(NewLog(holdLimit), holdTotal); took > absentPatience {
		t.Errorf("held for %s, although nobody was ever expected", took)
	}
}

func TestAPlaceIsKeptForTheLastReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(holdLimit)
		l.Expect()
		took := produce(l, holdTotal)
		var got uint64
		for lost := uint64(0); got < holdTotal; { // a connection that breaks again and again
			r := l.Attach(got)
			for range 5 {
				c, err := r.Next()
				if errors.Is(err, ErrNothing) {
					<-r.Ready()
				}
				got, lost = got+uint64(len(c.Data)), lost+c.Lost
			}
			r.Close()
			if lost > 0 {
				t.Fatalf("lost %d after %d", lost, got)
			}
			time.Sleep(absentPatience / 2)
		}
		<-took
	})
}

func TestReleaseAndCloseEndTheWaiting(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Log, *Reader){
		"release": func(l *Log, _ *Reader) { l.Release() },
		"close":   func(l *Log, _ *Reader) { l.Close() },
		"detach":  func(l *Log, r *Reader) { r.Close(); l.Forget() },
	} {
		synctest.Test(t, func(t *testing.T) {
			l := NewLog(holdLimit)
			r := l.Attach(0)
			took := produce(l, holdTotal)
			time.Sleep(time.Second)
			end(l, r)
			if took := <-took; took != time.Second {
				t.Errorf("%s: held for %s, want 1s", name, took)
			}
		})
	}
}

// TestFastOutputReachesItsReader runs real processes that print far more than the
// log holds, and attaches as late as a client does.
func TestFastOutputReachesItsReader(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){"pipe": func(*Config) {}, "terminal": onTerminal} {
		const total = 20_000_000
		p := launch(t, fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", total), change, func(c *Config) { c.Expect = true })
		eventually(t, name+": the log is full", func() bool { return p.Log().End() > 4<<20 })
		r := p.Log().Attach(0)
		var got, lost uint64
		for err := error(nil); !errors.Is(err, io.EOF); {
			var c Chunk
			if c, err = r.Next(); errors.Is(err, ErrNothing) {
				<-r.Ready()
			}
			got, lost = got+uint64(len(c.Data)), lost+c.Lost
		}
		if got != total || lost != 0 {
			t.Errorf("%s: read %d, lost %d of %d", name, got, lost, total)
		}
		await(t, p)
	}
}

// TestB09_AStalledReaderDoesNotHideTheEnd: a process that has ended is read to the
// end of its streams although a reader is in the way, and though a child of it
// goes on printing.
func TestB09_AStalledReaderDoesNotHideTheEnd(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits as long as a reader may stall")
	}
	p := launch(t, "yes & head -c 8000000 /dev/zero")
	r := p.Log().Attach(0)
	defer r.Close()
	if exit := await(t, p); exit.State != StateStopped {
		t.Errorf("exit %+v", exit)
	}
}
