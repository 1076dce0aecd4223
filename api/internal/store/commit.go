package store

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/singleflight"

	"s0.run/internal/errdefs"
)

const (
	// claimSeats bounds the claims that may have taken a slot and wait for their
	// row: as many as a database that hangs can cost.
	claimSeats = 64
	// claimLanes is how many commits of claims go on at once: one works while the
	// other waits for the disk. More of them only make each carry less.
	claimLanes    = 2
	commitTimeout = 3 * time.Second // of one batch, the wait for a connection included
	// fresh is how long an answer of the database stands for the next one.
	fresh = time.Second
)

// committer stores claims' rows, many to a commit. A claim that comes alone is
// written at once, by itself; those that come while the lanes are busy go
// together when the first is free. So nobody waits for company, and the more
// there are, the less each costs.
//
// A batch is one statement. When it is refused, for one of its rows, each is
// written again by itself, so that nobody pays for another's fault.
type committer struct {
	conns *pgxpool.Pool
	seats chan struct{}
	check singleflight.Group
	lanes sync.WaitGroup // goroutines that write for those who wait

	mu    sync.Mutex
	good  time.Time // when the database answered last; zero: it failed since
	busy  int       // lanes in use
	queue []*write  // in the order in which they came
}

// write is one claim's row on its way.
type write struct {
	row  NewSandbox
	done chan struct{}
	made Sandbox // after done, like err
	err  error
}

func newCommitter(conns *pgxpool.Pool) *committer {
	return &committer{conns: conns, seats: make(chan struct{}, claimSeats)}
}

// Reservation is the right to store one claim's row: with it in hand, a claim
// knows that the database was there a moment ago, and that not too many are
// waiting for it, before it takes a slot.
type Reservation struct {
	c    *committer
	once sync.Once
}

// Reserve waits for a seat until ctx ends. The caller releases it.
func (s *Store) Reserve(ctx context.Context) (*Reservation, error) {
	const doing = "reserving a place for a claim"
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case s.claims.seats <- struct{}{}:
	case <-ctx.Done():
		return nil, classify(ctx.Err(), doing)
	}
	r := &Reservation{c: s.claims}
	if err := s.claims.ensure(ctx); err != nil {
		r.Release()
		return nil, classify(err, doing)
	}
	return r, nil
}

// Release gives the seat back. Releasing twice is fine.
func (r *Reservation) Release() { r.once.Do(func() { <-r.c.seats }) }

// InsertSandbox stores a claim's row, as [Store.InsertSandbox] does.
func (r *Reservation) InsertSandbox(ctx context.Context, n NewSandbox) (Sandbox, error) {
	return r.c.insert(ctx, n)
}

// ensure asks the database whether it is there, unless it has just answered. Many
// who want to know share one question, so that a server that comes back is not
// met by all of them at once.
func (c *committer) ensure(ctx context.Context) error {
	c.mu.Lock()
	known := time.Since(c.good) < fresh
	c.mu.Unlock()
	if known {
		return nil
	}
	asked := c.check.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		err := c.conns.Ping(ctx)
		c.answered(err)
		return nil, err
	})
	select {
	case r := <-asked:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// answered takes note of how the database was.
func (c *committer) answered(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, pgx.ErrNoRows):
		c.good = time.Now()
	case passes(err):
		c.good = time.Time{}
	}
}

func (c *committer) insert(ctx context.Context, n NewSandbox) (Sandbox, error) {
	if n.Webhook != nil || n.Mounts > 0 {
		return c.alone(ctx, n) // more than a row
	}
	c.mu.Lock()
	if c.busy < claimLanes {
		c.busy++
		c.mu.Unlock()
		defer c.next()
		made, err := c.alone(ctx, n)
		return made, err
	}
	w := &write{row: n, done: make(chan struct{})}
	c.queue = append(c.queue, w)
	c.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.Done():
		if c.forget(w) {
			return Sandbox{}, errNoTurn
		}
		<-w.done // whoever undoes a row must know that it is not still to come
	}
	if errors.Is(w.err, errAlone) {
		return c.alone(ctx, n)
	}
	return w.made, w.err
}

// errNoTurn says that a row was not written and won't be.
var errNoTurn = errdefs.New(errdefs.Unavailable, "the database is not available").
	WithRetryAfter(retryAfter).WithCause(errors.New("storing a claim: its turn did not come in time"))

// forget takes back what nobody has begun to write.
func (c *committer) forget(w *write) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.Index(c.queue, w)
	if at >= 0 {
		c.queue = slices.Delete(c.queue, at, at+1)
	}
	return at >= 0
}

func (c *committer) alone(ctx context.Context, n NewSandbox) (Sandbox, error) {
	var made Sandbox
	var err error
	if n.Mounts > 0 {
		made, err = insertMounted(ctx, c.conns, n)
	} else {
		made, err = insertSandbox(ctx, bounded{c.conns}, n)
	}
	c.answered(err)
	return made, err
}

// next gives a lane to those who wait, or leaves it.
func (c *committer) next() {
	if batch := c.take(); batch != nil {
		c.lanes.Go(func() {
			for ; batch != nil; batch = c.take() {
				c.commit(batch)
			}
		})
	}
}

// take takes everyone who waits, and leaves the lane when nobody does.
func (c *committer) take() []*write {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch := c.queue
	c.queue = nil
	if len(batch) == 0 {
		c.busy--
	}
	return batch
}

// errAlone says that a row has to be written by itself: it met another, or one of
// its batch was refused.
var errAlone = errors.New("to be written alone")

func (c *committer) commit(batch []*write) {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout) // nobody's of them alone
	defer cancel()
	err := c.send(ctx, batch)
	c.answered(err)
	_, refused := errors.AsType[*pgconn.PgError](err)
	for _, w := range batch {
		switch {
		case err == nil:
		case refused && !Unknown(err):
			w.err = errAlone
		default:
			w.err = classify(err, "storing claims")
		}
		close(w.done)
	}
}

// send writes the rows.
func (c *committer) send(ctx context.Context, batch []*write) error {
	// In the order of their teams: two batches that lock what teams share must not
	// wait for each other.
	slices.SortFunc(batch, func(a, b *write) int { return bytes.Compare(a.row.TeamID[:], b.row.TeamID[:]) })
	claims := make([]*NewSandbox, len(batch))
	for i, w := range batch {
		claims[i] = &w.row
	}
	rows, _ := c.conns.Query(ctx, insertClaimsSQL, claimArgs(claims...)...)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[inserted])
	if err != nil {
		return err
	}
	made := make(map[uuid.UUID]inserted, len(list))
	for _, in := range list {
		made[in.ClaimID] = in
	}
	for _, w := range batch {
		in, stored := made[w.row.ClaimID]
		if !stored {
			w.err = errAlone // another row is in its way
			continue
		}
		w.made = w.row.stored(in)
	}
	return nil
}
