package volumes

import (
	"context"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/nodeapi"
)

// Delete removes a volume of a team with its snapshots; by force also from the sandboxes
// that have it. The answer means that the decision is durable: a node that can't be
// reached is told later.
func (k *Keeper) Delete(ctx context.Context, team, id uuid.UUID, force bool) error {
	v, err := k.cfg.Store.EndVolume(ctx, team, id, force, removalLease)
	if err != nil {
		return err
	}
	ctx, cancel := detached(audit.Without(ctx), tellTimeout)
	defer cancel()
	k.remove(ctx, v)
	return nil
}

// removeVolumes removes what was deleted and could not be, or was never finished.
func (k *Keeper) removeVolumes(ctx context.Context) {
	list, err := k.cfg.Store.LeaseVolumes(ctx, removalLease, removalBatch)
	if err != nil {
		k.logFailure(ctx, "could not look for volumes to remove", err)
		return
	}
	for _, v := range list {
		k.remove(ctx, v)
	}
}

// remove tells every node that has had to do with a volume, and forgets the row when all
// have done it: a node that comes back later must still hear of it.
func (k *Keeper) remove(ctx context.Context, v store.Volume) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	log := k.cfg.Log.With("volume", v.ID, "team", v.TeamID)
	var told []string
	for _, node := range v.Nodes {
		if err := k.removeAt(ctx, node, v); err != nil {
			log.Warn("a volume is not removed from a node yet", "node", node, "err", err)
			continue
		}
		told = append(told, node)
	}
	gone, err := k.cfg.Store.RemoveVolume(ctx, v.ID, told)
	if err != nil {
		k.logFailure(ctx, "could not record that a volume was removed", err)
	}
	if gone {
		log.Info("removed a volume")
	}
}

func (k *Keeper) removeAt(ctx context.Context, node string, v store.Volume) error {
	rpc, err := k.rpc(node)
	if err != nil {
		return err
	}
	wire, err := toWire(v)
	if err != nil {
		return err
	}
	_, err = rpc.DeleteVolume(ctx, &nodeapi.DeleteVolumeRequest{Volume: wire})
	return err
}
