package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
	"s0.run/internal/sealed"
)

// QuotaVolumes limits what a team's volumes hold, in units of snapshotUnit.
const QuotaVolumes = "volume_storage_gb"

// Access modes of volumes.
const (
	ReadWriteOnce = "RWO" // one sandbox at a time
	ReadOnlyMany  = "ROX"
	ReadWriteMany = "RWX" // its files alone: no sandbox mounts it
)

const (
	// maxVolumes bounds a team's volumes, and with it every list.
	maxVolumes = 1000
	// volumesLock is the advisory lock, with a team's hash, of who counts its volumes, or
	// their snapshots, and adds one.
	volumesLock = 0x76_6f_6c_73
)

// Volume is a volume of a team; see migrations/0019_volumes.sql.
type Volume struct {
	ID          uuid.UUID
	TeamID      uuid.UUID
	UserID      uuid.UUID
	SourceID    *uuid.UUID // that it was made from; may be gone
	State       string
	Backend     string
	AccessMode  string
	UID, GID    int32
	Bucket      json.RawMessage // of backend s3
	SealedKey   *string
	Sealed      []byte
	Store       string   // that it is in, as nodes name it
	Node        string   // that may write to it, at Epoch
	Nodes       []string // that have had to do with it
	Epoch       int64
	Bytes       int64
	RequestHash []byte
	CreatedAt   time.Time
	UpdatedAt   time.Time
	LimitBytes  int64 // it may grow to, by its team's quota; 0: to anything. Lists leave it out
}

const (
	bareVolumeColumns = `id, team_id, user_id, source_id, state, backend, access_mode, uid, gid, bucket, sealed_key, sealed,
		store, node, nodes, epoch, bytes, request_hash, created_at, updated_at`
	volumeColumns     = bareVolumeColumns + ", s0_volume_limit(team_id, id)"
	volumeListColumns = bareVolumeColumns + ", 0::bigint"
)

// Secret is what opens a bucket, sealed.
func (v *Volume) Secret() sealed.Blob {
	if v.SealedKey == nil {
		return sealed.Blob{}
	}
	return sealed.Blob{Key: *v.SealedKey, Data: v.Sealed}
}

// NewVolume is a volume as it was asked for.
type NewVolume struct {
	ID, TeamID, UserID  uuid.UUID
	SourceID            uuid.UUID // uuid.Nil: none
	Backend, AccessMode string
	UID, GID            int32
	Bucket              json.RawMessage // nil: none
	Secret              sealed.Blob     // of the bucket
	Store, Node         string
	IdempotencyKey      string // empty: none
	RequestHash         []byte
	Lease               time.Duration // until it has failed unless it is finished
}

// BeginVolume stores a volume that is being made, if its team may have another, and answers
// how many bytes it may grow to; 0: any. It fails with [ErrKeyTaken] when its key was used
// before.
func (s *Store) BeginVolume(ctx context.Context, n NewVolume) (limit int64, err error) {
	err = s.inTx(ctx, "beginning a volume", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, hashtext($2::text))", volumesLock, n.TeamID); err != nil {
			return err
		}
		var many, full bool
		err := tx.QueryRow(ctx, `SELECT count(*) >= $2, sum(bytes) >= s0_volume_quota($1) IS TRUE OR s0_volume_quota($1) = 0 IS TRUE
			FROM volumes WHERE team_id = $1 AND state <> 'deleting'`, n.TeamID, maxVolumes).Scan(&many, &full)
		switch {
		case err != nil:
			return err
		case many:
			return errdefs.New(errdefs.Exhausted, "the team has %d volumes, the most it may", maxVolumes).WithRetryAfter(quotaRetryAfter)
		case full:
			return VolumesFull()
		}
		key := any(n.Secret.Key)
		if n.Bucket == nil {
			key = nil
		}
		err = tx.QueryRow(ctx, `
			INSERT INTO volumes (id, team_id, user_id, source_id, state, backend, access_mode, uid, gid, bucket, sealed_key, sealed,
				store, node, nodes, idempotency_key, request_hash, lease_until)
			VALUES ($1, $2, $3, $4, 'creating', $5, $6, $7, $8, $9, $10, $11, $12, $13, ARRAY[$13], nullif($14, ''), $15, now() + $16::interval)
			RETURNING s0_volume_limit(team_id, id)`,
			n.ID, n.TeamID, n.UserID, orNull(n.SourceID), n.Backend, n.AccessMode, n.UID, n.GID, n.Bucket, key, n.Secret.Data,
			n.Store, n.Node, n.IdempotencyKey, n.RequestHash, n.Lease).Scan(&limit)
		if violates(err, "volumes_idempotency") {
			return ErrKeyTaken
		}
		return err
	})
	return limit, err
}

// VolumesFull is the answer to who has as much in volumes as his team may.
func VolumesFull() *errdefs.Error {
	return errdefs.New(errdefs.Exhausted, "the team's quota of %s is used up", QuotaVolumes).WithRetryAfter(quotaRetryAfter)
}

// FinishVolume records that a volume is there. It fails when the making took longer than
// its lease.
func (s *Store) FinishVolume(ctx context.Context, id uuid.UUID, bytes int64) (Volume, error) {
	rows, _ := s.pool.Query(ctx, `UPDATE volumes SET state = 'ready', bytes = $2, counted_at = now(), lease_until = NULL, created_at = now(), updated_at = now()
		WHERE id = $1 AND state = 'creating' AND lease_until > now() RETURNING `+volumeListColumns, id, bytes)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Volume])
	if errors.Is(err, pgx.ErrNoRows) {
		return v, errdefs.New(errdefs.Unavailable, "the volume took too long").WithRetryAfter(retryAfter)
	}
	return v, classify(err, "finishing a volume")
}

// AbandonVolume decides that one goes that could not be made. Its key may be used again.
func (s *Store) AbandonVolume(ctx context.Context, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, `UPDATE volumes SET state = 'deleting', idempotency_key = NULL, lease_until = now(), updated_at = now()
		WHERE id = $1 AND state = 'creating'`, id)
	return classify(err, "giving up a volume")
}

// VolumeByKey reads what an earlier call with the same idempotency key made.
func (s *Store) VolumeByKey(ctx context.Context, team uuid.UUID, key string) (Volume, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+volumeListColumns+" FROM volumes WHERE team_id = $1 AND idempotency_key = $2", team, key)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Volume])
	return v, found(err, "reading a volume by its key", "volume")
}

// Volume reads a volume of a team.
func (s *Store) Volume(ctx context.Context, team, id uuid.UUID) (Volume, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+volumeColumns+" FROM volumes WHERE team_id = $1 AND id = $2 AND state = 'ready'", team, id)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Volume])
	return v, found(err, "reading a volume", "volume")
}

// Volumes lists a team's volumes, the newest first.
func (s *Store) Volumes(ctx context.Context, team uuid.UUID) ([]Volume, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+volumeListColumns+` FROM volumes
		WHERE team_id = $1 AND state = 'ready' ORDER BY created_at DESC, id LIMIT $2`, team, maxVolumes)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Volume])
	return list, classify(err, "listing volumes")
}

// EndVolume decides that a volume of a team goes, at an epoch of its own. While sandboxes
// have it, that is a conflict, unless they shall lose it. Until every node of it has been
// told, which is this caller's for so long, the row stays.
func (s *Store) EndVolume(ctx context.Context, team, id uuid.UUID, force bool, lease time.Duration) (ended Volume, err error) {
	err = s.inTx(ctx, "deleting a volume", func(ctx context.Context, tx pgx.Tx) error {
		var state string
		err := tx.QueryRow(ctx, "SELECT state FROM volumes WHERE team_id = $1 AND id = $2 AND state = 'ready' FOR UPDATE", team, id).Scan(&state)
		if err != nil {
			return found(err, "deleting a volume", "volume")
		}
		if err := removeStale(ctx, tx, []uuid.UUID{id}); err != nil {
			return err
		}
		mounts, err := mountsOfVolume(ctx, tx, id)
		if err != nil {
			return err
		}
		if len(mounts) > 0 && !force {
			return inUse("volume has active mounts", mounts)
		}
		if _, err := tx.Exec(ctx, "DELETE FROM volume_mounts WHERE volume_id = $1", id); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `UPDATE volumes SET state = 'deleting', epoch = epoch + 1, lease_until = now() + $2::interval, updated_at = now()
			WHERE id = $1 RETURNING `+volumeListColumns, id, lease)
		ended, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Volume])
		return err
	})
	return ended, err
}

// LeaseVolumes hands out at most limit volumes, of any team, for this caller to have them
// removed: what is deleted, was never finished, or is a deleted team's. One that is not
// removed is handed out again after lease.
func (s *Store) LeaseVolumes(ctx context.Context, lease time.Duration, limit int) ([]Volume, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE volumes SET state = 'deleting', idempotency_key = NULL, lease_until = now() + $1::interval,
			epoch = CASE state WHEN 'ready' THEN epoch + 1 ELSE epoch END,
			updated_at = CASE state WHEN 'deleting' THEN updated_at ELSE now() END
		WHERE id IN (
			SELECT id FROM volumes v WHERE lease_until <= now()
			OR state = 'ready' AND team_id IN (SELECT team_id FROM deleted_teams)
				AND NOT EXISTS (SELECT FROM volume_mounts m WHERE m.volume_id = v.id)
			LIMIT $2 FOR UPDATE SKIP LOCKED)
		RETURNING `+volumeListColumns, lease, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Volume])
	return list, classify(err, "looking for volumes to remove")
}

// RemoveVolume records that these nodes do not have a deleted volume any more. When all
// know, or those that don't have not been heard of for a month, it is forgotten.
func (s *Store) RemoveVolume(ctx context.Context, id uuid.UUID, told []string) (gone bool, err error) {
	err = s.inTx(ctx, "removing a volume", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE volumes SET nodes = ARRAY(SELECT unnest(nodes) EXCEPT SELECT unnest($2::text[]))
			WHERE id = $1 AND state = 'deleting'`, id, told); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `DELETE FROM volumes WHERE id = $1 AND state = 'deleting'
			AND (nodes = '{}' OR updated_at < now() - interval '30 days')`, id)
		gone = tag.RowsAffected() == 1
		return err
	})
	return gone, err
}

// MoveVolume makes another node the one that may write to a volume, at the next epoch,
// which nobody has who wrote to it before. It fails with [ErrChanged] when the row is not
// what the caller read, or a sandbox may be writing.
func (s *Store) MoveVolume(ctx context.Context, team uuid.UUID, read Volume, node string) (Volume, error) {
	rows, _ := s.pool.Query(ctx, `UPDATE volumes SET node = $4, epoch = epoch + 1, nodes = s0_with(nodes, $4), updated_at = now()
		WHERE team_id = $1 AND id = $2 AND epoch = $3 AND state = 'ready'
		AND (access_mode = 'ROX' OR NOT EXISTS (SELECT FROM volume_mounts m WHERE m.volume_id = volumes.id))
		RETURNING `+volumeColumns, team, read.ID, read.Epoch, node)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Volume])
	if errors.Is(err, pgx.ErrNoRows) {
		return v, ErrChanged
	}
	return v, classify(err, "moving a volume")
}
