// Package fair shares what claims compete for between the teams that want it.
//
// A [Queue] bounds how many claims go on at once and lets teams take turns; no
// team has more of them than its share while others are there. [Slots] decides who
// may take one of a pool's last slots. Both are memory alone, of one replica: each
// shares what it has. Neither knows what a claim is.
package fair

import (
	"context"
	"maps"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/internal/errdefs"
)

const (
	// atOnce bounds the claims that go on. More would only wait for each other in
	// places where no turns are taken: the CPUs and the database.
	atOnce = 32
	// waiting bounds the claims of a team that wait for their turn, and longest for how long.
	waiting = 512
	longest = 3 * time.Second
	// presence is for how long a team that wanted something is one of those who share.
	presence = 5 * time.Second

	throttled = "claim_start_throttled"
)

// crowded is how many claims the others of a team have going at once, all together,
// while it is there, too: what keeps half of the CPUs busy, so that who comes finds one
// that is idle, and a lane of the store's in which nobody commits. BenchmarkNeighbour
// measures what it does to a neighbour's claims.
var crowded = max(1, runtime.GOMAXPROCS(0)/2)

// ErrBusy is the answer to a claim whose turn does not come.
var ErrBusy = errdefs.WithCode(errdefs.Exhausted, throttled, "too many sandboxes of this team are starting").WithRetryAfter(time.Second)

// Queue is safe for concurrent use.
type Queue struct {
	mu    sync.Mutex
	now   func() time.Time
	going int
	teams map[uuid.UUID]*line
	turns []*line // of those that have somebody waiting, the next first
	swept time.Time
}

// line is one team's claims.
type line struct {
	going   int
	waiting []*waiter
	seen    time.Time
}

type waiter struct {
	turn chan struct{} // closed when it has come
}

// NewQueue makes a Queue in which nobody is.
func NewQueue() *Queue { return &Queue{now: time.Now, teams: map[uuid.UUID]*line{}} }

// Enter waits for the team's turn. Who has entered leaves, once.
func (q *Queue) Enter(ctx context.Context, team uuid.UUID) (leave func(), err error) {
	l, w, err := q.join(team)
	if err != nil {
		return nil, err
	}
	leave = func() { q.leave(l) }
	if w == nil {
		return leave, nil
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	select {
	case <-w.turn:
		return leave, nil
	case <-ctx.Done():
	}
	if q.giveUp(l, w) {
		return nil, ErrBusy
	}
	return leave, nil // its turn came at the same moment
}

// join enters at once or puts a waiter into its team's line.
func (q *Queue) join(team uuid.UUID) (*line, *waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.teams[team]
	if l == nil {
		l = &line{}
		q.teams[team] = l
	}
	l.seen = q.now()
	q.sweep(l.seen)
	switch {
	case len(l.waiting) == 0 && q.going < atOnce && l.going < q.share():
		l.going++
		q.going++
		return l, nil, nil
	case len(l.waiting) >= waiting:
		return nil, nil, ErrBusy
	}
	w := &waiter{turn: make(chan struct{})}
	if l.waiting = append(l.waiting, w); len(l.waiting) == 1 {
		q.turns = append(q.turns, l)
	}
	return l, w, nil
}

// share is how many claims of one team go on at once at most. Alone it has all;
// with others, so few that one who comes finds what they share nearly idle.
func (q *Queue) share() int {
	if len(q.teams) <= 1 {
		return atOnce
	}
	return max(1, crowded/(len(q.teams)-1))
}

// sweep forgets, now and then, teams that want nothing any more.
func (q *Queue) sweep(now time.Time) {
	if now.Sub(q.swept) < presence/4 {
		return
	}
	q.swept = now
	maps.DeleteFunc(q.teams, func(_ uuid.UUID, l *line) bool {
		return l.going == 0 && len(l.waiting) == 0 && now.Sub(l.seen) > presence
	})
}

func (q *Queue) leave(l *line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.going--
	q.going--
	q.admit()
}

// admit gives turns while there is room: one to each line, then again.
func (q *Queue) admit() {
	share := q.share()
	for passed := 0; passed < len(q.turns) && q.going < atOnce; {
		l := q.turns[0]
		q.turns = q.turns[1:]
		if l.going >= share {
			q.turns = append(q.turns, l)
			passed++
			continue
		}
		close(l.waiting[0].turn)
		l.waiting = l.waiting[1:]
		l.going++
		q.going++
		if passed = 0; len(l.waiting) > 0 {
			q.turns = append(q.turns, l)
		}
	}
}

// giveUp takes a waiter out of its line; false when its turn has come.
func (q *Queue) giveUp(l *line, w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, other := range l.waiting {
		if other == w {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			q.leaveTurns(l)
			return true
		}
	}
	return false
}

// leaveTurns forgets a line in which nobody waits.
func (q *Queue) leaveTurns(l *line) {
	if len(l.waiting) > 0 {
		return
	}
	for i, other := range q.turns {
		if other == l {
			q.turns = append(q.turns[:i], q.turns[i+1:]...)
			return
		}
	}
}
