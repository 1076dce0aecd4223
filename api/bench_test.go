package api_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/s0test"
)

// BenchmarkClaim measures what the API server adds to a warm claim: HTTP, guard,
// placement, the row in a durable PostgreSQL and the call of a node that answers
// at once. Percentiles are the client's and the server's own.
func BenchmarkClaim(b *testing.B) {
	pg := s0test.NewPostgresCluster(b) // with fsync
	i := start(b, func(c *api.Config, _ *fakenode.Node) {
		c.DatabaseURL = pg.Database(b)
		c.PoolMin, c.PoolMax = 100, 100
		c.RateLimit, c.RateBurst = 1e6, 1e6
		c.Log = slog.New(slog.DiscardHandler)
	})
	key := i.key("developer")
	for _, clients := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { i.measure(b, key, clients) })
	}
}

func (i *instance) measure(b *testing.B, key string, clients int) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	var mu sync.Mutex
	var outside, inside []time.Duration
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range work {
				began := time.Now()
				server := i.timedClaim(b, client, key)
				took := time.Since(began)
				mu.Lock()
				outside, inside = append(outside, took), append(inside, server)
				mu.Unlock()
			}
		})
	}
	b.ResetTimer()
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.StopTimer()
	for name, list := range map[string][]time.Duration{"client": outside, "server": inside} {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(list[len(list)*99/100].Microseconds())/1000, name+"-p99-ms")
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "claims/s")
}

// timedClaim claims and answers how long the server says that it took.
func (i *instance) timedClaim(b *testing.B, client *http.Client, key string) time.Duration {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, i.url+"/api/v1/sandboxes", strings.NewReader(`{"template":"default"}`))
	if err != nil {
		b.Error(err)
		return 0
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := client.Do(req)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusCreated {
		b.Errorf("%s: %s", resp.Status, body)
	}
	d, err := time.ParseDuration(strings.TrimPrefix(resp.Header.Get("Server-Timing"), "total;dur=") + "ms")
	if err != nil {
		b.Error(err)
	}
	return d
}
