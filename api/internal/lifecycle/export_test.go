package lifecycle

import "context"

// RemoveUnwanted makes one look, for tests that don't wait for the next.
func (k *Keeper) RemoveUnwanted(ctx context.Context) { k.removeUnwanted(ctx) }
