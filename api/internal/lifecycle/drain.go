package lifecycle

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// drainEvery is how often what runs on a drained node is looked for: what could not be
// paused at first, and claims that came in between.
const drainEvery = 15 * time.Second

// Drained takes note that other nodes are drained than before. It never blocks.
func (k *Keeper) Drained() {
	select {
	case k.wakeDrain <- struct{}{}:
	default:
	}
}

// drain pauses what runs on nodes that are drained, so many sandboxes at a time. Where
// there is an object store they go on elsewhere when somebody needs them. Servers that do
// the same at a time hinder nobody: a node pauses a sandbox once.
func (k *Keeper) drain(ctx context.Context) {
	var draining []string
	for _, n := range k.cfg.Table.Synced() {
		if n.Draining {
			draining = append(draining, n.Name)
		}
	}
	var after sandbox.ID
	for len(draining) > 0 && ctx.Err() == nil {
		list, err := k.cfg.Store.RunningOn(ctx, draining, after, atOnce)
		if err != nil {
			k.logFailure(ctx, "could not look for the sandboxes of nodes that are drained", err)
			return
		}
		k.pauseDrained(ctx, list)
		if len(list) < atOnce {
			return
		}
		after = list[len(list)-1].ID
	}
}

func (k *Keeper) pauseDrained(ctx context.Context, list []store.Sandbox) {
	var g errgroup.Group
	for _, row := range list {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, pauseTimeout)
			defer cancel()
			_, err := k.pause(ctx, row, false)
			if err != nil && !errdefs.Is(err, errdefs.NotFound) {
				k.cfg.Log.Warn("could not pause a sandbox whose node is drained", "sandbox", row.ID, "gen", row.Generation, "team", row.TeamID, "node", row.Node, "err", err)
			}
			return nil
		})
	}
	g.Wait()
}
