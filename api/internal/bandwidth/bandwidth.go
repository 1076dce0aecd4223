// Package bandwidth tells every node how much its sandboxes may send and receive.
//
// A limit is a quota of traffic whose interval is short enough to be a rate. What is
// counted by the day or the month is no rate: it is looked up every so often, and a team
// that has used it up is told to be let through next to nothing until it may again. What
// is told is everything, each time, so that a node that missed one gets the next. The
// package owns two goroutines while [Keeper.Run] runs and remembers nothing but that there
// is something to tell, and who had used up what when it looked last: while that can't be
// added up, rates are told with what it was.
package bandwidth

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/kick"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/nodeapi"
)

const (
	// callTimeout is for a node whose sandboxes all get another bandwidth.
	callTimeout = 10 * time.Second
	readTimeout = 5 * time.Second
	// lookEvery is well below what metering takes to notice traffic: a minute.
	lookEvery = 20 * time.Second

	// MaxInterval is the longest interval of a rate.
	MaxInterval = time.Minute
)

// Store knows the limits; see [store.Store].
type Store interface {
	TrafficQuotas(ctx context.Context) ([]store.TeamQuota, error)
	UsedTraffic(ctx context.Context, longer time.Duration) ([]store.TeamTraffic, error)
}

// Config names whom to ask and whom to tell. Every field is required.
type Config struct {
	Store Store
	Table *placement.Table
	Nodes *nodes.Set
	Log   *slog.Logger
}

// Keeper keeps the nodes informed: kicked when limits or nodes changed.
type Keeper struct {
	kick.Loop
	cfg Config

	mu   sync.Mutex
	used []store.TeamTraffic // as it was looked up last
}

// New makes a Keeper.
func New(cfg Config) *Keeper { return &Keeper{Loop: kick.New(), cfg: cfg} }

// Run tells the nodes after each kick, when a team has used something up or may have more
// again, and again when one could not be told, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return k.watch(ctx) })
	group.Go(func() error { return k.Loop.Run(ctx, k.tellAll) })
	return group.Wait()
}

// watch kicks when another set of teams has used up what they may.
func (k *Keeper) watch(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		if _, changed := k.look(ctx); changed {
			k.Kick()
		}
	}
}

// look finds who has used up what they may, and reports whether that is not what it was
// when it was looked up last. Where it can't be added up it is what it was.
func (k *Keeper) look(ctx context.Context) (used []store.TeamTraffic, changed bool) {
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	used, err := k.cfg.Store.UsedTraffic(reading, MaxInterval)
	if err != nil && ctx.Err() == nil {
		k.cfg.Log.Warn("could not add up what teams have sent and received", "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		return k.used, false
	}
	changed = !slices.Equal(used, k.used)
	k.used = used
	return used, changed
}

func (k *Keeper) tellAll(ctx context.Context) bool {
	used, _ := k.look(ctx)
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	limits, err := k.cfg.Store.TrafficQuotas(reading)
	cancel()
	if err != nil {
		k.cfg.Log.Warn("could not read the limits of traffic", "err", err)
		return false
	}
	said, all := Request(limits, used), true
	for _, n := range k.cfg.Table.Synced() {
		if err := k.tell(ctx, n.Name, said); err != nil {
			k.cfg.Log.Warn("could not set a node's bandwidth", "node", n.Name, "err", err)
			all = false
		}
	}
	return all
}

func (k *Keeper) tell(ctx context.Context, node string, said *nodeapi.SetBandwidthRequest) error {
	rpc, err := k.cfg.Nodes.RPC(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = rpc.SetBandwidth(ctx, said)
	return err
}

// Request is what nodes are told of limits, and of what is used up. A team has the
// defaults where it has none of its own.
func Request(limits []store.TeamQuota, used []store.TeamTraffic) *nodeapi.SetBandwidthRequest {
	others, own := map[string]store.Quota{}, map[uuid.UUID]map[string]store.Quota{}
	set := func(team uuid.UUID, q store.Quota) {
		if own[team] == nil {
			own[team] = map[string]store.Quota{}
		}
		own[team][q.Dimension] = q
	}
	for _, l := range limits {
		if l.TeamID == nil {
			others[l.Dimension] = l.Quota
			continue
		}
		set(*l.TeamID, l.Quota)
	}
	for _, u := range used {
		set(u.Team, store.Quota{Dimension: u.Dimension, Limit: new(int64(0)), IntervalMS: new(time.Second.Milliseconds())})
	}
	said := &nodeapi.SetBandwidthRequest{Others: bandwidth("", others)}
	for team, quotas := range own {
		all := maps.Clone(others)
		maps.Copy(all, quotas)
		said.Teams = append(said.Teams, bandwidth(team.String(), all))
	}
	slices.SortFunc(said.Teams, func(a, b *nodeapi.TeamBandwidth) int { return strings.Compare(a.GetTeam(), b.GetTeam()) })
	return said
}

func bandwidth(team string, quotas map[string]store.Quota) *nodeapi.TeamBandwidth {
	return &nodeapi.TeamBandwidth{
		Team:     team,
		Together: &nodeapi.Bandwidth{Egress: rate(quotas[store.QuotaEgress]), Ingress: rate(quotas[store.QuotaIngress])},
		Each:     &nodeapi.Bandwidth{Egress: rate(quotas[store.QuotaSandboxEgress]), Ingress: rate(quotas[store.QuotaSandboxIngress])},
	}
}

// rate is nil for what is no limit, or none of a rate. The least is a byte a second:
// on the wire 0 is no limit.
func rate(q store.Quota) *nodeapi.Rate {
	if q.Limit == nil || q.IntervalMS == nil || *q.IntervalMS <= 0 || *q.IntervalMS > MaxInterval.Milliseconds() {
		return nil
	}
	r := &nodeapi.Rate{Bytes: uint64(max(1, float64(*q.Limit)*1000/float64(*q.IntervalMS)))}
	if q.Burst != nil {
		r.Burst = uint64(max(0, *q.Burst))
	}
	return r
}
