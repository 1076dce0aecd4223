package lifecycle

import (
	"context"

	"s0.run/api/internal/store"
)

// Pass compares every node with its rows once, for tests of what it leaves alone.
func (k *Keeper) Pass(ctx context.Context) { k.pass(ctx) }

// RemoveUnwanted makes one look, for tests that don't wait for the next.
func (k *Keeper) RemoveUnwanted(ctx context.Context) { k.removeUnwanted(ctx) }

// Beside is another server's Keeper, with connections of its own to the database.
func (k *Keeper) Beside(s *store.Store) *Keeper {
	cfg := k.cfg
	cfg.Store = s
	return New(cfg)
}
