// Package ratelimit bounds how often each of many keys may do something: a token
// bucket for each, forgotten again when it is full.
//
// It owns the buckets, in memory and for one process; it starts nothing.
package ratelimit

import (
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxKeys bounds memory. When so many keys are busy at once, all start anew: that
// is generous, but never refuses anybody without cause.
const maxKeys = 100_000

// Limiter is safe for concurrent use.
type Limiter struct {
	rate  rate.Limit
	burst int

	mu      sync.Mutex
	buckets map[string]*rate.Limiter
	swept   time.Time
}

// New makes a Limiter of so many events a second, and so many at once.
func New(perSecond float64, burst int) *Limiter {
	return &Limiter{rate: rate.Limit(perSecond), burst: burst, buckets: map[string]*rate.Limiter{}}
}

// Verdict says whether an event may happen.
type Verdict struct {
	OK         bool
	Limit      int           // the burst
	Remaining  int           // events that may follow at once
	RetryAfter time.Duration // when OK is false
}

// Take lets one event of a key happen, or says when to come back.
func (l *Limiter) Take(key string) Verdict {
	now := time.Now()
	b := l.bucket(key, now)
	if b.AllowN(now, 1) {
		return Verdict{OK: true, Limit: l.burst, Remaining: int(b.TokensAt(now))}
	}
	wait := time.Duration((1 - b.TokensAt(now)) / float64(l.rate) * float64(time.Second))
	return Verdict{Limit: l.burst, RetryAfter: time.Duration(math.Max(float64(wait), float64(time.Millisecond)))}
}

func (l *Limiter) bucket(key string, now time.Time) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	b := l.buckets[key]
	if b == nil {
		b = rate.NewLimiter(l.rate, l.burst)
		l.buckets[key] = b
	}
	return b
}

// sweep forgets full buckets now and then: a new one would be the same.
func (l *Limiter) sweep(now time.Time) {
	full := time.Duration(float64(l.burst) / float64(l.rate) * float64(time.Second))
	if now.Sub(l.swept) < max(full, time.Second) && len(l.buckets) < maxKeys {
		return
	}
	l.swept = now
	for key, b := range l.buckets {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, key)
		}
	}
	if len(l.buckets) >= maxKeys {
		clear(l.buckets)
	}
}
