package exposure

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"s0.run/internal/sandbox"
)

// maxBuckets bounds memory. When so many routes are busy at once, all start anew.
const maxBuckets = 100_000

// rates holds the buckets of routes with a rate limit, each replica its own.
type rates struct {
	mu      sync.Mutex
	buckets map[routeKey]*rate.Limiter
}

type routeKey struct {
	sandbox        sandbox.ID
	service, route string
}

func newRates() *rates { return &rates{buckets: map[routeKey]*rate.Limiter{}} }

// take lets one request of a route pass, or says when to come back.
func (r *rates) take(id sandbox.ID, rt *route) (wait time.Duration, ok bool) {
	if rt.rps == 0 {
		return 0, true
	}
	now := time.Now()
	b := r.bucket(routeKey{id, rt.service.ID, rt.id}, rt, now)
	if b.AllowN(now, 1) {
		return 0, true
	}
	missing := (1 - b.TokensAt(now)) / float64(rt.rps)
	return time.Duration(missing * float64(time.Second)), false
}

func (r *rates) bucket(k routeKey, rt *route, now time.Time) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.buckets[k]
	if b != nil && b.Limit() == rate.Limit(rt.rps) && b.Burst() == int(rt.burst) {
		return b
	}
	if len(r.buckets) >= maxBuckets {
		for k, b := range r.buckets {
			if b.TokensAt(now) >= float64(b.Burst()) {
				delete(r.buckets, k) // a new one would be the same
			}
		}
	}
	if len(r.buckets) >= maxBuckets {
		clear(r.buckets)
	}
	b = rate.NewLimiter(rate.Limit(rt.rps), int(rt.burst))
	r.buckets[k] = b
	return b
}
