package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// BeginDelete decides that a sandbox ends: from here on it only goes away.
// Repeating it is fine.
func (s *Store) BeginDelete(ctx context.Context, team uuid.UUID, id sandbox.ID, reason string) (Sandbox, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE sandboxes SET status = 'terminating',
			reason = CASE WHEN status = 'terminating' THEN reason ELSE $3 END, updated_at = now()
		WHERE team_id = $1 AND id = $2 AND deleted_at IS NULL
		RETURNING `+sandboxColumns, team, id, reason)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
	return sb, found(err, "deleting a sandbox", "sandbox")
}

// ExpireSandboxes decides the end of at most limit sandboxes, of any team, whose hard
// ttl is over by the database's clock, or whose ttl is and which failed. A row that
// another replica or a refresh holds at this moment is left for the next call (G02).
func (s *Store) ExpireSandboxes(ctx context.Context, limit int) ([]Sandbox, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE sandboxes SET status = 'terminating', updated_at = now(),
			reason = CASE WHEN hard_expires_at <= now() THEN 'hard_ttl expired' ELSE 'ttl expired' END
		WHERE id IN (
			SELECT id FROM sandboxes
			WHERE deleted_at IS NULL AND least(expires_at, hard_expires_at) <= now() AND status <> 'terminating'
			AND (hard_expires_at <= now() OR status = 'failed')
			ORDER BY least(expires_at, hard_expires_at) LIMIT $1
			FOR UPDATE SKIP LOCKED)
		RETURNING `+sandboxColumns, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	return list, classify(err, "expiring sandboxes")
}

// FinishDelete turns the row of an ended sandbox into a tombstone.
func (s *Store) FinishDelete(ctx context.Context, team uuid.UUID, id sandbox.ID, claim uuid.UUID) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE sandboxes SET deleted_at = now(), updated_at = now()
		WHERE team_id = $1 AND id = $2 AND claim_id = $3 AND status = 'terminating' AND deleted_at IS NULL`, team, id, claim)
	return classify(err, "finishing a delete")
}

// FailSandbox records that this instance of a sandbox ended by itself, or that its node
// has lost what it had saved of it. gen is the generation that its node knows, which may
// have gone on while nothing could be recorded; 0: none. It reports false when the row was
// something else by then.
func (s *Store) FailSandbox(ctx context.Context, team uuid.UUID, read Sandbox, gen sandbox.Generation, reason string) (bool, error) {
	tag, err := s.pool.Exec(ctx, `
		UPDATE sandboxes SET status = 'failed', generation = greatest(generation, $6), reason = $5, updated_at = now()
		WHERE team_id = $1 AND id = $2 AND claim_id = $3 AND generation = $4
		AND deleted_at IS NULL AND status IN ('starting', 'running', 'paused')`, team, read.ID, read.ClaimID, read.Generation, reason, gen)
	return tag.RowsAffected() == 1, classify(err, "recording a failure")
}

// AnySandbox reads a row of any team, tombstones included, for the control
// plane alone: a node names sandboxes without their team being trusted.
func (s *Store) AnySandbox(ctx context.Context, id sandbox.ID) (Sandbox, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE id = $1", id)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
	return sb, found(err, "reading a sandbox", "sandbox")
}

// NodeRow is what reconciliation compares of a row, of all rows again and again.
type NodeRow struct {
	ID         sandbox.ID
	TeamID     uuid.UUID
	ClaimID    uuid.UUID
	Generation sandbox.Generation
	Status     sandbox.State
	Stored     bool // there is an image of it in the object store
	Settled    bool // it has been as it is for some time
}

// SandboxesOn pages through the rows of every team that say that a node has
// them, by id, for reconciliation. A row is settled when it has not changed for
// that long: a younger one's node may not have told about it yet.
func (s *Store) SandboxesOn(ctx context.Context, node string, after sandbox.ID, settled time.Duration, limit int) ([]NodeRow, error) {
	rows, _ := s.pool.Query(ctx, `SELECT id, team_id, claim_id, generation, status, stored_generation IS NOT NULL, updated_at <= now() - $3::interval
		FROM sandboxes WHERE node = $1 AND deleted_at IS NULL AND id > $2 ORDER BY id LIMIT $4`, node, after, settled, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[NodeRow])
	return list, classify(err, "reading a node's sandboxes")
}

// PurgeDeleted forgets tombstones older than age that were metered, whose end the last
// webhook was told of, and whose images are gone from the object store. Those that
// nobody removes for a month are given up: there is no object store any more.
func (s *Store) PurgeDeleted(ctx context.Context, age time.Duration) error {
	return s.purge(ctx, "purging tombstones", `DELETE FROM sandboxes WHERE id IN (
		SELECT id FROM sandboxes WHERE deleted_at < now() - $1::interval
		AND claimed_at < (SELECT events_until FROM metering_progress)
		AND (images_due IS NULL OR deleted_at < now() - interval '30 days')
		AND NOT EXISTS (SELECT FROM sandbox_webhooks w WHERE w.sandbox_id = id AND coalesce(w.leased_until, w.wake_at) IS NOT NULL)
		LIMIT $2)`, age)
}

// purgeBatch is what a statement deletes well within its timeout. One that took
// all of a long backlog would run into it, every time.
const purgeBatch = 1_000

// purge repeats a DELETE of at most $2 rows older than $1 until there are none.
func (s *Store) purge(ctx context.Context, doing, sql string, age time.Duration) error {
	for {
		tag, err := s.pool.Exec(ctx, sql, age, purgeBatch)
		if err != nil || tag.RowsAffected() < purgeBatch {
			return classify(err, doing)
		}
	}
}
