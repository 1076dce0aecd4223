package store

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// ExposedSandbox is what has to be known of a sandbox to serve what it exposes.
type ExposedSandbox struct {
	TeamID     uuid.UUID
	Status     sandbox.State
	Generation sandbox.Generation
	Config     json.RawMessage // the parts about services alone
}

// ExposedSandbox reads a sandbox by its id alone, as no other method does: a
// public address names no team, and what its answer may show is in the config.
func (s *Store) ExposedSandbox(ctx context.Context, id sandbox.ID) (ExposedSandbox, error) {
	rows, _ := s.pool.Query(ctx, `
		SELECT team_id, status, generation, jsonb_build_object(
			'services', config -> 'services', 'exposed_ports', config -> 'exposed_ports', 'auto_resume', config -> 'auto_resume')
		FROM sandboxes WHERE id = $1 AND deleted_at IS NULL`, id)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[ExposedSandbox])
	return sb, found(err, "reading what a sandbox exposes", "sandbox")
}
