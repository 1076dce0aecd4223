package volumes

import (
	"context"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/nodeapi"
)

// readLease outlives what anybody reads of a snapshot.
const readLease = 2 * time.Hour

// ReadSnapshot has the files of a snapshot at hand while read runs: as a volume that begins
// as it, of which only read knows, and which goes afterwards. A server that ends meanwhile
// leaves it to its lease.
func (k *Keeper) ReadSnapshot(ctx context.Context, team, volume, snapshot uuid.UUID, read func(node string, v *nodeapi.Volume) error) error {
	snap, err := k.cfg.Store.VolumeSnapshot(ctx, team, volume, snapshot)
	if err != nil {
		return err
	}
	n, make, err := k.prepareCopy(ctx, CreateRequest{TeamID: team, Snapshot: snapshot}, store.NewVolume{
		ID: uuid.New(), TeamID: team, UserID: snap.UserID, Lease: readLease,
	})
	if err != nil {
		return err
	}
	defer k.abandon(ctx, n.ID)
	begin, cancel := detached(audit.Without(ctx), tellTimeout) // or it may be there when it is given up, or not
	limit, err := k.cfg.Store.BeginVolume(begin, n)
	cancel()
	if err != nil {
		return err
	}
	if _, err := make(ctx, limit); err != nil {
		return failure(err, "the snapshot could not be read")
	}
	wire, err := k.wire(n, limit)
	if err != nil {
		return err
	}
	return read(n.Node, wire)
}
