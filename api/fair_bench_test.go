package api_test

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/s0test"
)

// The one tenant claims at its share, the other at a hundred times that.
const (
	modestEvery  = 50 * time.Millisecond
	greedyTimes  = 100
	greedyAtOnce = 64
)

// BenchmarkNeighbour measures a tenant's claims alone and beside one that wants a
// hundred times as many: as a server comes, and without its limit of requests.
func BenchmarkNeighbour(b *testing.B) {
	for name, rate := range map[string]float64{"requests=100/s": 100, "requests=any": 1e6} {
		b.Run(name, func(b *testing.B) {
			pg := s0test.NewPostgresCluster(b)
			i := start(b, func(c *api.Config, _ *fakenode.Node) {
				c.DatabaseURL = pg.Database(b)
				c.PoolMin, c.PoolMax = 400, 400
				c.RateLimit, c.RateBurst = rate, int(2*rate)
				c.Log = slog.New(slog.DiscardHandler)
			})
			modest, greedy := i.stranger(), i.key("developer")
			b.Run("alone", func(b *testing.B) { i.measureModest(b, modest) })
			b.Run("beside", func(b *testing.B) { i.measureBeside(b, modest, greedy) })
		})
	}
}

func (i *instance) measureBeside(b *testing.B, modest, greedy string) {
	ctx, cancel := context.WithCancel(b.Context())
	var made, refused atomic.Int64
	began := time.Now()
	wait := i.claimOften(ctx, b, greedy, &made, &refused)
	i.measureModest(b, modest)
	cancel()
	wait()
	b.ReportMetric(float64(made.Load())/time.Since(began).Seconds(), "neighbour-claims/s")
	b.ReportMetric(float64(refused.Load())/time.Since(began).Seconds(), "neighbour-refused/s")
}

// claimOften claims greedyTimes as often as the modest tenant until ctx ends.
func (i *instance) claimOften(ctx context.Context, b *testing.B, key string, made, refused *atomic.Int64) (wait func()) {
	var wg sync.WaitGroup
	work := make(chan struct{})
	for range greedyAtOnce {
		wg.Go(func() {
			claim, end := i.claims(b, key)
			defer end()
			for range work {
				switch claim() {
				case http.StatusCreated:
					made.Add(1)
				case http.StatusTooManyRequests:
					refused.Add(1)
				}
			}
		})
	}
	wg.Go(func() {
		defer close(work)
		tick := time.NewTicker(modestEvery / greedyTimes)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				select {
				case work <- struct{}{}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return wg.Wait
}

// claims gives a client that claims, one sandbox after the other.
func (i *instance) claims(b *testing.B, key string) (claim func() int, end func()) {
	w, err := i.dial()
	if err != nil {
		b.Error(err)
		return func() int { return 0 }, func() {}
	}
	req := i.rawRequest(http.MethodPost, "/api/v1/sandboxes", key, `{"template":"default"}`)
	return func() int {
		status, _, err := w.exchange(req)
		if err != nil {
			b.Error(err)
		}
		return status
	}, func() { w.Close() }
}

func (i *instance) measureModest(b *testing.B, key string) {
	claim, end := i.claims(b, key)
	defer end()
	var took []time.Duration
	tick := time.NewTicker(modestEvery)
	defer tick.Stop()
	b.ResetTimer()
	for range b.N {
		<-tick.C
		began := time.Now()
		if status := claim(); status != http.StatusCreated {
			b.Errorf("status %d", status)
		}
		took = append(took, time.Since(began))
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
