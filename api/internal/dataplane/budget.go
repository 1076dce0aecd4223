package dataplane

import (
	"bytes"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/internal/errdefs"
)

// What the answers that are being decoded may take of our memory: those of one
// team, so that a sandbox that answers nonsense costs its own tenant alone, and
// those of all.
const (
	teamBudget  = 256 << 20
	totalBudget = 512 << 20

	// freeBytes of an answer are on the house: nearly every answer is smaller.
	freeBytes = 64 << 10
)

// Prices of decoding: a string and a map's entry cost more than their bytes, an
// element of a list far more, for Go's structs are larger than `{}`.
const (
	perQuote  = 48
	perObject = 640
)

// cost estimates from above what the decoded answer takes.
func cost(b []byte) int64 {
	return int64(len(b)) + perQuote*int64(bytes.Count(b, []byte{'"'})) + perObject*int64(bytes.Count(b, []byte{'{'}))
}

var errCrowded = errdefs.New(errdefs.Unavailable, "too many large answers at the same time").WithRetryAfter(time.Second)

// budget is safe for concurrent use.
type budget struct {
	mu    sync.Mutex
	total int64
	teams map[uuid.UUID]int64
}

// take never waits: who waits holds memory too.
func (b *budget) take(team uuid.UUID, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.teams[team]+n > teamBudget || b.total+n > totalBudget {
		return errCrowded
	}
	b.total += n
	b.teams[team] += n
	return nil
}

func (b *budget) give(team uuid.UUID, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total -= n
	if b.teams[team] -= n; b.teams[team] == 0 {
		delete(b.teams, team)
	}
}
