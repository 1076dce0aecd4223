package fair

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

func enter(t *testing.T, q *Queue, team uuid.UUID) func() {
	t.Helper()
	leave, err := q.Enter(t.Context(), team)
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func TestATeamThatIsAloneHasAllThereIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, team := NewQueue(), uuid.New()
		var leaves []func()
		for range atOnce {
			leaves = append(leaves, enter(t, q, team))
		}
		entered := false
		go func() {
			enter(t, q, team)()
			entered = true
		}()
		synctest.Wait()
		if entered {
			t.Fatal("one too many goes on")
		}
		leaves[0]()
		synctest.Wait()
		if !entered {
			t.Fatal("whoever waits must follow")
		}
		for _, leave := range leaves[1:] {
			leave()
		}
		if q.going != 0 || len(q.turns) != 0 {
			t.Errorf("%d going, %d turns", q.going, len(q.turns))
		}
	})
}

// D09: however many of one team wait, another's next claim is the next but one.
func TestTeamsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, greedy, modest := NewQueue(), uuid.New(), uuid.New()
		var mu sync.Mutex
		var order []uuid.UUID
		release := make(chan struct{})
		go1 := func(team uuid.UUID) {
			go func() {
				leave := enter(t, q, team)
				mu.Lock()
				order = append(order, team)
				mu.Unlock()
				<-release
				leave()
			}()
		}
		for range 100 {
			go1(greedy)
		}
		synctest.Wait()
		if len(order) != atOnce {
			t.Fatalf("%d go on", len(order))
		}
		go1(modest)
		synctest.Wait()
		release <- struct{}{}
		synctest.Wait()
		if last := order[len(order)-1]; len(order) != atOnce+1 || last != modest {
			t.Errorf("%d have gone on, the last of the modest team: %v", len(order), last == modest)
		}
		// Now that two are there, the greedy one gets no more than its share.
		for range atOnce {
			release <- struct{}{}
		}
		synctest.Wait()
		q.mu.Lock()
		if going := q.teams[greedy].going; going > atOnce/2 {
			t.Errorf("%d of the greedy team go on", going)
		}
		q.mu.Unlock()
		close(release)
		synctest.Wait()
		if len(order) != 101 || q.going != 0 {
			t.Errorf("%d of 101 have gone on, %d still do", len(order), q.going)
		}
	})
}

func TestWaitingHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, team := NewQueue(), uuid.New()
		for range atOnce {
			enter(t, q, team)
		}
		began := time.Now()
		if _, err := q.Enter(t.Context(), team); err != ErrBusy || time.Since(began) != longest {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := q.Enter(ctx, team); err != ErrBusy {
			t.Errorf("a client that is gone: %v", err)
		}
		for range waiting {
			go q.Enter(t.Context(), team)
		}
		synctest.Wait()
		began = time.Now()
		if _, err := q.Enter(t.Context(), team); err != ErrBusy || time.Since(began) != 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		time.Sleep(longest)
		synctest.Wait()
		if len(q.turns) != 0 || len(q.teams[team].waiting) != 0 {
			t.Error("who gave up still waits")
		}
	})
}

func TestTeamsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue()
		for range 1000 {
			enter(t, q, uuid.New())()
		}
		time.Sleep(2 * presence)
		enter(t, q, uuid.New())()
		if len(q.teams) != 1 {
			t.Errorf("%d teams are remembered", len(q.teams))
		}
	})
}
