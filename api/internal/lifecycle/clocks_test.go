package lifecycle_test

import (
	"fmt"
	"testing"
	"time"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/store"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

const halfHour, twoHours = 30 * 60, 2 * 60 * 60 // seconds

// timed claims a sandbox with a ttl and a hard ttl in seconds; 0: none.
func (f *fixture) timed(ttl, hard int32) store.Sandbox {
	f.t.Helper()
	return f.claimed(func(n *store.NewSandbox) { n.TTLSeconds, n.HardTTLSeconds = ttl, hard })
}

// looked waits until the server has looked for whose time is over: it finds two that have
// been claimed for a second.
func (f *fixture) looked() {
	f.t.Helper()
	soft, hard := f.timed(1, 0), f.timed(0, 1)
	f.eventually(soft.ID, "the ttl of a second pauses", asleep)
	f.eventually(hard.ID, "the hard ttl of a second ends", deleted)
}

func asleep(row store.Sandbox) bool { return row.Status == sandbox.Paused }

// runs fails the test if a sandbox does not run as the generation that it was claimed as.
func (f *fixture) runs(when string, list ...store.Sandbox) {
	f.t.Helper()
	for _, sb := range list {
		if row := f.row(sb.ID); row.Status != sandbox.Running || row.Generation != sb.Generation {
			f.t.Errorf("%s: %s is %s, generation %d", when, sb.ID, row.Status, row.Generation)
		}
	}
}

func (f *fixture) ended(sb store.Sandbox) bool {
	_, told := f.node.Deleted()[string(sb.ID)]
	return told
}

// X48: the database's clock is not that of the server and the node. Times to live are the
// database's: nothing ends early or late, and it can be resumed.
func TestX48_ClocksApart(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{time.Hour, -time.Hour, 5 * time.Minute, -5 * time.Minute} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			t.Parallel()
			dsn, set := s0test.SkewedPostgres(t)
			set(ahead)
			f := runAt(t, dsn, &fakenode.Node{}, lifecycle.Config{Settled: time.Hour, Grace: time.Hour})
			short, long := f.timed(1, 0), f.timed(halfHour, halfHour)
			f.looked()
			f.eventually(short.ID, "the ttl pauses it", asleep)
			f.runs("with time left", long)
			row, err := f.keep.Resume(t.Context(), f.team, short.ID)
			if err != nil || row.Status != sandbox.Running {
				t.Errorf("resumed: %+v, %v", row, err)
			}
			if f.ended(short) || f.ended(long) {
				t.Errorf("ended: %v", f.node.Deleted())
			}
		})
	}
}

// X48: the database's clock jumps an hour back, two ahead and one back again. Whose time
// is over by it sleeps or ends once; nobody else does.
func TestX48_TheClockJumps(t *testing.T) {
	t.Parallel()
	dsn, set := s0test.SkewedPostgres(t)
	f := runAt(t, dsn, &fakenode.Node{}, lifecycle.Config{Settled: time.Hour, Grace: time.Hour})
	soft, hard, long := f.timed(halfHour, 0), f.timed(0, halfHour), f.timed(twoHours, twoHours)
	set(-time.Hour)
	f.looked()
	f.runs("an hour back", soft, hard, long)
	set(time.Hour)
	f.eventually(soft.ID, "the ttl pauses it", asleep)
	f.eventually(hard.ID, "the hard ttl ends it", deleted)
	f.looked()
	f.runs("an hour ahead", long)
	paused := f.row(soft.ID)
	set(0)
	f.looked()
	f.runs("back again", long)
	if row := f.row(soft.ID); row.Status != sandbox.Paused || row.Generation != paused.Generation || f.ended(soft) || f.ended(long) {
		t.Errorf("back again: %+v, ended %v", row, f.node.Deleted())
	}
	row, err := f.keep.Resume(t.Context(), f.team, soft.ID)
	if err != nil || row.ExpiresAt == nil || row.ExpiresAt.Sub(row.UpdatedAt) != halfHour*time.Second {
		t.Errorf("resumed: %+v, %v", row, err)
	}
}
