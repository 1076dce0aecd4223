package fair

import (
	"maps"
	"math"
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	// remembered is for how long a team that wanted a slot of a pool has a share of it.
	remembered = time.Minute
	// halfLife is after how long a slot that was taken counts for half: a pool has
	// filled again in about that time.
	halfLife = 10 * time.Second
	maxPools = 1024 // of which shares are known
)

// Slots is safe for concurrent use.
type Slots struct {
	now func() time.Time

	mu    sync.Mutex
	pools map[string]map[uuid.UUID]*taker
}

// taker is a team that takes slots of a pool.
type taker struct {
	seen  time.Time
	taken float64 // at seen; less each moment
}

func (t *taker) at(now time.Time) float64 {
	return t.taken * math.Exp2(-now.Sub(t.seen).Seconds()/halfLife.Seconds())
}

// NewSlots makes Slots of which nobody has taken any.
func NewSlots() *Slots { return &Slots{now: time.Now, pools: map[string]map[uuid.UUID]*taker{}} }

// May reports whether a team may take a slot of a pool that has so many left of
// those that it shall have, and counts it as taken if so. While more than half are
// there everybody may. Of the rest a team may take no more than its share, seen
// over the last while: so whoever takes many leaves some to those who take few. A
// team that is alone has all of them.
func (s *Slots) May(pool string, team uuid.UUID, left, full int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	takers := s.takers(pool, now)
	mine := takers[team]
	if mine == nil {
		mine = &taker{seen: now}
		takers[team] = mine
	}
	mine.taken, mine.seen = mine.at(now), now
	total := 0.0
	for _, t := range takers {
		total += t.at(now)
	}
	if left <= full/2 && mine.taken > total/float64(len(takers)) {
		return false
	}
	mine.taken++
	return true
}

// takers are those who share a pool. Who was not seen for long does not.
func (s *Slots) takers(pool string, now time.Time) map[uuid.UUID]*taker {
	takers := s.pools[pool]
	if takers == nil {
		if len(s.pools) >= maxPools {
			clear(s.pools) // of templates that are long gone, most of them
		}
		takers = map[uuid.UUID]*taker{}
		s.pools[pool] = takers
	}
	maps.DeleteFunc(takers, func(_ uuid.UUID, t *taker) bool { return now.Sub(t.seen) > remembered })
	return takers
}
