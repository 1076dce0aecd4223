package store_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"s0.run/api/internal/store"
	"s0.run/internal/s0test"
)

// BenchmarkQuota measures what a counted team's claims pay for being counted.
func BenchmarkQuota(b *testing.B) {
	pg := s0test.NewPostgresCluster(b)
	dsn := pg.Database(b)
	s, err := store.Open(b.Context(), dsn)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	conn, err := pgx.Connect(b.Context(), dsn)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(b.Context())
	free, limited := newTeam(b, conn), newTeam(b, conn)
	most := int64(1 << 30)
	if err := s.SetQuota(b.Context(), limited, store.Quota{Dimension: store.QuotaSandboxes, Limit: &most}); err != nil {
		b.Fatal(err)
	}
	for _, clients := range []int{1, 32} {
		for i := range 2 {
			team, name := free, "unlimited"
			if i == 1 {
				team, name = limited, "limited"
			}
			b.Run(fmt.Sprintf("%s/clients=%d", name, clients), func(b *testing.B) {
				var mu sync.Mutex
				var all []time.Duration
				work := make(chan struct{})
				var wg sync.WaitGroup
				for range clients {
					wg.Go(func() {
						for range work {
							n := newSandbox(b, team)
							began := time.Now()
							r, err := s.Reserve(b.Context())
							if err == nil {
								_, err = r.InsertSandbox(b.Context(), n)
								r.Release()
							}
							if err != nil {
								b.Error(err)
							}
							took := time.Since(began)
							mu.Lock()
							all = append(all, took)
							mu.Unlock()
						}
					})
				}
				for range b.N {
					work <- struct{}{}
				}
				close(work)
				wg.Wait()
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "claims/s")
			})
		}
	}
}
