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
	if err := New(t.TempDir()).look(); err != nil && !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("of a real file system: %v", err)
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
