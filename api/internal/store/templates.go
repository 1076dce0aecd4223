package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

// Template is what sandboxes are made from.
type Template struct {
	ID          uuid.UUID // never shown: a name may be used again, an ID is not
	TemplateID  string
	TeamID      *uuid.UUID // nil: public
	UserID      *uuid.UUID
	Spec        json.RawMessage
	CreatedAt   time.Time
	UpdatedAt   time.Time
	Unavailable string   // why nothing can be made from it, for tenants; empty: something can
	Capture     *Capture // how its image is made from a sandbox; nil: it is not
	Digest      string   // which image its reference means; empty: it could not be asked for yet
}

const templateColumns = `id, template_id, team_id, user_id, spec, created_at, updated_at, unavailable,
	capture_sandbox, capture_state, capture_stage, started_at, captured_at, completed_at, capture_image, capture_message, digest`

func scanTemplate(row pgx.CollectableRow) (t Template, err error) {
	var sandbox, state, stage, image, message *string
	var c Capture
	var started *time.Time
	err = row.Scan(&t.ID, &t.TemplateID, &t.TeamID, &t.UserID, &t.Spec, &t.CreatedAt, &t.UpdatedAt, &t.Unavailable,
		&sandbox, &state, &stage, &started, &c.CapturedAt, &c.CompletedAt, &image, &message, &t.Digest)
	if err == nil && sandbox != nil {
		c.SandboxID, c.State, c.Stage, c.StartedAt, c.Image, c.Message = *sandbox, *state, *stage, *started, *image, *message
		t.Capture = &c
	}
	return t, err
}

// PutPublicTemplate makes or replaces a public template; an equal one is left
// alone. Unavailable says why nothing can be made from it, or nothing.
func (s *Store) PutPublicTemplate(ctx context.Context, templateID string, spec json.RawMessage, unavailable string) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO templates (template_id, spec, unavailable) VALUES ($1, $2, nullif($3, ''))
		ON CONFLICT (template_id) WHERE team_id IS NULL
		DO UPDATE SET spec = excluded.spec, unavailable = excluded.unavailable, updated_at = now()
		WHERE templates.spec <> excluded.spec OR templates.unavailable IS DISTINCT FROM excluded.unavailable`, templateID, spec, unavailable)
	return classify(err, "storing a public template")
}

// AllTemplates reads every team's templates, for the pools and the cache of the
// control plane.
func (s *Store) AllTemplates(ctx context.Context) ([]Template, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+templateColumns+" FROM template_rows ORDER BY id")
	all, err := pgx.CollectRows(rows, scanTemplate)
	return all, classify(err, "reading templates")
}

// Templates lists what a team can use: its own, then the public ones, for which
// the team's own always leave room.
func (s *Store) Templates(ctx context.Context, team uuid.UUID) ([]Template, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+templateColumns+` FROM template_rows
		WHERE team_id = $1 OR team_id IS NULL
		ORDER BY team_id NULLS LAST, created_at, template_id LIMIT $2`, team, 2*maxOfTeam)
	all, err := pgx.CollectRows(rows, scanTemplate)
	return all, classify(err, "listing templates")
}

// Template finds the template that a team means by a name: its own before the public one.
func (s *Store) Template(ctx context.Context, team uuid.UUID, templateID string) (Template, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+templateColumns+` FROM template_rows
		WHERE (team_id = $1 OR team_id IS NULL) AND template_id = $2
		ORDER BY team_id NULLS LAST LIMIT 1`, team, templateID)
	t, err := pgx.CollectExactlyOneRow(rows, scanTemplate)
	return t, found(err, "reading a template", "template")
}

// CreateTemplate stores a team's template; a name that the team uses already is
// a conflict, and so is one too many.
func (s *Store) CreateTemplate(ctx context.Context, team, user uuid.UUID, templateID string, spec json.RawMessage) (t Template, err error) {
	err = s.inTx(ctx, "creating a template", func(ctx context.Context, tx pgx.Tx) error {
		id, err := insertTemplate(ctx, tx, team, user, templateID, spec)
		if err == nil {
			t, err = readTemplate(ctx, tx, id)
		}
		return err
	})
	return t, err
}

func insertTemplate(ctx context.Context, tx pgx.Tx, team, user uuid.UUID, templateID string, spec json.RawMessage) (id uuid.UUID, err error) {
	audit.Resource(ctx, templateID)
	if err := room(ctx, tx, team, "templates", "templates"); err != nil {
		return id, err
	}
	err = tx.QueryRow(ctx, "INSERT INTO templates (template_id, team_id, user_id, spec) VALUES ($1, $2, $3, $4) RETURNING id",
		templateID, team, user, spec).Scan(&id)
	if violates(err, "templates_team") {
		err = errdefs.New(errdefs.Conflict, "template already exists")
	}
	return id, err
}

func readTemplate(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Template, error) {
	rows, _ := tx.Query(ctx, "SELECT "+templateColumns+" FROM template_rows WHERE id = $1", id)
	return pgx.CollectExactlyOneRow(rows, scanTemplate)
}

// UpdateTemplate replaces the spec of a team's own template. While its image is
// being made, that is a conflict.
func (s *Store) UpdateTemplate(ctx context.Context, team uuid.UUID, templateID string, spec json.RawMessage) (t Template, err error) {
	err = s.inTx(ctx, "updating a template", func(ctx context.Context, tx pgx.Tx) error {
		var id uuid.UUID
		err := tx.QueryRow(ctx, `UPDATE templates SET spec = $3, updated_at = now() WHERE team_id = $1 AND template_id = $2 RETURNING id`,
			team, templateID, spec).Scan(&id)
		if err != nil {
			return found(err, "updating a template", "template")
		}
		if t, err = readTemplate(ctx, tx, id); err == nil && t.Capture != nil && t.Capture.State == CaptureCreating {
			err = errdefs.New(errdefs.Conflict, "the template is still being made: wait until it is ready, or delete it")
		}
		return err
	})
	return t, err
}

// DeleteTemplate forgets a team's own template.
func (s *Store) DeleteTemplate(ctx context.Context, team uuid.UUID, templateID string) error {
	tag, err := s.pool.Exec(ctx, "DELETE FROM templates WHERE team_id = $1 AND template_id = $2", team, templateID)
	if err == nil && tag.RowsAffected() == 0 {
		return notFound("template")
	}
	return classify(err, "deleting a template")
}
