package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/sandbox"
)

// Sandbox is an acknowledged sandbox. See migrations/0003_sandboxes.sql for
// its states.
type Sandbox struct {
	ID             sandbox.ID
	TeamID         uuid.UUID
	UserID         uuid.UUID
	ClaimID        uuid.UUID
	TemplateID     string
	Node           string
	Generation     sandbox.Generation
	Status         sandbox.State
	Reason         string
	Config         json.RawMessage
	MemoryBytes    int64
	TTLSeconds     int32
	HardTTLSeconds int32
	ExpiresAt      *time.Time
	HardExpiresAt  *time.Time
	RequestHash    []byte
	ClaimedAt      time.Time
	CreatedAt      time.Time
	UpdatedAt      time.Time
	DeletedAt      *time.Time
	// Stored is the image in the object store that the sandbox is, if it is paused and
	// there is one: see migrations/0015_objects.sql.
	Stored *sandbox.Generation
}

const sandboxColumns = `id, team_id, user_id, claim_id, template_id, node, generation, status, reason, config,
	memory_bytes, ttl_seconds, hard_ttl_seconds, expires_at, hard_expires_at, request_hash,
	claimed_at, created_at, updated_at, deleted_at, stored_generation`

// listColumns leave the config out: a function's code makes it large, and who
// reads many rows at once needs none.
var listColumns = strings.Replace(sandboxColumns, "config", "'{}'::jsonb", 1)

// NewSandbox is what a claim stores. Without an IdempotencyKey, RequestHash is nil.
type NewSandbox struct {
	ID             sandbox.ID
	TeamID         uuid.UUID
	UserID         uuid.UUID
	ClaimID        uuid.UUID
	TemplateID     string
	Node           string
	Generation     sandbox.Generation
	Config         json.RawMessage
	MemoryBytes    int64
	TTLSeconds     int32
	HardTTLSeconds int32
	IdempotencyKey string
	RequestHash    []byte
	SnapshotID     uuid.UUID     // that it begins with; uuid.Nil: none
	Webhook        *NewWebhook   // nil: none
	Mounts         int           // volumes that its claim has taken and the sandbox shall have
	Audit          *audit.Record // of the call that claims; nil: nobody's
}

// Why a claim's row could not be stored.
var (
	ErrIDTaken  = errors.New("another claim has a row with this sandbox id")
	ErrKeyTaken = errors.New("another claim has used this idempotency key")
)

// InsertSandbox stores a claim's row. Repeating it with the same claim id
// answers the same row, so that a write of unknown outcome is resolved by
// writing again. It fails with [ErrIDTaken] or [ErrKeyTaken].
func (s *Store) InsertSandbox(ctx context.Context, n NewSandbox) (Sandbox, error) {
	if n.Mounts > 0 {
		return insertMounted(ctx, s.conns, n)
	}
	return insertSandbox(ctx, s.pool, n)
}

func insertSandbox(ctx context.Context, q querier, n NewSandbox) (Sandbox, error) {
	const doing = "storing a claim"
	for range insertAttempts {
		sql, args := n.insertion()
		rows, _ := q.Query(ctx, sql, args...)
		in, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[inserted])
		switch {
		case err == nil:
			return n.stored(in), nil
		case !errors.Is(err, pgx.ErrNoRows):
			return Sandbox{}, classify(err, doing)
		}
		rows, _ = q.Query(ctx, "SELECT "+sandboxColumns+` FROM sandboxes
			WHERE id = $1 OR team_id = $2 AND idempotency_key = nullif($3, '')
			ORDER BY id = $1 DESC LIMIT 1`, n.ID, n.TeamID, n.IdempotencyKey)
		existing, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
		switch {
		case errors.Is(err, pgx.ErrNoRows): // the other row is gone again
		case err != nil:
			return Sandbox{}, classify(err, doing)
		case existing.ClaimID == n.ClaimID:
			return existing, nil
		case existing.ID == n.ID:
			return Sandbox{}, ErrIDTaken
		default:
			return Sandbox{}, ErrKeyTaken
		}
	}
	return Sandbox{}, fmt.Errorf("%s: sandbox %s conflicts with rows that come and go", doing, n.ID)
}

// insertAttempts bounds how often a row may be in the way and gone a moment later.
const insertAttempts = 5

// TakeOver stores the row of the claim that the node gave the sandbox to, in
// place of the row of a claim that lost it.
func (s *Store) TakeOver(ctx context.Context, n NewSandbox) (Sandbox, error) {
	var taken Sandbox
	err := s.inTx(ctx, "taking over a claim", func(ctx context.Context, tx pgx.Tx) error {
		// The row, then both teams' counts, in the order in which everybody takes them: two
		// that take over from each other, or who changes the row, must not wait for each other.
		if _, err := tx.Exec(ctx, "SELECT FROM sandboxes WHERE id = $1 FOR UPDATE", n.ID); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT FROM team_usage
			WHERE team_id = $1 OR team_id = (SELECT team_id FROM sandboxes WHERE id = $2) ORDER BY team_id FOR UPDATE`, n.TeamID, n.ID)
		if err != nil {
			return err
		}
		if err := removeRow(ctx, tx, n.ID, "claim_id <> $2", n.ClaimID); err != nil {
			return err
		}
		taken, err = insertSandbox(ctx, tx, n)
		if err == nil && n.Mounts > 0 {
			err = bindMounts(ctx, tx, n)
		}
		return err
	})
	return taken, err
}

// RemoveClaim removes the row of a claim that was never acknowledged, with what
// happened to it.
func (s *Store) RemoveClaim(ctx context.Context, id sandbox.ID, claim uuid.UUID) error {
	return s.inTx(ctx, "removing a claim", func(ctx context.Context, tx pgx.Tx) error {
		return removeRow(ctx, tx, id, "claim_id = $2", claim)
	})
}

// removeRow removes a sandbox's row if it is of such a claim, with what happened to it:
// that goes after the row, by when whoever stored an event of it has committed. One
// statement for both would not see what was stored while it waited for the row.
func removeRow(ctx context.Context, tx pgx.Tx, id sandbox.ID, ofClaim string, claim uuid.UUID) error {
	tag, err := tx.Exec(ctx, "DELETE FROM sandboxes WHERE id = $1 AND "+ofClaim, id, claim)
	if err != nil || tag.RowsAffected() == 0 {
		return err
	}
	_, err = tx.Exec(ctx, "DELETE FROM sandbox_events WHERE sandbox_id = $1", id)
	return err
}

// ClaimByKey reads what an earlier claim with the same idempotency key made,
// also when it has been deleted since.
func (s *Store) ClaimByKey(ctx context.Context, team uuid.UUID, key string) (Sandbox, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE team_id = $1 AND idempotency_key = $2", team, key)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
	return sb, found(err, "reading a claim by its key", "claim")
}

// Sandbox reads one sandbox of a team.
func (s *Store) Sandbox(ctx context.Context, team uuid.UUID, id sandbox.ID) (Sandbox, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE team_id = $1 AND id = $2 AND deleted_at IS NULL", team, id)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
	return sb, found(err, "reading a sandbox", "sandbox")
}

// SandboxUpdate changes a sandbox's config; nil leaves a value alone.
type SandboxUpdate struct {
	Config      json.RawMessage // its keys replace the config's
	MemoryBytes *int64
	TTL         *int32
	HardTTL     *int32
}

// UpdateSandbox changes the row that the caller read last (by its UpdatedAt). It
// fails with a conflict when the row changed since or ends.
func (s *Store) UpdateSandbox(ctx context.Context, team uuid.UUID, read Sandbox, u SandboxUpdate) (Sandbox, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE sandboxes SET
			config = config || $4,
			memory_bytes = coalesce($5, memory_bytes),
			ttl_seconds = coalesce($6, ttl_seconds),
			hard_ttl_seconds = coalesce($7, hard_ttl_seconds),
			expires_at = CASE WHEN $6::integer IS NULL THEN expires_at
				WHEN $6 > 0 THEN now() + make_interval(secs => $6) END,
			hard_expires_at = CASE WHEN $7::integer IS NULL THEN hard_expires_at
				WHEN $7 > 0 THEN now() + make_interval(secs => $7) END,
			updated_at = now()
		WHERE team_id = $1 AND id = $2 AND updated_at = $3 AND deleted_at IS NULL AND status <> 'terminating'
		RETURNING `+sandboxColumns,
		team, read.ID, read.UpdatedAt, u.Config, u.MemoryBytes, u.TTL, u.HardTTL)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
	if errors.Is(err, pgx.ErrNoRows) {
		return Sandbox{}, ErrChanged
	}
	return sb, classify(err, "updating a sandbox")
}

// ErrChanged is returned when a row is no longer what the caller read.
var ErrChanged = errors.New("the row has changed")

// RefreshSandbox starts the ttl and the hard ttl again from now; a ttl that is
// not nil takes the place of the sandbox's own for this once.
func (s *Store) RefreshSandbox(ctx context.Context, team uuid.UUID, id sandbox.ID, ttl *int32) (Sandbox, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE sandboxes SET
			expires_at = CASE WHEN coalesce($3, ttl_seconds) > 0
				THEN now() + make_interval(secs => coalesce($3, ttl_seconds)) END,
			hard_expires_at = CASE WHEN hard_ttl_seconds > 0 THEN now() + make_interval(secs => hard_ttl_seconds) END,
			updated_at = now()
		WHERE team_id = $1 AND id = $2 AND deleted_at IS NULL AND status <> 'terminating'
		RETURNING `+sandboxColumns, team, id, ttl)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
	return sb, found(err, "refreshing a sandbox", "sandbox")
}
