package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
)

// Capture is the making of a template's image from a sandbox.
type Capture struct {
	SandboxID   string
	State       string // one of the states below
	Stage       string // what is being done, or was when it failed
	StartedAt   time.Time
	CapturedAt  *time.Time // when the sandbox's files were read
	CompletedAt *time.Time
	Image       string // by digest, once it is published
	Message     string // why it failed, for tenants
}

// The states and stages of a capture.
const (
	CaptureCreating = "creating"
	CaptureReady    = "ready"
	CaptureFailed   = "failed"

	StageCapturing   = "capturing"
	StagePublishing  = "publishing"
	StageReconciling = "reconciling"
)

// NewCapture is a template whose image is to be made from a sandbox.
type NewCapture struct {
	TeamID, UserID uuid.UUID
	TemplateID     string
	SandboxID      string
	Spec           json.RawMessage // with the image that the sandbox began with
	Lease          time.Duration   // until it has failed unless somebody renews it
}

// BeginCapture stores a template that is being made.
func (s *Store) BeginCapture(ctx context.Context, n NewCapture) (t Template, err error) {
	err = s.inTx(ctx, "creating a template", func(ctx context.Context, tx pgx.Tx) error {
		id, err := insertTemplate(ctx, tx, n.TeamID, n.UserID, n.TemplateID, n.Spec)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO template_captures (template_id, sandbox_id, state, stage, lease_until)
			VALUES ($1, $2, 'creating', 'capturing', now() + $3::interval)`, id, n.SandboxID, n.Lease)
		if err == nil {
			t, err = readTemplate(ctx, tx, id)
		}
		return err
	})
	return t, err
}

// errCaptureOver says that a capture is nobody's work any more: its template was
// deleted, or its lease ran out.
var errCaptureOver = errdefs.New(errdefs.Conflict, "the template is not being made any more")

// RenewCapture keeps a capture alive and says how far it is.
func (s *Store) RenewCapture(ctx context.Context, id uuid.UUID, stage string, lease time.Duration) error {
	tag, err := s.pool.Exec(ctx, `UPDATE template_captures SET stage = $2, lease_until = now() + $3::interval,
		captured_at = CASE WHEN $2 = 'capturing' THEN NULL ELSE coalesce(captured_at, now()) END
		WHERE template_id = $1 AND state = 'creating' AND lease_until >= now()`, id, stage, lease)
	if err == nil && tag.RowsAffected() == 0 {
		return errCaptureOver
	}
	return classify(err, "renewing a template's lease")
}

// FinishCapture makes the template what sandboxes may be made from: image is its
// image from now on.
func (s *Store) FinishCapture(ctx context.Context, id uuid.UUID, image string) error {
	return s.endCapture(ctx, id, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE template_captures SET state = 'ready', stage = 'reconciling', completed_at = now(), image = $2
			WHERE template_id = $1`, id, image)
		if err == nil {
			_, err = tx.Exec(ctx, `UPDATE templates SET spec = jsonb_set(spec, '{mainContainer,image}', to_jsonb($2::text)), updated_at = now()
				WHERE id = $1`, id, image)
		}
		return err
	})
}

// FailCapture says why a template's image could not be made.
func (s *Store) FailCapture(ctx context.Context, id uuid.UUID, message string) error {
	return s.endCapture(ctx, id, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE template_captures SET state = 'failed', completed_at = now(), message = $2 WHERE template_id = $1", id, message)
		if err == nil {
			_, err = tx.Exec(ctx, "UPDATE templates SET updated_at = now() WHERE id = $1", id)
		}
		return err
	})
}

// endCapture ends a capture that is under way.
func (s *Store) endCapture(ctx context.Context, id uuid.UUID, end func(context.Context, pgx.Tx) error) error {
	return s.inTx(ctx, "ending a template's making", func(ctx context.Context, tx pgx.Tx) error {
		// The template first, as whoever deletes it does: its capture goes with it.
		if _, err := tx.Exec(ctx, "SELECT FROM templates WHERE id = $1 FOR NO KEY UPDATE", id); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, "SELECT FROM template_captures WHERE template_id = $1 AND state = 'creating' AND lease_until >= now() FOR UPDATE", id)
		if err == nil && tag.RowsAffected() == 0 {
			err = errCaptureOver
		}
		if err != nil {
			return err
		}
		return end(ctx, tx)
	})
}
