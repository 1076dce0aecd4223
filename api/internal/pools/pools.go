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

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"s0.run/api/internal/kick"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/templates"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const callTimeout = 5 * time.Second

// Config names whom to ask and whom to tell. The catalogue must have been loaded
// before Run: an empty one drains every pool.
type Config struct {
	Catalog *templates.Catalog
	Table   *placement.Table
	Nodes   *nodes.Set
	Log     *slog.Logger
}

// Keeper keeps the nodes informed: kicked when templates or nodes changed.
type Keeper struct {
	kick.Loop
	cfg Config
}

// New makes a Keeper.
func New(cfg Config) *Keeper { return &Keeper{Loop: kick.New(), cfg: cfg} }

// Run tells the nodes after each kick, again when one could not be told, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error { return k.Loop.Run(ctx, k.tellAll) }

func (k *Keeper) tellAll(ctx context.Context) bool {
	synced := k.cfg.Table.Synced()
	slices.SortFunc(synced, func(a, b placement.Node) int { return strings.Compare(a.Name, b.Name) })
	all := true
	wanted := inTurns(k.cfg.Catalog.All())
	for i, n := range synced {
		list := pools(wanted, synced, i)
		if left := len(list) - fitting(list); left > 0 {
			k.cfg.Log.Warn("a node can't be told all its pools", "node", n.Name, "left_out", left)
			list = list[:len(list)-left]
		}
		if err := k.tell(ctx, n.Name, list); err != nil {
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
	resp, err := rpc.SetPools(ctx, &nodeapi.SetPoolsRequest{Pools: list})
	if err != nil {
		return fmt.Errorf("setting %d pools: %w", len(list), err)
	}
	for _, r := range resp.GetRefused() { // telling it again would not help
		k.cfg.Log.Warn("a node refuses a pool", "node", node, "pool", r.GetKey(), "reason", nodeapi.Text(r.GetReason()))
	}
	k.cfg.Log.Debug("set a node's pools", "node", node, "pools", len(list))
	return nil
}

// inTurns orders the templates that keep slots: the public ones, then the first
// of every team, then the second. What a node can't be told of comes last, so
// that no team's many templates leave another without its first.
func inTurns(all []*templates.Template) []*templates.Template {
	turn := map[uuid.UUID]int{}
	var list []*templates.Template
	turns := map[*templates.Template]int{}
	for _, t := range all {
		if t.MaxIdle == 0 {
			continue
		}
		if !t.Public() {
			turn[*t.Row.TeamID]++
			turns[t] = turn[*t.Row.TeamID]
		}
		list = append(list, t)
	}
	slices.SortStableFunc(list, func(a, b *templates.Template) int { return turns[a] - turns[b] })
	return list
}

// pools is what the i-th of the nodes keeps: a share of what those that offer a
// template's runtime class keep.
func pools(wanted []*templates.Template, all []placement.Node, i int) []*nodeapi.Pool {
	list := make([]*nodeapi.Pool, 0, len(wanted))
	for _, t := range wanted {
		class := t.Slot.RuntimeClass
		if all[i].Closed || !all[i].Offers(class) {
			continue
		}
		at, n := offering(all[:i], class), offering(all, class)
		team := ""
		if t.Row.TeamID != nil {
			team = t.Row.TeamID.String()
		}
		list = append(list, &nodeapi.Pool{
			Team: team, Key: t.PoolKey, Spec: nodeapi.SpecToWire(t.Slot),
			MinIdle: share(t.MinIdle, at, n), MaxIdle: share(t.MaxIdle, at, n),
		})
	}
	return list
}

// offering counts the nodes that offer a class and may have slots of it.
func offering(all []placement.Node, class sandbox.RuntimeClass) (n int) {
	for _, node := range all {
		if !node.Closed && node.Offers(class) {
			n++
		}
	}
	return n
}

// fitting is how many of the pools, from the first on, one call carries.
func fitting(list []*nodeapi.Pool) int {
	size := 0
	for i, p := range list[:min(len(list), nodeapi.MaxPools)] {
		if size += proto.Size(p) + fieldBytes; size > nodeapi.MaxSetPoolsBytes {
			return i
		}
	}
	return min(len(list), nodeapi.MaxPools)
}

// fieldBytes is what a message costs as a field of another: tag and length.
const fieldBytes = 8

// share is the i-th of n nearly equal parts that add up to total.
func share(total int32, i, n int) uint32 {
	part := int(total) / n
	if i < int(total)%n {
		part++
	}
	return uint32(part)
}
