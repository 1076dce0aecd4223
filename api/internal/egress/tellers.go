package egress

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/store"
)

// tellers tell each node in a goroutine of its own: one that hangs keeps nobody else's
// sandboxes waiting. Who is still being told is not told twice.
type tellers struct {
	tell func(context.Context, store.BoundSandbox) error
	log  *slog.Logger
	ctx  context.Context // of Run, which waits for wg
	wg   sync.WaitGroup

	mu   sync.Mutex
	busy map[string]bool // by node
}

// begin has the nodes of sandboxes told, and waits for none of them.
func (t *tellers) begin(all []store.BoundSandbox) {
	byNode := map[string][]store.BoundSandbox{}
	for _, sb := range all {
		byNode[sb.Node] = append(byNode[sb.Node], sb)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for node, list := range byNode {
		if t.busy[node] {
			continue // the next pass finds what is left
		}
		t.busy[node] = true
		t.wg.Go(func() {
			t.node(list)
			t.mu.Lock()
			defer t.mu.Unlock()
			delete(t.busy, node)
		})
	}
}

// node tells one node of its sandboxes, until it does not answer. What was not told
// stays pending.
func (t *tellers) node(list []store.BoundSandbox) {
	g, ctx := errgroup.WithContext(t.ctx)
	g.SetLimit(perNode)
	for _, sb := range list {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := t.tell(ctx, sb)
			if err != nil && ctx.Err() == nil {
				t.log.Warn("could not tell a node of newer credentials; trying again",
					"sandbox", sb.ID, "gen", sb.Generation, "team", sb.TeamID, "node", sb.Node, "err", err)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			return nil
		})
	}
	_ = g.Wait()
}
