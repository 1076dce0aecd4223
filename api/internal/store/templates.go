package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
)

// Template is what sandboxes are made from.
type Template struct {
	ID         uuid.UUID // never shown: a name may be used again, an ID is not
	TemplateID string
	TeamID     *uuid.UUID // nil: public
	UserID     *uuid.UUID
	Spec       json.RawMessage
	CreatedAt  time.Time
	UpdatedAt  time.Time
}

const templateColumns = "id, template_id, team_id, user_id, spec, created_at, updated_at"

// PutPublicTemplate makes or replaces a public template; an equal one is left alone.
func (s *Store) PutPublicTemplate(ctx context.Context, templateID string, spec json.RawMessage) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO templates (template_id, spec) VALUES ($1, $2)
		ON CONFLICT (template_id) WHERE team_id IS NULL
		DO UPDATE SET spec = excluded.spec, updated_at = now() WHERE templates.spec <> excluded.spec`, templateID, spec)
	return classify(err, "storing a public template")
}

// AllTemplates reads every team's templates, for the pools and the cache of the
// control plane.
func (s *Store) AllTemplates(ctx context.Context) ([]Template, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+templateColumns+" FROM templates ORDER BY id")
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Template])
	return all, classify(err, "reading templates")
}

// Templates lists what a team can use: its own, then the public ones, for which
// the team's own always leave room.
func (s *Store) Templates(ctx context.Context, team uuid.UUID) ([]Template, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+templateColumns+` FROM templates
		WHERE team_id = $1 OR team_id IS NULL
		ORDER BY team_id NULLS LAST, created_at, template_id LIMIT $2`, team, 2*maxOfTeam)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Template])
	return all, classify(err, "listing templates")
}

// Template finds the template that a team means by a name: its own before the public one.
func (s *Store) Template(ctx context.Context, team uuid.UUID, templateID string) (Template, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+templateColumns+` FROM templates
		WHERE (team_id = $1 OR team_id IS NULL) AND template_id = $2
		ORDER BY team_id NULLS LAST LIMIT 1`, team, templateID)
	t, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Template])
	return t, found(err, "reading a template", "template")
}

// CreateTemplate stores a team's template; a name that the team uses already is
// a conflict, and so is one too many.
func (s *Store) CreateTemplate(ctx context.Context, team, user uuid.UUID, templateID string, spec json.RawMessage) (t Template, err error) {
	err = s.inTx(ctx, "creating a template", func(ctx context.Context, tx pgx.Tx) error {
		if err := room(ctx, tx, team, "templates", "templates"); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `
			INSERT INTO templates (template_id, team_id, user_id, spec) VALUES ($1, $2, $3, $4)
			RETURNING `+templateColumns, templateID, team, user, spec)
		t, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Template])
		if violates(err, "templates_team") {
			return errdefs.New(errdefs.Conflict, "template already exists")
		}
		return err
	})
	return t, err
}

// UpdateTemplate replaces the spec of a team's own template.
func (s *Store) UpdateTemplate(ctx context.Context, team uuid.UUID, templateID string, spec json.RawMessage) (Template, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE templates SET spec = $3, updated_at = now() WHERE team_id = $1 AND template_id = $2
		RETURNING `+templateColumns, team, templateID, spec)
	t, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Template])
	return t, found(err, "updating a template", "template")
}

// DeleteTemplate forgets a team's own template.
func (s *Store) DeleteTemplate(ctx context.Context, team uuid.UUID, templateID string) error {
	tag, err := s.pool.Exec(ctx, "DELETE FROM templates WHERE team_id = $1 AND template_id = $2", team, templateID)
	if err == nil && tag.RowsAffected() == 0 {
		return notFound("template")
	}
	return classify(err, "deleting a template")
}
