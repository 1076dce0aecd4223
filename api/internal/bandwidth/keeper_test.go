package bandwidth_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/bandwidth"
	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/sandbox"
)

// limits is a store of one team's rate, whose sums fail when a test says so.
type limits struct {
	used []store.TeamTraffic

	mu    sync.Mutex
	rate  store.TeamQuota
	fails bool
}

func (l *limits) set(rate int64, fails bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate.Limit, l.fails = &rate, fails
}

func (l *limits) TrafficQuotas(context.Context) ([]store.TeamQuota, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return []store.TeamQuota{l.rate}, nil
}

func (l *limits) UsedTraffic(context.Context, time.Duration) ([]store.TeamTraffic, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails {
		return nil, errors.New("it takes too long")
	}
	return l.used, nil
}

// While it can't be added up who has used up what they may, rates are told nevertheless,
// with what was used up before.
func TestRatesAreToldWithoutTheSum(t *testing.T) {
	t.Parallel()
	team, second := uuid.New(), time.Second.Milliseconds()
	l := &limits{
		used: []store.TeamTraffic{{Team: team, Dimension: store.QuotaIngress}},
		rate: store.TeamQuota{TeamID: &team, Quota: store.Quota{Dimension: store.QuotaEgress, IntervalMS: &second}},
	}
	node, table, log := fakenode.Start(t, &fakenode.Node{}), placement.New(), slog.New(slog.DiscardHandler)
	set := nodes.New(nodes.Config{Sockets: []string{node.Socket}, Cluster: "local", Table: table, Log: log,
		OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {}})
	keep := bandwidth.New(bandwidth.Config{Store: l, Table: table, Nodes: set, Log: log})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { set.Run(ctx) })
	running.Go(func() { keep.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	fakenode.Eventually(t, "the node is known", func() bool { return table.IsSynced(node.Name) })
	for _, step := range []struct {
		what    string
		rate    int64
		fails   bool
		ingress uint64 // 0: as much as there is
	}{
		{"nothing was ever added up", 10, true, 0},
		{"the sum is there", 20, false, 1},
		{"it fails", 30, true, 1},
	} {
		l.set(step.rate, step.fails)
		keep.Kick()
		fakenode.Eventually(t, step.what, func() bool {
			told := node.Bandwidth().GetTeams()
			return len(told) == 1 && told[0].GetTogether().GetEgress().GetBytes() == uint64(step.rate) &&
				told[0].GetTogether().GetIngress().GetBytes() == step.ingress
		})
	}
}
