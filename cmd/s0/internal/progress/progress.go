// Package progress shows on a terminal how far something has come that takes a
// while: a line that is drawn over and over and wiped out at its end.
//
// Where nobody watches, for the file is no terminal, nothing is ever written. A
// [Bar] owns its line from [Start] to [Bar.Stop]; who writes to the same terminal
// in between spoils the line, no more.
//
//	bar := progress.Start(os.Stderr, "Uploading data.csv", size)
//	defer bar.Stop()
//	_, err := io.Copy(w, bar.Reader(f))
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/tty"
)

const (
	// patience is what passes before the first line: what is done by then needs none.
	patience = 500 * time.Millisecond
	// interval is what passes between two lines: often enough to look alive.
	interval = 200 * time.Millisecond

	minBar, maxBar = 10, 30 // cells
)

// wipe goes to the line's start and clears it.
const wipe = "\r\x1b[K"

// Bar is the progress of one thing. Its methods may be called by many goroutines.
type Bar struct {
	out     *os.File
	started time.Time
	stop    chan struct{}
	drawing sync.WaitGroup

	mu          sync.Mutex
	what        string
	done, total int64
}

// Start shows the progress of what, such as "Uploading data.csv", on out until
// Stop is called. The total is in bytes, 0 if nobody knows it.
func Start(out *os.File, what string, total int64) *Bar {
	b := &Bar{out: out, started: time.Now(), stop: make(chan struct{}), what: what, total: total}
	if tty.CanRedraw(out) {
		b.drawing.Go(b.draw)
	}
	return b
}

// Stop wipes the line out. It may be called again.
func (b *Bar) Stop() {
	b.mu.Lock()
	select {
	case <-b.stop:
	default:
		close(b.stop)
	}
	b.mu.Unlock()
	b.drawing.Wait()
}

// Add tells that n more bytes are done.
func (b *Bar) Add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += n
}

// Set tells how many bytes of how many are done.
func (b *Bar) Set(done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done, b.total = done, total
}

// Say tells what is being done now.
func (b *Bar) Say(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.what = what
}

// Reader counts what is read from r.
func (b *Bar) Reader(r io.Reader) io.Reader { return io.TeeReader(r, counter{b}) }

// Writer counts what is written to w.
func (b *Bar) Writer(w io.Writer) io.Writer { return io.MultiWriter(w, counter{b}) }

type counter struct{ bar *Bar }

func (c counter) Write(p []byte) (int, error) {
	c.bar.Add(int64(len(p)))
	return len(p), nil
}

func (b *Bar) draw() {
	next := time.NewTimer(patience)
	defer next.Stop()
	for drawn := false; ; drawn = true {
		select {
		case <-b.stop:
			if drawn {
				io.WriteString(b.out, wipe)
			}
			return
		case <-next.C:
			io.WriteString(b.out, wipe+b.line(time.Since(b.started), tty.Width(b.out)))
			next.Reset(interval)
		}
	}
}

// line is what the bar looks like on a terminal of a width.
func (b *Bar) line(elapsed time.Duration, width int) string {
	b.mu.Lock()
	what, done, total := output.Plain(b.what), b.done, b.total
	b.mu.Unlock()
	tail := amount(done, total, elapsed)
	room := width - 1 - output.Cells(tail) - len("  ") // the last cell would wrap the line
	if total > 0 {
		if cells := min(room-output.Cells(what)-len("  []"), maxBar); cells >= minBar {
			what += "  [" + fill(done, total, cells) + "]"
		}
	}
	return output.Shorten(output.Shorten(what, max(room, 1))+"  "+tail, max(width-1, 1))
}

func fill(done, total int64, cells int) string {
	full := int(float64(cells) * min(1, float64(done)/float64(total)))
	return strings.Repeat("=", full) + strings.Repeat(" ", cells-full)
}

// amount is what there is to say in numbers.
func amount(done, total int64, elapsed time.Duration) string {
	var parts []string
	switch {
	case total > 0:
		parts = append(parts, fmt.Sprintf("%3.0f %%", 100*min(1, float64(done)/float64(total))), output.Bytes(done)+" of "+output.Bytes(total))
	case done > 0:
		parts = append(parts, output.Bytes(done))
	}
	if seconds := elapsed.Seconds(); done > 0 && seconds > 0 {
		speed := float64(done) / seconds
		parts = append(parts, output.Bytes(int64(speed))+"/s")
		if left := float64(total-done) / speed; total > done {
			return strings.Join(append(parts, clock(time.Duration(left*float64(time.Second)))+" left"), "  ")
		}
	}
	return strings.Join(append(parts, clock(elapsed)), "  ")
}

// clock is a time span as a stopwatch shows it.
func clock(d time.Duration) string {
	s := int64(min(d, 99*time.Hour).Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
