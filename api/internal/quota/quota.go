// Package quota knows what teams may use: the dimensions as clients see them, and
// which claims a limit leaves no room for.
//
// The database decides: a row beyond a limit is refused in its own transaction.
// But a claim takes a slot while its row is written, and a slot that was taken is
// gone. So a [Gate] lets no more claims of a limited team go on at once than there
// is room for, and answers a team that has none from one read. Teams without a
// limit pass from memory. What the package remembers is a hint, a second old where
// it matters, and dropped whenever a limit changes anywhere.
package quota

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/singleflight"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	roomAge      = time.Second      // other replicas' claims use the same room
	unlimitedAge = time.Minute      // should the database's word of a change be lost
	longestWait  = 10 * time.Second // for claims that may leave room; they take less, or are cold starts
	maxKnown     = 10_000           // teams; more are asked for again
)

// Gate is safe for concurrent use.
type Gate struct {
	room    func(context.Context, uuid.UUID) ([]store.Room, error)
	reading singleflight.Group

	mu    sync.Mutex
	teams map[uuid.UUID]*team
	reads uint64 // ever begun
}

// team is what is known of a team.
type team struct {
	read    time.Time
	room    []store.Room // as it was read, less what goes on; nil: no limits
	going   claims
	made    claims // ever
	stale   int    // how often what was known, or is being read, turned out to be old
	changed chan struct{}
}

// claims is a number of claims and the memory of their sandboxes.
type claims struct {
	n     int64
	bytes int64
}

func (c claims) plus(o claims) claims  { return claims{c.n + o.n, c.bytes + o.bytes} }
func (c claims) minus(o claims) claims { return claims{c.n - o.n, c.bytes - o.bytes} }

// reading is what room a team had, at some time after so many claims were made.
type reading struct {
	room  []store.Room
	of    *team
	made  claims
	stale int
	which uint64 // of all that were begun
}

// NewGate makes a Gate over a store's Room.
func NewGate(room func(context.Context, uuid.UUID) ([]store.Room, error)) *Gate {
	return &Gate{room: room, teams: map[uuid.UUID]*team{}}
}

// Forget drops what is known of limits: some have changed.
func (g *Gate) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range g.teams {
		t.forget()
	}
}

// Enter lets a claim of so much memory go on, or says that its team's quota is
// used up. While claims that go on may still leave room, it waits for them. Who
// has entered leaves, once, and says whether the sandbox is there.
func (g *Gate) Enter(ctx context.Context, id uuid.UUID, bytes int64) (leave func(made bool), err error) {
	ctx, cancel := context.WithTimeout(ctx, longestWait)
	defer cancel()
	if g.remembered(id, bytes) {
		return func(made bool) { g.leave(id, bytes, made) }, nil
	}
	g.mu.Lock()
	before := g.reads
	g.mu.Unlock()
	for {
		changed, err := g.ask(ctx, id, bytes, before)
		if err != nil {
			return nil, err
		}
		if changed == nil {
			return func(made bool) { g.leave(id, bytes, made) }, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errdefs.New(errdefs.Exhausted, "the team's quota is used up by claims that go on").WithRetryAfter(time.Second)
		}
	}
}

// remembered lets a claim in for which there is room as far as is known.
func (g *Gate) remembered(id uuid.UUID, bytes int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.teams[id]
	if t == nil || time.Since(t.read) > t.age() || t.short(bytes) != nil {
		return false
	}
	t.take(bytes)
	return true
}

// ask reads what room there is. It answers a channel when there may be some once
// a claim has left. What was read before refuses nobody: room may have been made until
// the claim came.
func (g *Gate) ask(ctx context.Context, id uuid.UUID, bytes int64, before uint64) (changed <-chan struct{}, err error) {
	asked := g.reading.DoChan(id.String(), func() (any, error) { return g.read(context.WithoutCancel(ctx), id) })
	var r reading
	select {
	case answer := <-asked:
		if answer.Err != nil {
			return nil, answer.Err
		}
		r = answer.Val.(reading)
	case <-ctx.Done():
		return nil, errdefs.New(errdefs.Unavailable, "the team's quota could not be read in time").WithRetryAfter(time.Second)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.team(id)
	if t != r.of || t.stale != r.stale {
		return again, nil
	}
	since := t.made.minus(r.made)
	t.know(r.room, since)
	short := t.short(bytes)
	switch {
	case short == nil:
		t.take(bytes)
		return nil, nil
	case t.going.n > 0:
		return t.changed, nil
	case since.n > 0, r.which <= before: // they may be counted twice, or not be there any more
		return again, nil
	}
	return nil, store.QuotaExceeded(short.Dimension, short.Limit)
}

// again is a change that has taken place.
var again = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (g *Gate) read(ctx context.Context, id uuid.UUID) (reading, error) {
	g.mu.Lock()
	t := g.team(id)
	g.reads++
	r := reading{of: t, made: t.made, stale: t.stale, which: g.reads}
	g.mu.Unlock()
	var err error
	r.room, err = g.room(ctx, id)
	return r, err
}

// leave ends a claim. One that a limit refused shows that others have used the
// room, in another replica: what is left is to be read before anyone else goes on.
func (g *Gate) leave(id uuid.UUID, bytes int64, made bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t, it := g.team(id), claims{1, bytes}
	t.going = t.going.minus(it)
	if made {
		t.made = t.made.plus(it)
	} else if len(t.room) > 0 {
		t.forget()
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// team finds a team or makes it known. The caller holds mu.
func (g *Gate) team(id uuid.UUID) *team {
	t := g.teams[id]
	if t == nil {
		if len(g.teams) >= maxKnown {
			maps.DeleteFunc(g.teams, func(_ uuid.UUID, t *team) bool { return t.going.n == 0 })
		}
		t = &team{changed: make(chan struct{})}
		g.teams[id] = t
	}
	return t
}

func (t *team) forget() {
	t.read = time.Time{}
	t.stale++
}

func (t *team) age() time.Duration {
	if len(t.room) == 0 {
		return unlimitedAge
	}
	return roomAge
}

// know replaces what is known by what was read. Of the claims that go on, and of
// those made since, some may be in it already: that is too careful until it is
// read again.
func (t *team) know(room []store.Room, since claims) {
	t.read = time.Now()
	t.room = slices.Clone(room) // others have read the same
	t.spend(t.going.plus(since))
}

func (t *team) take(bytes int64) {
	it := claims{1, bytes}
	t.going = t.going.plus(it)
	t.spend(it)
}

func (t *team) spend(c claims) {
	for i := range t.room {
		t.room[i].Left -= c.of(t.room[i])
	}
}

// short is a limit that leaves no room for a claim; nil: none.
func (t *team) short(bytes int64) *store.Room {
	for i := range t.room {
		if t.room[i].Left < (claims{1, bytes}).of(t.room[i]) {
			return &t.room[i]
		}
	}
	return nil
}

// of is what the claims take of a limit.
func (c claims) of(r store.Room) int64 {
	if r.Dimension == store.QuotaSandboxes {
		return c.n
	}
	return c.bytes
}
