package disk

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
)

func TestD04_Room(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		st   unix.Statfs_t
		err  error
		want string
	}{
		"room":           {st: unix.Statfs_t{Blocks: 100, Bfree: 16, Bavail: 16, Files: 100, Ffree: 90}},
		"full":           {st: unix.Statfs_t{Blocks: 100, Bfree: 15, Bavail: 15, Files: 100, Ffree: 90}, want: "too full"},
		"full for us":    {st: unix.Statfs_t{Blocks: 100, Bfree: 30, Bavail: 5, Files: 100, Ffree: 90}, want: "too full"},
		"of inodes":      {st: unix.Statfs_t{Blocks: 100, Bfree: 90, Bavail: 90, Files: 100, Ffree: 10}, want: "too full"},
		"uncounted":      {st: unix.Statfs_t{Blocks: 100, Bfree: 90, Bavail: 90}},
		"nobody can say": {err: errors.New("input/output error"), want: "can't tell"},
	} {
		d := New("/x")
		d.statfs = func(_ string, st *unix.Statfs_t) error { *st = c.st; return c.err }
		err := d.Room()
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(errdefs.From(err).Message, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if err := New(t.TempDir()).RoomFor(0); err != nil && !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("of a real file system: %v", err)
	}
}

// X41: what takes much is refused before the disk is full of it, and what is elsewhere
// goes before anybody is refused.
func TestX41_RoomForAndCrowded(t *testing.T) {
	t.Parallel()
	d := New("/x")
	use := func(percent uint64) {
		d.statfs = func(_ string, st *unix.Statfs_t) error {
			*st = unix.Statfs_t{Bsize: 4096, Blocks: 100, Bfree: 100 - percent, Bavail: 100 - percent}
			return nil
		}
	}
	for _, c := range []struct {
		used          uint64
		more          int64
		room, crowded bool
	}{{50, 0, true, false}, {50, 34 * 4096, true, false}, {50, 35 * 4096, false, false}, {50, 1 << 60, false, false}, {79, 0, true, false}, {80, 0, true, true}, {85, 0, false, true}} {
		use(c.used)
		if err := d.RoomFor(c.more); (err == nil) != c.room || err != nil && !errdefs.Is(err, errdefs.Exhausted) || d.Crowded() != c.crowded {
			t.Errorf("%d %% used, %d more: %v, crowded %v", c.used, c.more, err, d.Crowded())
		}
	}
}

func TestLooksOnceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		d := New("/x")
		d.statfs = func(string, *unix.Statfs_t) error { looks++; return nil }
		for range 30 {
			_ = d.Room()
			<-time.After(100 * time.Millisecond)
		}
		if looks != 3 {
			t.Errorf("%d looks in 3 seconds", looks)
		}
	})
}
