package lifecycle

import "context"

// Pass compares every node with its rows once, for tests of what it leaves alone.
func (k *Keeper) Pass(ctx context.Context) { k.pass(ctx) }

// RemoveUnwanted makes one look, for tests that don't wait for the next.
func (k *Keeper) RemoveUnwanted(ctx context.Context) { k.removeUnwanted(ctx) }
