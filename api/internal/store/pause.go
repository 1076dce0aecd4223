package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// SetPaused records that an instance of a sandbox was saved by its node and runs no
// more. Its ttl begins again when it is resumed. It reports false when the row was
// something else by then, or knows this instance or a later one already.
func (s *Store) SetPaused(ctx context.Context, team uuid.UUID, id sandbox.ID, claim uuid.UUID, gen sandbox.Generation) (Sandbox, bool, error) {
	return s.changed(ctx, "recording a pause", `
		UPDATE sandboxes SET status = 'paused', generation = $4, updated_at = now(),
			expires_at = CASE WHEN status = 'starting' THEN expires_at END -- which whoever refreshed it meanwhile was told
		WHERE team_id = $1 AND id = $2 AND claim_id = $3 AND generation <= $4
		AND deleted_at IS NULL AND (status IN ('starting', 'running') OR status = 'paused' AND generation < $4)`, team, id, claim, gen)
}

// BeginResume decides that an attempt, by, lets a paused sandbox run, if its team's quota
// has room. One that is in the object store is the attempt's alone until lease is over
// ([Store.RenewResume]). It reports false when the sandbox is neither paused nor one that
// an attempt was given up of.
func (s *Store) BeginResume(ctx context.Context, team uuid.UUID, id sandbox.ID, by uuid.UUID, lease time.Duration) (Sandbox, bool, error) {
	return s.changed(ctx, "resuming a sandbox", `
		UPDATE sandboxes SET status = 'starting', updated_at = now(), resume_by = $3, resume_until = now() + $4::interval
		WHERE team_id = $1 AND id = $2 AND deleted_at IS NULL AND (status = 'paused' OR `+givenUp+`)`, team, id, by, lease)
}

// givenUp is what a sandbox in the object store is whose resume nobody is at. What older
// servers began has no lease, and is over after the longest that a resume may take.
const givenUp = `status = 'starting' AND stored_generation IS NOT NULL AND coalesce(resume_until, updated_at + interval '5 minutes') < now()`

// RenewResume says that an attempt to resume a sandbox goes on. It reports false when the
// sandbox is not the attempt's any more.
func (s *Store) RenewResume(ctx context.Context, id sandbox.ID, by uuid.UUID, lease time.Duration) (bool, error) {
	tag, err := s.pool.Exec(ctx, `
		UPDATE sandboxes SET resume_until = now() + $3::interval
		WHERE id = $1 AND resume_by = $2 AND status = 'starting' AND deleted_at IS NULL`, id, by, lease)
	return tag.RowsAffected() == 1, classify(err, "renewing a resume")
}

// EndResume records that an attempt to resume a sandbox has failed. If it is not that
// attempt's any more nothing changes.
func (s *Store) EndResume(ctx context.Context, row Sandbox, by uuid.UUID) error {
	_, _, err := s.changed(ctx, "ending a resume", `
		UPDATE sandboxes SET status = 'paused', updated_at = now()
		WHERE team_id = $1 AND id = $2 AND resume_by = $3 AND status = 'starting' AND deleted_at IS NULL`, row.TeamID, row.ID, by)
	return err
}

// SetExpired is SetPaused for a sandbox that [Store.LeaseSoftExpired] has handed out. It
// also reports false when its ttl was changed since: somebody was told that it goes on
// (G02).
func (s *Store) SetExpired(ctx context.Context, leased Sandbox, gen sandbox.Generation) (Sandbox, bool, error) {
	return s.changed(ctx, "recording the pause of a sandbox whose ttl is over", `
		UPDATE sandboxes SET status = 'paused', generation = $4, expires_at = NULL, updated_at = now()
		WHERE team_id = $1 AND id = $2 AND claim_id = $3 AND generation <= $4 AND expires_at = $5
		AND deleted_at IS NULL AND status = 'running'`, leased.TeamID, leased.ID, leased.ClaimID, gen, leased.ExpiresAt)
}

// SetResumed records that a node runs an instance of a sandbox that was paused, also if
// nobody has recorded the pause. Its ttl begins now, if whoever refreshed it meanwhile was
// not told of a later end, and the hard ttl of one that has never run before. It reports
// false when the row was something else by then, or knows this instance already: one that
// was paused runs as the next one, so that it ran as this is older news than the pause (R6).
func (s *Store) SetResumed(ctx context.Context, team uuid.UUID, id sandbox.ID, claim uuid.UUID, gen sandbox.Generation) (Sandbox, bool, error) {
	return s.changed(ctx, "recording a resume", `
		UPDATE sandboxes SET status = 'running', generation = $4, updated_at = now(),
			expires_at = greatest(expires_at, CASE WHEN ttl_seconds > 0 THEN now() + make_interval(secs => ttl_seconds) END),
			hard_expires_at = coalesce(hard_expires_at, CASE WHEN hard_ttl_seconds > 0 THEN now() + make_interval(secs => hard_ttl_seconds) END)
		WHERE team_id = $1 AND id = $2 AND claim_id = $3 AND generation < $4
		AND deleted_at IS NULL AND status IN ('starting', 'paused', 'running')`, team, id, claim, gen)
}

// changed runs an UPDATE of one sandbox that may not apply.
func (s *Store) changed(ctx context.Context, doing, sql string, args ...any) (Sandbox, bool, error) {
	rows, _ := s.pool.Query(ctx, sql+" RETURNING "+sandboxColumns, args...)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
	if errors.Is(err, pgx.ErrNoRows) {
		return Sandbox{}, false, nil
	}
	return sb, err == nil, classify(err, doing)
}

// LeaseSoftExpired hands out at most limit running sandboxes, of any team, whose ttl
// is over by the database's clock, for this caller to pause. One that it does not
// pause is handed out again after lease. A row that another replica or a refresh
// holds at this moment is left for the next call (G02).
func (s *Store) LeaseSoftExpired(ctx context.Context, lease time.Duration, limit int) ([]Sandbox, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE sandboxes SET expires_at = now() + $1::interval, updated_at = now()
		WHERE id IN (
			SELECT id FROM sandboxes
			WHERE deleted_at IS NULL AND least(expires_at, hard_expires_at) <= now() AND expires_at <= now() AND status = 'running'
			AND coalesce(hard_expires_at > now(), true)
			ORDER BY least(expires_at, hard_expires_at) LIMIT $2
			FOR UPDATE SKIP LOCKED)
		RETURNING `+sandboxColumns, lease, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	return list, classify(err, "looking for sandboxes whose ttl is over")
}
