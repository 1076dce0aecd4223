package volumesync

import (
	"context"
	"errors"
	"regexp"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// replicaForm is what names a replica.
var replicaForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// Register stores a replica of a volume, which has a journal from then on, and answers it
// with the journal's head.
func (k *Keeper) Register(ctx context.Context, of Of, r store.SyncReplica) (store.SyncReplica, int64, error) {
	if !replicaForm.MatchString(r.ID) {
		return r, 0, errdefs.New(errdefs.InvalidArgument, "a replica's id is 1 to 128 letters, digits, dots, hyphens and underscores")
	}
	if err := k.begin(ctx, of); err != nil {
		return r, 0, err
	}
	r, err := k.cfg.Store.PutSyncReplica(ctx, of.Team, of.Volume, r, replicaLease)
	if err != nil {
		return r, 0, err
	}
	sync, err := k.Look(ctx, of)
	return r, sync.Head, err
}

// Replica reads a replica and the journal's head.
func (k *Keeper) Replica(ctx context.Context, of Of, id string) (r store.SyncReplica, head int64, err error) {
	if !replicaForm.MatchString(id) {
		return r, 0, errdefs.New(errdefs.NotFound, "replica not found")
	}
	if r, err = k.cfg.Store.SyncReplica(ctx, of.Team, of.Volume, id); err != nil {
		return r, 0, err
	}
	sync, err := k.cfg.Store.Sync(ctx, of.Team, of.Volume)
	return r, sync.Head, err
}

// MoveCursor records what a replica has, and answers it with the journal's head.
func (k *Keeper) MoveCursor(ctx context.Context, of Of, id string, applied int64) (r store.SyncReplica, head int64, err error) {
	if !replicaForm.MatchString(id) {
		return r, 0, errdefs.New(errdefs.NotFound, "replica not found")
	}
	if r, err = k.cfg.Store.MoveSyncCursor(ctx, of.Team, of.Volume, id, applied, replicaLease); err != nil {
		return r, 0, err
	}
	sync, err := k.cfg.Store.Sync(ctx, of.Team, of.Volume)
	return r, sync.Head, err
}

// Look has the journal say what the volume is, and answers it. Who comes a moment after
// another look, or while somebody else is at work, has what is known.
func (k *Keeper) Look(ctx context.Context, of Of) (store.Sync, error) {
	sync, err := k.cfg.Store.Sync(ctx, of.Team, of.Volume)
	if err != nil || sync.Fresh {
		return sync, err
	}
	s, leave, err := k.enter(ctx, of, false)
	if errors.Is(err, store.ErrSyncLocked) {
		return sync, nil
	}
	if err != nil {
		return sync, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, workTime)
	defer cancel()
	if err := s.look(ctx, false); err != nil {
		return sync, err
	}
	return s.sync, nil
}

// Changes are at most limit entries behind a number, and the journal that they are of.
func (k *Keeper) Changes(ctx context.Context, of Of, after int64, limit int) (store.Sync, []store.SyncEntry, error) {
	sync, err := k.Look(ctx, of)
	if err != nil {
		return sync, nil, err
	}
	list, err := k.cfg.Store.SyncEntries(ctx, of.Team, of.Volume, after, limit)
	if err != nil {
		return sync, nil, err
	}
	// Read behind the entries: what was forgotten before they were read shows.
	if sync, err = k.cfg.Store.Sync(ctx, of.Team, of.Volume); err != nil {
		return sync, nil, err
	}
	if after < sync.Floor || after > sync.Head {
		return sync, nil, reseed(sync)
	}
	return sync, list, nil
}
