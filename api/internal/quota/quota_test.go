package quota

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// database is one team's limits and use.
type database struct {
	limit int64 // sandboxes; < 0: none
	used  atomic.Int64
	reads int
	err   error
}

func (d *database) room(context.Context, uuid.UUID) ([]store.Room, error) {
	d.reads++
	if d.limit < 0 || d.err != nil {
		return nil, d.err
	}
	return []store.Room{{Dimension: store.QuotaSandboxes, Limit: d.limit, Left: d.limit - d.used.Load()}}, nil
}

func TestWithoutALimitNothingIsAskedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{limit: -1}
		g, team := NewGate(d.room), uuid.New()
		for range 100 {
			leave, err := g.Enter(t.Context(), team, 1)
			if err != nil {
				t.Fatal(err)
			}
			leave(true)
		}
		if d.reads != 1 {
			t.Errorf("%d reads", d.reads)
		}
		g.Forget()
		d.limit = 0
		if _, err := g.Enter(t.Context(), team, 1); !errdefs.Is(err, errdefs.Exhausted) {
			t.Errorf("after a change: %v", err)
		}
	})
}

func TestA15_NoMoreGoOnThanThereIsRoomFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{limit: 10}
		d.used.Store(7)
		g, team := NewGate(d.room), uuid.New()
		var going, refused atomic.Int32
		finish := make(chan bool)
		for range 100 {
			go func() {
				leave, err := g.Enter(t.Context(), team, 1)
				if err != nil {
					refused.Add(1)
					return
				}
				going.Add(1)
				made := <-finish
				if made {
					d.used.Add(1)
				}
				going.Add(-1)
				leave(made)
			}()
		}
		synctest.Wait()
		if going.Load() != 3 || refused.Load() != 0 {
			t.Fatalf("%d go on, %d are refused", going.Load(), refused.Load())
		}
		finish <- false // it failed: another one has its place
		synctest.Wait()
		if going.Load() != 3 {
			t.Errorf("%d go on", going.Load())
		}
		for range 3 {
			finish <- true
		}
		synctest.Wait()
		if going.Load() != 0 || refused.Load() != 96 || d.used.Load() != 10 {
			t.Errorf("%d go on, %d are refused, %d are there", going.Load(), refused.Load(), d.used.Load())
		}
		d.used.Add(-1) // one has ended
		leave, err := g.Enter(t.Context(), team, 1)
		if err != nil {
			t.Fatalf("room is not seen at once: %v", err)
		}
		leave(true)
	})
}

// Two replicas let in as many as there is room for, each. The database refuses half
// of them, and nobody else may take a slot for nothing.
func TestA15_WhoIsRefusedLeavesNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{limit: 10}
		g, team := NewGate(d.room), uuid.New()
		var leave [10]func(bool)
		for n := range leave {
			var err error
			if leave[n], err = g.Enter(t.Context(), team, 1); err != nil {
				t.Fatal(err)
			}
		}
		d.used.Store(10)
		for n, leave := range leave {
			leave(n < 5)
		}
		if _, err := g.Enter(t.Context(), team, 1); !errdefs.Is(err, errdefs.Exhausted) {
			t.Errorf("one more: %v", err)
		}
	})
}

// What is read while it changes is read again.
func TestAReadingIsAsOldAsItsBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := int64(-1)
		asked, answer := make(chan struct{}), make(chan struct{})
		g, team := NewGate(func(ctx context.Context, id uuid.UUID) ([]store.Room, error) {
			d := &database{limit: limit}
			asked <- struct{}{}
			<-answer
			return d.room(ctx, id)
		}), uuid.New()
		entered := make(chan error)
		go func() {
			_, err := g.Enter(t.Context(), team, 1)
			entered <- err
		}()
		<-asked
		limit = 0
		g.Forget()
		answer <- struct{}{}
		<-asked
		answer <- struct{}{}
		if err := <-entered; !errdefs.Is(err, errdefs.Exhausted) {
			t.Errorf("%v", err)
		}
	})
}

// Who has ended a sandbox may claim another, whatever a claim that came before is told.
func TestWhatWasReadBeforeRefusesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{limit: 1}
		d.used.Store(1)
		answer := make(chan struct{})
		g := NewGate(func(ctx context.Context, team uuid.UUID) ([]store.Room, error) {
			room, err := d.room(ctx, team)
			<-answer
			return room, err
		})
		team := uuid.New()
		enter := func() <-chan error {
			entered := make(chan error, 1)
			go func() {
				_, err := g.Enter(t.Context(), team, 1)
				entered <- err
			}()
			synctest.Wait()
			return entered
		}
		early := enter()
		d.used.Store(0) // while that is being read
		late := enter()
		answer <- struct{}{}
		if err := <-early; !errdefs.Is(err, errdefs.Exhausted) {
			t.Errorf("before there was room: %v", err)
		}
		close(answer)
		if err := <-late; err != nil {
			t.Errorf("once there is room: %v", err)
		}
	})
}

func TestGateWaitsOnlySoLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{limit: 1}
		g, team := NewGate(d.room), uuid.New()
		leave, err := g.Enter(t.Context(), team, 1)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := g.Enter(t.Context(), team, 1); !errdefs.Is(err, errdefs.Exhausted) || time.Since(began) != longestWait {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		leave(true)
		d.err = errors.New("away")
		if _, err := g.Enter(t.Context(), team, 1); !errors.Is(err, d.err) {
			t.Errorf("%v", err)
		}
	})
}

func TestTeamsAreForgotten(t *testing.T) {
	t.Parallel()
	g := NewGate((&database{limit: -1}).room)
	for range 3 * maxKnown {
		leave, err := g.Enter(t.Context(), uuid.New(), 1)
		if err != nil {
			t.Fatal(err)
		}
		leave(true)
	}
	if len(g.teams) > maxKnown {
		t.Errorf("%d teams", len(g.teams))
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	if list, err := Defaults(map[string]int64{"active_sandboxes": 5, "network_egress_bytes": 7}); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	for name, limits := range map[string]map[string]int64{
		"unknown": {"x": 1}, "negative": {"memory_mib": -1}, "twice": {"egress": 1, "network_egress_bytes": 1}, "not for teams": {"api_requests": 1},
	} {
		if _, err := Defaults(limits); err == nil {
			t.Error(name)
		}
	}
	if _, err := Parse("egress", openapi.SetQuotaRequest{LimitValue: new(int64(1)), IntervalMs: new(int64(1000))}); err != nil {
		t.Error(err)
	}
}
