package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// SetStored records what a node says of a sandbox that is paused there, of any team:
// the generation of its image in the object store, 0 while that has none. gen is the
// generation that the node means by it. It reports false when the row knows already, or is
// something else by now.
func (s *Store) SetStored(ctx context.Context, node string, id sandbox.ID, claim string, gen, stored sandbox.Generation) (bool, error) {
	tag, err := s.pool.Exec(ctx, `
		UPDATE sandboxes SET stored_generation = nullif($5::bigint, 0)
		WHERE node = $1 AND id = $2 AND claim_id::text = $3 AND generation = $4 AND status = 'paused' AND deleted_at IS NULL
		AND stored_generation IS DISTINCT FROM nullif($5::bigint, 0)`, node, id, claim, gen, stored)
	return tag.RowsAffected() == 1, classify(err, "recording a stored image")
}

// Move decides that another node resumes a sandbox whose resume this attempt began, and
// which is in the object store. The row's new generation is later than what its node until
// now has or may have begun. It reports false when the row has changed since it was read.
func (s *Store) Move(ctx context.Context, begun Sandbox, by uuid.UUID, node string) (Sandbox, bool, error) {
	return s.changed(ctx, "moving a sandbox to another node", `
		UPDATE sandboxes SET node = $5, generation = generation + 2, updated_at = now()
		WHERE team_id = $1 AND id = $2 AND resume_by = $3 AND generation = $4 AND node <> $5
		AND status = 'starting' AND stored_generation IS NOT NULL AND deleted_at IS NULL`,
		begun.TeamID, begun.ID, by, begun.Generation, node)
}

// GiveUpResume has a sandbox in the object store paused again whose resume nobody is at any
// more.
func (s *Store) GiveUpResume(ctx context.Context, row Sandbox) error {
	_, _, err := s.changed(ctx, "giving up a resume", `
		UPDATE sandboxes SET status = 'paused', updated_at = now()
		WHERE team_id = $1 AND id = $2 AND claim_id = $3 AND deleted_at IS NULL AND `+givenUp, row.TeamID, row.ID, row.ClaimID)
	return err
}

// LeaseUnwantedImages hands out at most limit sandboxes of any team, tombstones among
// them, that have images in the object store, or may have, which nobody wants: all of
// them of a sandbox that is deleted, those of earlier generations of one that runs. One
// whose images are not removed is handed out again after lease.
func (s *Store) LeaseUnwantedImages(ctx context.Context, lease time.Duration, limit int) ([]Sandbox, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE sandboxes SET images_due = now() + $1::interval
		WHERE id IN (
			SELECT id FROM sandboxes
			WHERE images_due <= now() AND (deleted_at IS NOT NULL OR status = 'running')
			ORDER BY images_due LIMIT $2
			FOR UPDATE SKIP LOCKED)
		RETURNING `+sandboxColumns, lease, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	return list, classify(err, "looking for images that nobody wants")
}

// ImagesRemoved records that they are gone. A sandbox that was paused again meanwhile has
// new ones to look for.
func (s *Store) ImagesRemoved(ctx context.Context, team uuid.UUID, read Sandbox) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE sandboxes SET images_due = NULL
		WHERE team_id = $1 AND id = $2 AND status = $3 AND generation = $4`, team, read.ID, read.Status, read.Generation)
	return classify(err, "recording that images are removed")
}
