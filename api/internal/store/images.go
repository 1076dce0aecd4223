package store

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
	"s0.run/internal/regauth"
)

// RegistryPrefix is what the names of a team's images begin with. It is given
// once, when somebody first asks, and is the team's alone: should its short one
// be another's, it gets a longer one.
func (s *Store) RegistryPrefix(ctx context.Context, team uuid.UUID) (string, error) {
	for _, digits := range []int{8, 16, 40} {
		var prefix string
		// The insert does nothing where the prefix is another team's, or the team has one.
		err := s.pool.QueryRow(ctx, `
			WITH given AS (
				INSERT INTO registry_prefixes (team_id, prefix) VALUES ($1, $2)
				ON CONFLICT DO NOTHING RETURNING prefix)
			SELECT coalesce(
				(SELECT prefix FROM registry_prefixes WHERE team_id = $1),
				(SELECT prefix FROM given), '')`, team, regauth.LongTeamPrefix(team.String(), digits)).Scan(&prefix)
		if err != nil {
			return "", classify(err, "reading a registry prefix")
		}
		if prefix != "" {
			return prefix, nil
		}
	}
	return "", errdefs.New(errdefs.Internal, "no registry prefix is left for team %s", team)
}

// PinTemplate says which image a template's reference means from now on. The pins
// of what it named before are forgotten.
func (s *Store) PinTemplate(ctx context.Context, team *uuid.UUID, template uuid.UUID, image, digest string) error {
	_, err := s.pool.Exec(ctx, `
		WITH t AS (
			UPDATE templates SET template_id = template_id -- which tells every server
			WHERE id = $2 AND team_id IS NOT DISTINCT FROM $1 RETURNING id, spec->'mainContainer'->>'image' AS image),
		gone AS (DELETE FROM template_pins p USING t WHERE p.template_id = t.id AND p.image NOT IN ($3, t.image))
		INSERT INTO template_pins (template_id, image, digest) SELECT id, $3, $4 FROM t
		ON CONFLICT (template_id, image) DO UPDATE SET digest = excluded.digest, pinned_at = now()`, team, template, image, digest)
	return classify(err, "pinning a template's image")
}

// UsedImages lists the references of all templates, each with its digest where it
// is known: every image that a pool or a claim may want from a registry.
func (s *Store) UsedImages(ctx context.Context) (refs []ImageRef, err error) {
	rows, _ := s.pool.Query(ctx, `
		SELECT coalesce(spec->'mainContainer'->>'image', ''), digest FROM template_rows
		UNION SELECT capture_image, '' FROM template_rows WHERE capture_image <> ''`)
	refs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[ImageRef])
	return refs, classify(err, "reading the images in use")
}

// ImageRef is an image as a template names it, and which it is; Digest is empty
// where nobody knows.
type ImageRef struct{ Image, Digest string }
