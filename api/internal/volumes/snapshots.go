package volumes

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
)

var errExpired = errdefs.New(errdefs.InvalidArgument, "the snapshot has expired")

// SnapshotRequest asks for a snapshot of a volume.
type SnapshotRequest struct {
	TeamID, UserID, Volume uuid.UUID
	Name, Description      string
	ExpiresAt              *time.Time
}

// Snapshot keeps what a volume of a team is at this moment. Its row is there first, so that
// what its node may have made is always somebody's. A client that leaves does not stop it.
func (k *Keeper) Snapshot(ctx context.Context, req SnapshotRequest) (store.VolumeSnapshot, error) {
	v, rpc, err := k.find(ctx, req.TeamID, req.Volume)
	if err != nil {
		return store.VolumeSnapshot{}, err
	}
	if err := Copyable(v); err != nil {
		return store.VolumeSnapshot{}, err
	}
	wire, err := toWire(v)
	if err != nil {
		return store.VolumeSnapshot{}, err
	}
	ctx, cancel := detached(ctx, workTimeout)
	defer cancel()
	n := store.NewVolumeSnapshot{
		ID: uuid.New(), VolumeID: v.ID, TeamID: req.TeamID, UserID: req.UserID,
		Name: req.Name, Description: req.Description, ExpiresAt: req.ExpiresAt, Lease: makingLease,
	}
	if err := k.cfg.Store.BeginVolumeSnapshot(ctx, n); err != nil {
		return store.VolumeSnapshot{}, err
	}
	made, err := rpc.SnapshotVolume(ctx, &nodeapi.SnapshotVolumeRequest{Volume: wire, Snapshot: n.ID.String()})
	if err != nil {
		k.abandonSnapshot(ctx, n.ID)
		return store.VolumeSnapshot{}, failure(err, "the volume could not be saved")
	}
	snap, err := k.cfg.Store.FinishVolumeSnapshot(ctx, n.ID, made.GetBytes())
	if err == nil {
		k.cfg.Log.Info("kept a snapshot of a volume", "snapshot", snap.ID, "volume", v.ID, "team", v.TeamID, "node", v.Node)
	}
	return snap, err
}

// abandonSnapshot has one removed that may have been made.
func (k *Keeper) abandonSnapshot(ctx context.Context, id uuid.UUID) {
	ctx, cancel := detached(audit.Without(ctx), tellTimeout)
	defer cancel()
	if err := k.cfg.Store.AbandonVolumeSnapshot(ctx, id); err != nil {
		k.logFailure(ctx, "could not give up a volume's snapshot", err)
	}
}

// Restore makes a volume of a team what one of its snapshots is, where it is mounted, too.
func (k *Keeper) Restore(ctx context.Context, team, user, volume, snapshot uuid.UUID) error {
	v, rpc, err := k.find(ctx, team, volume)
	if err != nil {
		return err
	}
	snap, err := k.cfg.Store.VolumeSnapshot(ctx, team, volume, snapshot)
	switch {
	case err != nil:
		return err
	case snap.Expired:
		return errExpired
	}
	wire, err := toWire(v)
	if err != nil {
		return err
	}
	ctx, cancel := detached(ctx, workTimeout)
	defer cancel()
	_, err = rpc.RestoreVolume(ctx, &nodeapi.RestoreVolumeRequest{Volume: wire, Snapshot: snapshot.String()})
	switch connect.CodeOf(err) {
	case connect.CodeDeadlineExceeded:
		return errdefs.New(errdefs.GatewayTimeout, "remount timeout").WithCause(err)
	case connect.CodeNotFound: // deleted a moment ago
		return errdefs.New(errdefs.NotFound, "snapshot not found").WithCause(err)
	}
	if err != nil {
		return failure(err, "the volume could not be restored")
	}
	k.cfg.Log.Info("restored a volume", "volume", volume, "team", team, "node", v.Node, "snapshot", snapshot)
	return k.cfg.Store.VolumeRestored(ctx, snap, user)
}

// DeleteSnapshot removes a snapshot of a team's volume. The answer means that the decision
// is durable: a node that can't be reached is told later. Deleting it again succeeds.
func (k *Keeper) DeleteSnapshot(ctx context.Context, team, volume, id uuid.UUID) error {
	snap, err := k.cfg.Store.EndVolumeSnapshot(ctx, team, volume, id, removalLease)
	if err != nil || snap.State == store.SnapshotDeleted {
		return err
	}
	ctx, cancel := detached(audit.Without(ctx), tellTimeout)
	defer cancel()
	k.removeSnapshot(ctx, snap)
	return nil
}

// removeSnapshots removes what was deleted and could not be, has expired, or was never
// finished.
func (k *Keeper) removeSnapshots(ctx context.Context) {
	list, err := k.cfg.Store.LeaseVolumeSnapshots(ctx, removalLease, removalBatch)
	if err != nil {
		k.logFailure(ctx, "could not look for snapshots of volumes to remove", err)
		return
	}
	for _, snap := range list {
		k.removeSnapshot(ctx, snap)
	}
}

func (k *Keeper) removeSnapshot(ctx context.Context, snap store.VolumeSnapshot) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	err := k.removeSnapshotAtNode(ctx, snap)
	if err == nil {
		err = k.cfg.Store.RemoveVolumeSnapshot(ctx, snap.ID)
	}
	log := k.cfg.Log.With("snapshot", snap.ID, "volume", snap.VolumeID, "team", snap.TeamID)
	if err != nil {
		log.Warn("a snapshot of a volume is not removed yet", "err", err)
		return
	}
	log.Info("removed a snapshot of a volume", "expired", snap.Expired)
}

func (k *Keeper) removeSnapshotAtNode(ctx context.Context, snap store.VolumeSnapshot) error {
	v, err := k.cfg.Store.OwnerOfSnapshot(ctx, snap)
	if err != nil {
		return err
	}
	if v.State == "ready" {
		if v, err = k.settle(ctx, v); err != nil {
			return err
		}
	}
	rpc, err := k.rpc(v.Node)
	if err != nil {
		return err
	}
	wire, err := toWire(v)
	if err != nil {
		return err
	}
	_, err = rpc.DeleteVolumeSnapshot(ctx, &nodeapi.DeleteVolumeSnapshotRequest{Volume: wire, Snapshot: snap.ID.String()})
	return err
}
