// Package pools tells every node which pools of warm slots to keep: one for each
// template, its idle slots spread over the nodes.
//
// What is told is everything, each time: the call is idempotent, and a node that
// missed one gets the next. It owns one goroutine while [Keeper.Run] runs and
// remembers nothing but that there is something to tell.
package pools

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/templates"
	"s0.run/internal/nodeapi"
)

const (
	callTimeout = 5 * time.Second
	retryPause  = 2 * time.Second
)

// Config names whom to ask and whom to tell. The catalogue must have been loaded
// before Run: an empty one drains every pool.
type Config struct {
	Catalog *templates.Catalog
	Table   *placement.Table
	Nodes   *nodes.Set
	Log     *slog.Logger
}

// Keeper keeps the nodes informed.
type Keeper struct {
	cfg  Config
	kick chan struct{}
}

// New makes a Keeper.
func New(cfg Config) *Keeper { return &Keeper{cfg: cfg, kick: make(chan struct{}, 1)} }

// Kick says that templates or nodes changed. It never blocks.
func (k *Keeper) Kick() {
	select {
	case k.kick <- struct{}{}:
	default: // one that is waiting already covers this change
	}
}

// Run tells the nodes after each kick, again when one could not be told, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.kick:
		case <-retry:
		}
		retry = nil
		if !k.tellAll(ctx) {
			retry = time.After(retryPause)
		}
	}
}

func (k *Keeper) tellAll(ctx context.Context) bool {
	synced := k.cfg.Table.Synced()
	slices.SortFunc(synced, func(a, b placement.Node) int { return strings.Compare(a.Name, b.Name) })
	all := true
	for i, n := range synced {
		if err := k.tell(ctx, n.Name, pools(k.cfg.Catalog.All(), i, len(synced))); err != nil {
			k.cfg.Log.Warn("could not set a node's pools", "node", n.Name, "err", err)
			all = false
		}
	}
	return all
}

func (k *Keeper) tell(ctx context.Context, node string, list []*nodeapi.Pool) error {
	rpc, err := k.cfg.Nodes.RPC(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := rpc.SetPools(ctx, &nodeapi.SetPoolsRequest{Pools: list}); err != nil {
		return fmt.Errorf("setting %d pools: %w", len(list), err)
	}
	k.cfg.Log.Debug("set a node's pools", "node", node, "pools", len(list))
	return nil
}

// pools is what the i-th of n nodes keeps. A pool without idle slots is named
// too, so that its cold starts have their counters.
func pools(all []*templates.Template, i, n int) []*nodeapi.Pool {
	list := make([]*nodeapi.Pool, 0, len(all))
	for _, t := range all {
		list = append(list, &nodeapi.Pool{
			Key: t.PoolKey, Spec: nodeapi.SpecToWire(t.Slot),
			MinIdle: share(t.MinIdle, i, n), MaxIdle: share(t.MaxIdle, i, n),
		})
	}
	return list
}

// share is the i-th of n nearly equal parts that add up to total.
func share(total int32, i, n int) uint32 {
	part := int(total) / n
	if i < int(total)%n {
		part++
	}
	return uint32(part)
}
