package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
)

// VolumeSnapshot is what a volume was at an instant.
type VolumeSnapshot struct {
	ID          uuid.UUID
	VolumeID    uuid.UUID
	TeamID      uuid.UUID
	UserID      uuid.UUID
	State       string
	Name        string
	Description string
	SizeBytes   int64
	CreatedAt   time.Time
	ExpiresAt   *time.Time
	Expired     bool // by the database's clock; it goes in a moment
}

const volumeSnapshotColumns = `id, volume_id, team_id, user_id, state, name, description, size_bytes, created_at, expires_at,
	coalesce(expires_at <= now(), false)`

// SnapshotDeleted is the state of one that is gone, of which that alone is remembered.
const SnapshotDeleted = "deleted"

// NewVolumeSnapshot is a snapshot as it was asked for.
type NewVolumeSnapshot struct {
	ID, VolumeID, TeamID, UserID uuid.UUID
	Name, Description            string
	ExpiresAt                    *time.Time
	Lease                        time.Duration // until it has failed unless it is finished
}

// BeginVolumeSnapshot stores a snapshot that is being made, if its team may have another.
func (s *Store) BeginVolumeSnapshot(ctx context.Context, n NewVolumeSnapshot) error {
	return s.inTx(ctx, "beginning a volume's snapshot", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, hashtext($2::text))", volumesLock, n.TeamID); err != nil {
			return err
		}
		var past, many, busy, full bool
		err := tx.QueryRow(ctx, `SELECT coalesce($2 <= now(), false), count(*) >= $3,
				count(*) FILTER (WHERE state = 'creating' AND lease_until > now()) >= $6,
				s0_snapshot_bytes($1) >= (SELECT limit_value * $4::numeric FROM (`+allQuotas+`) q (dimension, limit_value) WHERE dimension = $5) IS TRUE
			FROM volume_snapshots WHERE team_id = $1 AND state IN ('creating', 'ready')`,
			n.TeamID, n.ExpiresAt, maxSnapshots, snapshotUnit, QuotaSnapshots, maxCreating).Scan(&past, &many, &busy, &full)
		switch {
		case err != nil:
			return err
		case past:
			return errdefs.New(errdefs.InvalidArgument, "expires_at is in the past")
		case many:
			return errdefs.New(errdefs.Exhausted, "the team has %d snapshots of volumes, the most it may", maxSnapshots).WithRetryAfter(quotaRetryAfter)
		case busy:
			return errdefs.New(errdefs.Exhausted, "the team is making %d snapshots, the most it may at a time", maxCreating).WithRetryAfter(quotaRetryAfter)
		case full:
			return errdefs.New(errdefs.Exhausted, "the team's quota of %s is used up", QuotaSnapshots).WithRetryAfter(quotaRetryAfter)
		}
		tag, err := tx.Exec(ctx, `
			INSERT INTO volume_snapshots (id, volume_id, team_id, user_id, state, name, description, expires_at, lease_until)
			SELECT $1, id, team_id, $4, 'creating', $5, $6, $7, now() + $8::interval FROM volumes
			WHERE id = $2 AND team_id = $3 AND state = 'ready' FOR KEY SHARE`,
			n.ID, n.VolumeID, n.TeamID, n.UserID, n.Name, n.Description, n.ExpiresAt, n.Lease)
		if err == nil && tag.RowsAffected() == 0 {
			return notFound("volume")
		}
		return err
	})
}

// FinishVolumeSnapshot records that a snapshot is there. It fails when the making took
// longer than its lease.
func (s *Store) FinishVolumeSnapshot(ctx context.Context, id uuid.UUID, bytes int64) (VolumeSnapshot, error) {
	rows, _ := s.pool.Query(ctx, `UPDATE volume_snapshots SET state = 'ready', size_bytes = $2, lease_until = NULL, created_at = now()
		WHERE id = $1 AND state = 'creating' AND lease_until > now() RETURNING `+volumeSnapshotColumns, id, bytes)
	snap, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[VolumeSnapshot])
	if errors.Is(err, pgx.ErrNoRows) {
		return snap, errdefs.New(errdefs.Unavailable, "the snapshot took too long").WithRetryAfter(retryAfter)
	}
	return snap, classify(err, "finishing a volume's snapshot")
}

// AbandonVolumeSnapshot decides that one goes that could not be made.
func (s *Store) AbandonVolumeSnapshot(ctx context.Context, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, "UPDATE volume_snapshots SET state = 'deleting', lease_until = now() WHERE id = $1 AND state = 'creating'", id)
	return classify(err, "giving up a volume's snapshot")
}

// VolumeSnapshot reads a snapshot of a team, of this volume or, with uuid.Nil, of any.
func (s *Store) VolumeSnapshot(ctx context.Context, team, volume, id uuid.UUID) (VolumeSnapshot, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+volumeSnapshotColumns+` FROM volume_snapshots
		WHERE team_id = $1 AND id = $2 AND ($3::uuid IS NULL OR volume_id = $3) AND state = 'ready'`, team, id, orNull(volume))
	snap, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[VolumeSnapshot])
	return snap, found(err, "reading a volume's snapshot", "snapshot")
}

// VolumeSnapshots lists a volume's snapshots, the newest first.
func (s *Store) VolumeSnapshots(ctx context.Context, team, volume uuid.UUID) ([]VolumeSnapshot, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+volumeSnapshotColumns+` FROM volume_snapshots
		WHERE team_id = $1 AND volume_id = $2 AND state = 'ready' ORDER BY created_at DESC, id LIMIT $3`, team, volume, maxSnapshots)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[VolumeSnapshot])
	return list, classify(err, "listing a volume's snapshots")
}

// EndVolumeSnapshot decides that a snapshot of a team goes; one that was deleted lately is
// answered as it is. Until its node has been told, which is this caller's for so long, the
// row stays.
func (s *Store) EndVolumeSnapshot(ctx context.Context, team, volume, id uuid.UUID, lease time.Duration) (VolumeSnapshot, error) {
	rows, _ := s.pool.Query(ctx, `UPDATE volume_snapshots SET
			state = CASE state WHEN 'ready' THEN 'deleting' ELSE state END,
			lease_until = CASE state WHEN 'ready' THEN now() + $4::interval ELSE lease_until END
		WHERE team_id = $1 AND volume_id = $2 AND id = $3 AND state <> 'creating' RETURNING `+volumeSnapshotColumns, team, volume, id, lease)
	snap, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[VolumeSnapshot])
	return snap, found(err, "deleting a volume's snapshot", "snapshot")
}

// LeaseVolumeSnapshots hands out at most limit snapshots, of any team, for this caller to
// have them removed: what is deleted, has expired or was never finished. What was deleted
// a day ago is forgotten.
func (s *Store) LeaseVolumeSnapshots(ctx context.Context, lease time.Duration, limit int) ([]VolumeSnapshot, error) {
	if _, err := s.pool.Exec(ctx, "DELETE FROM volume_snapshots WHERE state = 'deleted' AND lease_until <= now()"); err != nil {
		return nil, classify(err, "forgetting snapshots of volumes")
	}
	rows, _ := s.pool.Query(ctx, `
		UPDATE volume_snapshots SET state = 'deleting', lease_until = now() + $1::interval
		WHERE id IN (
			SELECT id FROM volume_snapshots WHERE state <> 'deleted' AND least(expires_at, lease_until) <= now()
			AND (lease_until <= now() OR state = 'ready')
			LIMIT $2 FOR UPDATE SKIP LOCKED)
		RETURNING `+volumeSnapshotColumns, lease, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[VolumeSnapshot])
	return list, classify(err, "looking for snapshots of volumes to remove")
}

// RemoveVolumeSnapshot records that there is a snapshot no more.
func (s *Store) RemoveVolumeSnapshot(ctx context.Context, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, `UPDATE volume_snapshots SET state = 'deleted', size_bytes = 0, name = '', description = '', expires_at = NULL,
		lease_until = now() + interval '1 day' WHERE id = $1 AND state = 'deleting'`, id)
	return classify(err, "removing a volume's snapshot")
}

// VolumeRestored records that a volume has become what a snapshot is, which holds so much.
func (s *Store) VolumeRestored(ctx context.Context, snap VolumeSnapshot, user uuid.UUID) error {
	_, err := s.pool.Exec(ctx, `WITH v AS (UPDATE volumes SET bytes = $2, updated_at = now() WHERE id = $1 RETURNING id, team_id)
		INSERT INTO metering_volume_changes (type, team_id, user_id, volume_id) SELECT 'snapshot.restored', team_id, $3, id FROM v`, snap.VolumeID, snap.SizeBytes, user)
	return classify(err, "recording a restore")
}

// OwnerOfSnapshot reads the volume that a snapshot is of, of whatever state, for its removal.
func (s *Store) OwnerOfSnapshot(ctx context.Context, snap VolumeSnapshot) (Volume, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+volumeListColumns+" FROM volumes WHERE id = $1", snap.VolumeID)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Volume])
	return v, found(err, "reading a snapshot's volume", "volume")
}
