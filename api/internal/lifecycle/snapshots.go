package lifecycle

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/claim"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	// snapshotTimeout is for all that a sandbox may have written.
	snapshotTimeout = 5 * time.Minute
	// A lease lasts some renewals, so that one that the database missed is no end. What
	// a server that died was making goes soon after.
	snapshotLease, snapshotRenewal = 30 * time.Second, 5 * time.Second
	// removalEvery is how often there is a look for snapshots that shall go, removalLease
	// when a node that did not do it is told again, and removalBatch how many at a time.
	removalEvery, removalLease, removalBatch = 5 * time.Second, 30 * time.Second, 100
)

// SnapshotRequest asks for a snapshot of what a sandbox has written to its root filesystem.
type SnapshotRequest struct {
	TeamID, UserID    uuid.UUID
	SandboxID         sandbox.ID
	Name, Description string
	ExpiresAt         *time.Time
}

// Snapshot keeps the files of a running or paused sandbox. Its row is there first, so that
// what its node may have made is always somebody's. A client that leaves does not stop it.
func (k *Keeper) Snapshot(ctx context.Context, req SnapshotRequest) (store.Snapshot, error) {
	row, err := k.cfg.Store.Sandbox(ctx, req.TeamID, req.SandboxID)
	if err != nil {
		return store.Snapshot{}, err
	}
	if row.Status != sandbox.Running && row.Status != sandbox.Paused {
		return store.Snapshot{}, errdefs.New(errdefs.Conflict, "the sandbox is %s", row.Status)
	}
	rpc, err := k.cfg.Nodes.RPC(row.Node)
	if err != nil {
		return store.Snapshot{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), snapshotTimeout)
	defer cancel()
	n := store.NewSnapshot{
		ID: uuid.New(), TeamID: req.TeamID, UserID: req.UserID, Source: row,
		Name: req.Name, Description: req.Description, ExpiresAt: req.ExpiresAt, Lease: snapshotLease,
	}
	if err := k.cfg.Store.BeginSnapshot(ctx, n); err != nil {
		return store.Snapshot{}, err
	}
	stop := k.renewSnapshot(ctx, n.ID)
	made, err := rpc.Snapshot(ctx, &nodeapi.SnapshotRequest{Id: string(row.ID), Snapshot: n.ID.String()})
	stop()
	if err != nil {
		k.abandonSnapshot(ctx, n.ID)
		return store.Snapshot{}, switchError(err, "the sandbox can't be saved in its present state", "the sandbox could not be saved")
	}
	snap, err := k.cfg.Store.FinishSnapshot(ctx, n.ID, made.GetBytes())
	if err == nil {
		k.cfg.Log.Info("kept a snapshot", "snapshot", snap.ID, "sandbox", row.ID, "gen", row.Generation, "team", row.TeamID, "node", row.Node)
	}
	return snap, err
}

// renewSnapshot says that one is still being made, until it is stopped.
func (k *Keeper) renewSnapshot(ctx context.Context, id uuid.UUID) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(snapshotRenewal)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if err := k.cfg.Store.RenewSnapshot(ctx, id, snapshotLease); err != nil {
				k.logFailure(ctx, "could not renew a snapshot's lease", err)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// abandonSnapshot has one removed that may have been made. If the database does not take
// it, its lease says so later.
func (k *Keeper) abandonSnapshot(ctx context.Context, id uuid.UUID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := k.cfg.Store.AbandonSnapshot(ctx, id); err != nil {
		k.logFailure(ctx, "could not give up a snapshot", err)
	}
}

// DeleteSnapshot removes a snapshot of a team. The answer means that the decision is
// durable: a node that can't be reached is told later. What began with it goes on.
func (k *Keeper) DeleteSnapshot(ctx context.Context, team, id uuid.UUID) error {
	snap, err := k.cfg.Store.EndSnapshot(ctx, team, id, removalLease)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	k.removeSnapshot(ctx, snap)
	return nil
}

// removeSnapshots removes what was deleted and could not be, has expired, or was never
// finished.
func (k *Keeper) removeSnapshots(ctx context.Context) {
	for {
		list, err := k.cfg.Store.LeaseSnapshots(ctx, removalLease, removalBatch)
		if err != nil {
			k.logFailure(ctx, "could not look for snapshots to remove", err)
			return
		}
		var g errgroup.Group
		g.SetLimit(atOnce)
		for _, snap := range list {
			g.Go(func() error {
				k.removeSnapshot(ctx, snap)
				return nil
			})
		}
		g.Wait()
		if len(list) < removalBatch {
			return
		}
	}
}

// removeSnapshot tells the node, and forgets the row when that has done it.
func (k *Keeper) removeSnapshot(ctx context.Context, snap store.Snapshot) {
	err := k.removeAtNode(ctx, snap)
	if err == nil { // which stores it no more from here on
		err = k.removeStoredSnapshot(ctx, snap)
	}
	if err == nil {
		err = k.cfg.Store.RemoveSnapshot(ctx, snap.ID)
	}
	log := k.cfg.Log.With("snapshot", snap.ID, "sandbox", snap.SandboxID, "team", snap.TeamID, "node", snap.Node)
	if err != nil {
		log.Warn("a snapshot is not removed yet", "err", err)
		return
	}
	log.Info("removed a snapshot", "expired", snap.Expired)
}

func (k *Keeper) removeAtNode(ctx context.Context, snap store.Snapshot) error {
	rpc, err := k.cfg.Nodes.RPC(snap.Node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := rpc.DeleteSnapshot(ctx, &nodeapi.DeleteSnapshotRequest{Snapshot: snap.ID.String()}); err != nil {
		return fmt.Errorf("deleting a snapshot at node %s: %w", snap.Node, err)
	}
	return nil
}

var errStoreAway = errdefs.New(errdefs.Unavailable, "no node that has the object store can be asked")

// removeStoredSnapshot removes a snapshot from the object store, which any node does that has
// that. Where no node has one there is nothing to remove.
func (k *Keeper) removeStoredSnapshot(ctx context.Context, snap store.Snapshot) error {
	node, ok := k.cfg.Table.StoreNode("", nil)
	if !ok {
		if k.cfg.Table.NoStore() {
			return nil
		}
		return errStoreAway
	}
	rpc, err := k.cfg.Nodes.RPC(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if _, err := rpc.RemoveStored(ctx, &nodeapi.RemoveStoredRequest{Snapshot: snap.ID.String()}); err != nil {
		return fmt.Errorf("removing a snapshot from the object store at node %s: %w", node, err)
	}
	return nil
}

// RestoreSnapshot makes a paused sandbox of a team what a snapshot was: its next life
// starts from the snapshot's files, without processes and memory.
func (k *Keeper) RestoreSnapshot(ctx context.Context, team uuid.UUID, id sandbox.ID, snapshot uuid.UUID) (store.Sandbox, error) {
	row, err := k.cfg.Store.Sandbox(ctx, team, id)
	if err != nil {
		return store.Sandbox{}, err
	}
	snap, err := k.cfg.Store.Snapshot(ctx, team, snapshot)
	switch {
	case err != nil:
		return store.Sandbox{}, err
	case snap.Expired:
		return store.Sandbox{}, claim.ErrSnapshotExpired
	case row.Status != sandbox.Paused:
		return store.Sandbox{}, errdefs.New(errdefs.Conflict, "the sandbox is %s, not paused", row.Status)
	case snap.TemplateID != row.TemplateID:
		return store.Sandbox{}, errdefs.New(errdefs.InvalidArgument, "the snapshot is of a sandbox of template %q", snap.TemplateID)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), snapshotTimeout)
	defer cancel()
	rpc, err := k.cfg.Nodes.RPC(row.Node)
	if err != nil {
		return store.Sandbox{}, err
	}
	sb, err := rpc.RestoreSnapshot(ctx, &nodeapi.RestoreSnapshotRequest{Id: string(id), Generation: uint64(row.Generation), Snapshot: snapshot.String()})
	if connect.CodeOf(err) == connect.CodeNotFound && snap.Node != row.Node {
		return store.Sandbox{}, errdefs.New(errdefs.Conflict, "the snapshot is on another node than the sandbox and not in the object store").WithCause(err)
	}
	if connect.CodeOf(err) == connect.CodeNotFound {
		return store.Sandbox{}, errdefs.New(errdefs.NotFound, "snapshot not found").WithCause(err) // deleted a moment ago
	}
	if err != nil {
		k.catchUp(ctx, row, err)
		return store.Sandbox{}, switchError(err, "the sandbox can't be restored in its present state", "the sandbox could not be restored")
	}
	restored, changed, err := k.cfg.Store.SetRestored(ctx, row, sandbox.Generation(sb.GetGeneration()), snapshot)
	if err == nil && !changed { // somebody has resumed or deleted it since
		return k.cfg.Store.Sandbox(ctx, team, id)
	}
	if err == nil {
		k.cfg.Log.Info("restored a sandbox", "sandbox", id, "gen", restored.Generation, "team", team, "node", row.Node, "snapshot", snapshot)
	}
	return restored, err
}
