package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
)

// SyncConflict is a change of a replica that was not carried out, for another was there
// before it.
type SyncConflict struct {
	ID           uuid.UUID
	Replica      string
	Event        string
	Path         string
	OldPath      string
	ArtifactPath string // where its content is; empty: it had none
	ExistingSeq  int64
	BaseSeq      int64
	Reason       string
	Status       string
	Resolution   string
	Note         string
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

const syncConflictColumns = `id, replica_id, event, path, old_path, artifact_path, existing_seq, base_seq, reason, status, resolution, note, created_at, updated_at`

// SyncConflictOpen is the status of a conflict that nobody has looked at.
const SyncConflictOpen = "open"

// PutSyncReplica stores a replica of a volume, which has a journal, and gives it a lease.
func (s *Store) PutSyncReplica(ctx context.Context, team, volume uuid.UUID, r SyncReplica, lease time.Duration) (stored SyncReplica, err error) {
	err = s.inTx(ctx, "storing a volume's replica", func(ctx context.Context, tx pgx.Tx) error {
		if err := roomForReplica(ctx, tx, team, volume, r.ID); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `INSERT INTO volume_sync_replicas (volume_id, id, display_name, platform, root_path, case_sensitive, unicode_insensitive, windows_compatible_paths, lease_until)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + $9::interval)
			ON CONFLICT (volume_id, id) DO UPDATE SET display_name = $3, platform = $4, root_path = $5, case_sensitive = $6, unicode_insensitive = $7,
				windows_compatible_paths = $8, last_seen_at = now(), lease_until = now() + $9::interval, updated_at = now()
			RETURNING `+syncReplicaColumns,
			volume, r.ID, r.DisplayName, r.Platform, r.RootPath, r.CaseSensitive, r.UnicodeInsensitive, r.Windows, lease)
		stored, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[SyncReplica])
		return err
	})
	return stored, err
}

// roomForReplica locks a journal and fails when its volume has as many other replicas as it
// may. The lock comes before the count: nobody else adds one until tx ends.
func roomForReplica(ctx context.Context, tx pgx.Tx, team, volume uuid.UUID, id string) error {
	tag, err := tx.Exec(ctx, `SELECT FROM volume_syncs s JOIN volumes v ON v.id = s.volume_id
		WHERE s.volume_id = $2 AND v.team_id = $1 AND v.state = 'ready' FOR UPDATE OF s`, team, volume)
	if err == nil && tag.RowsAffected() == 0 {
		return notFound("volume")
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "DELETE FROM volume_sync_replicas WHERE volume_id = $1 AND id <> $2 AND last_seen_at <= now() - $3::interval",
		volume, id, forgottenReplica); err != nil {
		return err
	}
	var others int
	err = tx.QueryRow(ctx, "SELECT count(*) FROM volume_sync_replicas WHERE volume_id = $1 AND id <> $2", volume, id).Scan(&others)
	if err == nil && others >= maxSyncReplicas {
		return errdefs.New(errdefs.Exhausted, "the volume has %d replicas, the most it may", maxSyncReplicas).WithRetryAfter(quotaRetryAfter)
	}
	return err
}

// SyncReplica reads a replica of a team's volume.
func (s *Store) SyncReplica(ctx context.Context, team, volume uuid.UUID, id string) (SyncReplica, error) {
	rows, _ := s.pool.Query(ctx, `SELECT `+syncReplicaColumns+` FROM volume_sync_replicas
		WHERE volume_id = (SELECT id FROM volumes WHERE team_id = $1 AND id = $2 AND state = 'ready') AND id = $3`, team, volume, id)
	r, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[SyncReplica])
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := s.Volume(ctx, team, volume); err != nil {
			return r, err
		}
	}
	return r, found(err, "reading a volume's replica", "replica")
}

// SyncNamesOf reads which names all replicas of a volume can have.
func (s *Store) SyncNamesOf(ctx context.Context, volume uuid.UUID) (n SyncNames, err error) {
	err = s.pool.QueryRow(ctx, `SELECT coalesce(bool_and(case_sensitive), true), coalesce(bool_or(unicode_insensitive), false), coalesce(bool_or(windows_compatible_paths), false)
		FROM volume_sync_replicas WHERE volume_id = $1 AND last_seen_at > now() - $2::interval`, volume, forgottenReplica).
		Scan(&n.CaseSensitive, &n.UnicodeInsensitive, &n.Windows)
	return n, classify(err, "reading what names replicas can have")
}

// MoveSyncCursor records what a replica has, which never becomes less, and renews its
// lease.
func (s *Store) MoveSyncCursor(ctx context.Context, team, volume uuid.UUID, id string, applied int64, lease time.Duration) (moved SyncReplica, err error) {
	rows, _ := s.pool.Query(ctx, `UPDATE volume_sync_replicas r SET last_applied_seq = $4, last_seen_at = now(), lease_until = now() + $5::interval, updated_at = now()
		FROM volume_syncs s JOIN volumes v ON v.id = s.volume_id
		WHERE v.team_id = $1 AND v.id = $2 AND v.state = 'ready' AND r.volume_id = v.id AND r.id = $3 AND r.last_applied_seq <= $4 AND $4 <= s.head_seq
		RETURNING r.id, r.display_name, r.platform, r.root_path, r.case_sensitive, r.unicode_insensitive, r.windows_compatible_paths,
			r.last_applied_seq, r.last_seen_at, r.lease_until, true, r.created_at, r.updated_at`, team, volume, id, applied, lease)
	moved, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[SyncReplica])
	if !errors.Is(err, pgx.ErrNoRows) {
		return moved, classify(err, "moving a replica's cursor")
	}
	is, err := s.SyncReplica(ctx, team, volume, id)
	if err != nil {
		return is, err
	}
	return is, errdefs.New(errdefs.Conflict, "last_applied_seq: want from %d, where the cursor is, to the journal's head", is.LastApplied)
}

// SyncConflicts lists a team's volume's conflicts of a status, or with "" all, newest
// first.
func (s *Store) SyncConflicts(ctx context.Context, team, volume uuid.UUID, status string, limit int) ([]SyncConflict, error) {
	rows, _ := s.pool.Query(ctx, `SELECT `+syncConflictColumns+` FROM volume_sync_conflicts
		WHERE volume_id = (SELECT id FROM volumes WHERE team_id = $1 AND id = $2 AND state = 'ready') AND ($3 = '' OR status = $3)
		ORDER BY created_at DESC, id LIMIT $4`, team, volume, status, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[SyncConflict])
	if err == nil && len(list) == 0 {
		_, err = s.Volume(ctx, team, volume)
	}
	return list, classify(err, "listing conflicts")
}

// RoomForSyncConflicts reports why a volume may have no more conflicts: too many are open.
// Of those that are not, the oldest go when there is no room for them.
func (s *Store) RoomForSyncConflicts(ctx context.Context, volume uuid.UUID, more int) error {
	if more == 0 {
		return nil
	}
	if _, err := s.pool.Exec(ctx, `DELETE FROM volume_sync_conflicts WHERE volume_id = $1 AND status <> 'open' AND (updated_at < now() - interval '30 days' OR id IN (
			SELECT id FROM volume_sync_conflicts WHERE volume_id = $1 AND status <> 'open' ORDER BY updated_at DESC, id
			OFFSET greatest(0, $2 - (SELECT count(*) FROM volume_sync_conflicts WHERE volume_id = $1 AND status = 'open'))))`, volume, maxSyncConflicts-more); err != nil {
		return classify(err, "forgetting conflicts")
	}
	var full bool
	err := s.pool.QueryRow(ctx, "SELECT count(*) > $2 FROM volume_sync_conflicts WHERE volume_id = $1 AND status = 'open'", volume, maxSyncConflicts-more).Scan(&full)
	if err == nil && full {
		return errdefs.New(errdefs.Conflict, "the volume has %d open conflicts: mark those that are resolved", maxSyncConflicts)
	}
	return classify(err, "counting conflicts")
}

// EndSyncConflict records what became of a conflict of a team's volume.
func (s *Store) EndSyncConflict(ctx context.Context, team, volume, id uuid.UUID, status, resolution, note string) (SyncConflict, error) {
	rows, _ := s.pool.Query(ctx, `UPDATE volume_sync_conflicts SET status = $4, resolution = $5, note = $6, updated_at = now()
		WHERE volume_id = (SELECT id FROM volumes WHERE team_id = $1 AND id = $2 AND state = 'ready') AND id = $3
		RETURNING `+syncConflictColumns, team, volume, id, status, resolution, note)
	c, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[SyncConflict])
	return c, found(err, "ending a conflict", "conflict")
}
