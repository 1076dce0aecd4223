package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// QuotaSnapshots limits what a team's snapshots take, in units of snapshotUnit.
const QuotaSnapshots = "snapshot_storage_gb"

const (
	snapshotUnit = 1_000_000_000
	// maxSnapshots bounds a team's snapshots, and with it every list.
	maxSnapshots = 1000
	// maxCreating bounds those that a team is making at a moment: what they will take is
	// in no sum yet, and each may take it beyond its quota.
	maxCreating = 16
	// snapshotsLock is the advisory lock, with a team's hash, of who counts its snapshots
	// and adds one: two at the same time would both find room for the last.
	snapshotsLock = 0x73_6e_61_70
)

// Snapshot is what a sandbox had written to its root filesystem; see
// migrations/0013_snapshots.sql.
type Snapshot struct {
	ID          uuid.UUID
	TeamID      uuid.UUID
	SandboxID   sandbox.ID
	TemplateID  string
	ParentID    *uuid.UUID // may be gone
	Node        string
	Name        string
	Description string
	SizeBytes   int64
	CreatedAt   time.Time
	ExpiresAt   *time.Time
	Expired     bool // by the database's clock; it goes in a moment
}

const snapshotColumns = `id, team_id, sandbox_id, template_id, parent_id, node, name, description, size_bytes, created_at, expires_at,
	coalesce(expires_at <= now(), false)`

// NewSnapshot is a snapshot as it was asked for.
type NewSnapshot struct {
	ID, TeamID, UserID uuid.UUID
	Source             Sandbox
	Name, Description  string
	ExpiresAt          *time.Time
	Lease              time.Duration // until it has failed unless it is finished
}

// BeginSnapshot stores a snapshot that is being made, if its team may have another.
func (s *Store) BeginSnapshot(ctx context.Context, n NewSnapshot) error {
	return s.inTx(ctx, "beginning a snapshot", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, hashtext($2::text))", snapshotsLock, n.TeamID); err != nil {
			return err
		}
		var past, many, busy, full bool
		err := tx.QueryRow(ctx, `SELECT coalesce($2 <= now(), false), count(*) >= $3,
				count(*) FILTER (WHERE state = 'creating' AND lease_until > now()) >= $6,
				s0_snapshot_bytes($1) >= (SELECT limit_value * $4::numeric FROM (`+allQuotas+`) q (dimension, limit_value) WHERE dimension = $5) IS TRUE
			FROM rootfs_snapshots WHERE team_id = $1 AND state <> 'deleting'`,
			n.TeamID, n.ExpiresAt, maxSnapshots, snapshotUnit, QuotaSnapshots, maxCreating).Scan(&past, &many, &busy, &full)
		switch {
		case err != nil:
			return err
		case past:
			return errdefs.New(errdefs.InvalidArgument, "expires_at is in the past")
		case many:
			return errdefs.New(errdefs.Exhausted, "the team has %d snapshots, the most it may", maxSnapshots).WithRetryAfter(quotaRetryAfter)
		case busy:
			return errdefs.New(errdefs.Exhausted, "the team is making %d snapshots, the most it may at a time", maxCreating).WithRetryAfter(quotaRetryAfter)
		case full:
			return errdefs.New(errdefs.Exhausted, "the team's quota of %s is used up", QuotaSnapshots).WithRetryAfter(quotaRetryAfter)
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO rootfs_snapshots (id, team_id, user_id, sandbox_id, template_id, parent_id, node, state, name, description, expires_at, lease_until)
			VALUES ($1, $2, $3, $4, $5, (SELECT snapshot_id FROM sandboxes WHERE id = $4), $6, 'creating', $7, $8, $9, now() + $10::interval)`,
			n.ID, n.TeamID, n.UserID, n.Source.ID, n.Source.TemplateID, n.Source.Node, n.Name, n.Description, n.ExpiresAt, n.Lease)
		return err
	})
}

// RenewSnapshot keeps one alive that is being made.
func (s *Store) RenewSnapshot(ctx context.Context, id uuid.UUID, lease time.Duration) error {
	_, err := s.pool.Exec(ctx, `UPDATE rootfs_snapshots SET lease_until = now() + $2::interval
		WHERE id = $1 AND state = 'creating' AND lease_until > now()`, id, lease)
	return classify(err, "renewing a snapshot's lease")
}

// FinishSnapshot records that a node has a snapshot whole. It fails with a conflict
// when the making took longer than its lease.
func (s *Store) FinishSnapshot(ctx context.Context, id uuid.UUID, bytes int64) (Snapshot, error) {
	rows, _ := s.pool.Query(ctx, `UPDATE rootfs_snapshots SET state = 'ready', size_bytes = $2, lease_until = NULL, created_at = now()
		WHERE id = $1 AND state = 'creating' AND lease_until > now() RETURNING `+snapshotColumns, id, bytes)
	snap, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Snapshot])
	if errors.Is(err, pgx.ErrNoRows) {
		return snap, errdefs.New(errdefs.Unavailable, "the snapshot took too long")
	}
	return snap, classify(err, "finishing a snapshot")
}

// Snapshot reads a snapshot of a team.
func (s *Store) Snapshot(ctx context.Context, team, id uuid.UUID) (Snapshot, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+snapshotColumns+" FROM rootfs_snapshots WHERE team_id = $1 AND id = $2 AND state = 'ready'", team, id)
	snap, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Snapshot])
	return snap, found(err, "reading a snapshot", "snapshot")
}

// Snapshots reads a sandbox's snapshots, the newest first. The sandbox may have ended.
func (s *Store) Snapshots(ctx context.Context, team uuid.UUID, id sandbox.ID) ([]Snapshot, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+snapshotColumns+` FROM rootfs_snapshots
		WHERE team_id = $1 AND sandbox_id = $2 AND state = 'ready' ORDER BY created_at DESC, id LIMIT $3`, team, id, maxSnapshots)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Snapshot])
	return list, classify(err, "reading a sandbox's snapshots")
}

// EndSnapshot decides that a snapshot of a team goes. Until its node has been told, which
// is this caller's for so long, the row stays.
func (s *Store) EndSnapshot(ctx context.Context, team, id uuid.UUID, lease time.Duration) (Snapshot, error) {
	rows, _ := s.pool.Query(ctx, `UPDATE rootfs_snapshots SET state = 'deleting', lease_until = now() + $3::interval
		WHERE team_id = $1 AND id = $2 AND state = 'ready' RETURNING `+snapshotColumns, team, id, lease)
	snap, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Snapshot])
	return snap, found(err, "deleting a snapshot", "snapshot")
}

// AbandonSnapshot decides that one goes that could not be made.
func (s *Store) AbandonSnapshot(ctx context.Context, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, "UPDATE rootfs_snapshots SET state = 'deleting', lease_until = now() WHERE id = $1 AND state = 'creating'", id)
	return classify(err, "giving up a snapshot")
}

// LeaseSnapshots hands out at most limit snapshots, of any team, for this caller to have
// them removed: what is deleted, has expired, was never finished, or is a deleted team's.
// One that is not removed is handed out again after lease.
func (s *Store) LeaseSnapshots(ctx context.Context, lease time.Duration, limit int) ([]Snapshot, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE rootfs_snapshots SET state = 'deleting', lease_until = now() + $1::interval
		WHERE id IN (
			SELECT id FROM rootfs_snapshots WHERE (
				least(expires_at, lease_until) <= now() AND (lease_until <= now() OR state = 'ready')
				OR state = 'ready' AND team_id IN (SELECT team_id FROM deleted_teams))
			LIMIT $2 FOR UPDATE SKIP LOCKED)
		RETURNING `+snapshotColumns, lease, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Snapshot])
	return list, classify(err, "looking for snapshots to remove")
}

// RemoveSnapshot forgets a snapshot that its node does not have any more.
func (s *Store) RemoveSnapshot(ctx context.Context, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, "DELETE FROM rootfs_snapshots WHERE id = $1 AND state = 'deleting'", id)
	return classify(err, "removing a snapshot")
}

// SetRestored records that a paused sandbox has become what a snapshot was, as this
// generation. It reports false when the row was something else by then.
func (s *Store) SetRestored(ctx context.Context, read Sandbox, gen sandbox.Generation, snapshot uuid.UUID) (Sandbox, bool, error) {
	return s.changed(ctx, "recording a restore", `
		UPDATE sandboxes SET generation = $4, snapshot_id = $5, updated_at = now()
		WHERE team_id = $1 AND id = $2 AND claim_id = $3 AND generation <= $4 AND deleted_at IS NULL AND status = 'paused'`,
		read.TeamID, read.ID, read.ClaimID, gen, snapshot)
}
