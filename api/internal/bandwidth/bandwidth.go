// Package bandwidth tells every node how much its sandboxes may send and receive.
//
// A limit is a quota of traffic whose interval is short enough to be a rate; what is
// counted by the month is no rate, and nobody's matter here. What is told is
// everything, each time, so that a node that missed one gets the next. The package
// owns one goroutine while [Keeper.Run] runs and remembers nothing but that there is
// something to tell.
package bandwidth

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

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

	// MaxInterval is the longest interval of a rate.
	MaxInterval = time.Minute
)

// Store knows the limits; see [store.Store].
type Store interface {
	TrafficQuotas(ctx context.Context) ([]store.TeamQuota, error)
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
}

// New makes a Keeper.
func New(cfg Config) *Keeper { return &Keeper{Loop: kick.New(), cfg: cfg} }

// Run tells the nodes after each kick, again when one could not be told, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error { return k.Loop.Run(ctx, k.tellAll) }

func (k *Keeper) tellAll(ctx context.Context) bool {
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	limits, err := k.cfg.Store.TrafficQuotas(reading)
	cancel()
	if err != nil {
		k.cfg.Log.Warn("could not read the limits of traffic", "err", err)
		return false
	}
	said, all := Request(limits), true
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

// Request is what nodes are told of limits. A team has the defaults where it has none
// of its own.
func Request(limits []store.TeamQuota) *nodeapi.SetBandwidthRequest {
	others, own := map[string]store.Quota{}, map[uuid.UUID]map[string]store.Quota{}
	for _, l := range limits {
		if l.TeamID == nil {
			others[l.Dimension] = l.Quota
			continue
		}
		if own[*l.TeamID] == nil {
			own[*l.TeamID] = map[string]store.Quota{}
		}
		own[*l.TeamID][l.Dimension] = l.Quota
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
