package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
)

// APIKey is a key of a team. Its secret is known to its holder alone.
type APIKey struct {
	ID         uuid.UUID
	TeamID     uuid.UUID
	CreatedBy  uuid.UUID
	Name       string
	Scope      string
	Roles      []string
	Prefix     string
	Hash       []byte
	ExpiresAt  *time.Time // nil: never
	Active     bool       // not deactivated; it may have expired
	Expired    bool       // by the database's clock when it was read
	LastUsedAt *time.Time
	CreatedAt  time.Time
	UpdatedAt  time.Time
}

const apiKeyColumns = `id, team_id, created_by, name, scope, roles, prefix, hash, expires_at,
	deactivated_at IS NULL, coalesce(expires_at <= now(), false), last_used_at, created_at, updated_at`

// CreateAPIKey stores a key that expires after life, never when life is 0. A team
// that has too many is a conflict.
func (s *Store) CreateAPIKey(ctx context.Context, team uuid.UUID, k APIKey, life time.Duration) (created APIKey, err error) {
	err = s.inTx(ctx, "creating an API key", func(ctx context.Context, tx pgx.Tx) error {
		if err := room(ctx, tx, team, "api_keys", "API keys"); err != nil {
			return err
		}
		if err := lockMember(ctx, tx, team, k.CreatedBy); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `
			INSERT INTO api_keys (team_id, created_by, name, scope, roles, prefix, hash, expires_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, CASE WHEN $8 > interval '0' THEN now() + $8 END)
			RETURNING `+apiKeyColumns, team, k.CreatedBy, k.Name, k.Scope, k.Roles, k.Prefix, k.Hash, life)
		created, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[APIKey])
		audit.Resource(ctx, created.ID.String())
		return err
	})
	return created, err
}

// APIKeys lists a team's keys, newest first.
func (s *Store) APIKeys(ctx context.Context, team uuid.UUID) ([]APIKey, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+apiKeyColumns+" FROM api_keys WHERE team_id = $1 ORDER BY created_at DESC, id LIMIT $2", team, maxOfTeam)
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[APIKey])
	return keys, classify(err, "listing API keys")
}

// APIKeyByPrefix finds a key by its public part, for authentication alone: the
// caller has no team yet. A key is there as long as who made it may have it: a
// user who is not disabled, and for a platform key an admin of the system.
func (s *Store) APIKeyByPrefix(ctx context.Context, prefix string) (APIKey, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+apiKeyColumns+` FROM api_keys WHERE prefix = $1 AND EXISTS (
		SELECT FROM users u WHERE u.id = created_by AND u.disabled_at IS NULL AND (scope = 'team' OR u.is_admin))`, prefix)
	k, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[APIKey])
	return k, found(err, "reading an API key", "api key")
}

// APIKeyByID reads the key that a request was authenticated with.
func (s *Store) APIKeyByID(ctx context.Context, id uuid.UUID) (APIKey, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+apiKeyColumns+" FROM api_keys WHERE id = $1", id)
	k, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[APIKey])
	return k, found(err, "reading an API key", "api key")
}

// TouchAPIKey notes that a key was used, to the minute.
func (s *Store) TouchAPIKey(ctx context.Context, team, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, `UPDATE api_keys SET last_used_at = now()
		WHERE team_id = $1 AND id = $2 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')`, team, id)
	return classify(err, "noting an API key's use")
}

// DeactivateAPIKey ends a key and keeps its record. Deactivating twice is fine.
func (s *Store) DeactivateAPIKey(ctx context.Context, team, id uuid.UUID) error {
	tag, err := s.pool.Exec(ctx, `
		UPDATE api_keys SET deactivated_at = coalesce(deactivated_at, now()), updated_at = now()
		WHERE team_id = $1 AND id = $2`, team, id)
	if err == nil && tag.RowsAffected() == 0 {
		return notFound("api key")
	}
	return classify(err, "deactivating an API key")
}

// DeleteAPIKey ends a key and forgets it.
func (s *Store) DeleteAPIKey(ctx context.Context, team, id uuid.UUID) error {
	tag, err := s.pool.Exec(ctx, "DELETE FROM api_keys WHERE team_id = $1 AND id = $2", team, id)
	if err == nil && tag.RowsAffected() == 0 {
		return notFound("api key")
	}
	return classify(err, "deleting an API key")
}
