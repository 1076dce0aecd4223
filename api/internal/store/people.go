package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

// NewUser is a user who signed himself up. His email is not verified.
type NewUser struct {
	Email, Name, PasswordHash    string
	TeamName, TeamSlug, RegionID string // of a team of his own
}

// CreateUser makes a user with a team of his own. An email that is taken is a
// conflict.
func (s *Store) CreateUser(ctx context.Context, n NewUser) (u User, err error) {
	err = s.inTx(ctx, "creating a user", func(ctx context.Context, tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, "INSERT INTO users (email, name, password_hash) VALUES ($1, $2, $3) RETURNING "+userColumns, n.Email, n.Name, n.PasswordHash)
		u, err = pgx.CollectExactlyOneRow(rows, scanUser)
		if violates(err, "users_email") {
			return errdefs.New(errdefs.Conflict, "a user with this email exists")
		}
		if err != nil {
			return err
		}
		_, err = createTeam(ctx, tx, Team{Name: n.TeamName, Slug: n.TeamSlug, OwnerID: u.ID, HomeRegionID: n.RegionID})
		audit.Resource(ctx, u.ID.String())
		return err
	})
	return u, err
}

// UpdateUser changes what is not nil of how a user is shown.
func (s *Store) UpdateUser(ctx context.Context, id uuid.UUID, name, avatarURL *string) (User, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE users SET name = coalesce($2, name), avatar_url = coalesce($3, avatar_url), updated_at = now()
		WHERE id = $1 RETURNING `+userColumns, id, name, avatarURL)
	u, err := pgx.CollectExactlyOneRow(rows, scanUser)
	return u, found(err, "changing a user", "user")
}

// UserIdentity is one way in which a user signs in.
type UserIdentity struct {
	ID        uuid.UUID
	Provider  string
	CreatedAt time.Time
}

// ProviderBuiltin is the provider of passwords.
const ProviderBuiltin = "builtin"

// A password has its user's id for its own.
const identitiesSQL = `
	SELECT id, '` + ProviderBuiltin + `' AS provider, created_at FROM users WHERE id = $1 AND password_hash <> ''
	UNION ALL
	SELECT id, provider, created_at FROM user_identities WHERE user_id = $1`

// UserIdentities lists the ways in which a user signs in.
func (s *Store) UserIdentities(ctx context.Context, user uuid.UUID) ([]UserIdentity, error) {
	rows, _ := s.pool.Query(ctx, identitiesSQL+" ORDER BY created_at, id", user)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[UserIdentity])
	return list, classify(err, "listing identities")
}

// DeleteUserIdentity takes a way to sign in from a user, never his last. The
// sessions that are open go on.
func (s *Store) DeleteUserIdentity(ctx context.Context, user, id uuid.UUID) error {
	return s.inTx(ctx, "deleting an identity", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", user); err != nil {
			return err
		}
		var all, this int
		err := tx.QueryRow(ctx, "SELECT count(*), count(*) FILTER (WHERE id = $2) FROM ("+identitiesSQL+") i", user, id).Scan(&all, &this)
		switch {
		case err != nil:
			return err
		case this == 0:
			return notFound("identity")
		case all == 1:
			return errdefs.New(errdefs.InvalidArgument, "this is your last way to sign in")
		case id == user:
			_, err = tx.Exec(ctx, "UPDATE users SET password_hash = '', updated_at = now() WHERE id = $1", user)
		default:
			_, err = tx.Exec(ctx, "DELETE FROM user_identities WHERE user_id = $1 AND id = $2", user, id)
		}
		return err
	})
}

// Users lists users of the whole system for its admins, newest first: those whose
// email or name has the query in it.
func (s *Store) Users(ctx context.Context, query string, limit, offset int) ([]User, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+userColumns+` FROM users
		WHERE position(lower($1) in lower(email)) > 0 OR position(lower($1) in lower(name)) > 0
		ORDER BY created_at DESC, id LIMIT $2 OFFSET $3`, query, limit, offset)
	users, err := pgx.CollectRows(rows, scanUser)
	return users, classify(err, "listing users")
}

// SetUserRights disables a user or lets him in again, and makes him an admin of
// the system or takes that from him; nil leaves as it is. The system keeps an
// admin who can sign in. A user who is disabled is signed out everywhere.
func (s *Store) SetUserRights(ctx context.Context, id uuid.UUID, disabled, admin *bool) (u User, err error) {
	err = s.inTx(ctx, "changing a user's rights", func(ctx context.Context, tx pgx.Tx) error {
		// Two admins who disable each other: the second sees what the first did.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", bootstrapLock); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `
			UPDATE users SET is_admin = coalesce($3, is_admin), updated_at = now(),
				disabled_at = CASE WHEN coalesce($2, disabled_at IS NOT NULL) THEN coalesce(disabled_at, now()) END
			WHERE id = $1 RETURNING `+userColumns, id, disabled, admin)
		if u, err = pgx.CollectExactlyOneRow(rows, scanUser); err != nil {
			return found(err, "changing a user's rights", "user")
		}
		var left bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM users WHERE is_admin AND disabled_at IS NULL)").Scan(&left); err != nil {
			return err
		}
		if !left {
			return errdefs.New(errdefs.Conflict, "this is the last admin of the system")
		}
		if u.Disabled {
			_, err = tx.Exec(ctx, "DELETE FROM refresh_tokens WHERE user_id = $1", id)
		}
		return err
	})
	return u, err
}
