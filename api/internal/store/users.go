package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

// User is a person who signs in.
type User struct {
	ID           uuid.UUID
	Email        string
	Name         string
	AvatarURL    string
	Verified     bool   // that the email is the user's
	PasswordHash string // empty: none
	IsAdmin      bool
	Disabled     bool
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

// Grant is what a user is in a team.
type Grant struct {
	TeamID       uuid.UUID
	Role         string
	HomeRegionID string
	Owner        bool
}

// FirstAdmin is the first user, with a team of its own.
type FirstAdmin struct {
	Email, Name, PasswordHash    string
	TeamName, TeamSlug, RegionID string
}

// bootstrapLock serialises replicas that start on an empty database.
const bootstrapLock = 0x73_30_62_6f_6f_74

// HasUsers reports whether anybody can sign in.
func (s *Store) HasUsers(ctx context.Context) (bool, error) {
	var has bool
	err := s.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM users)").Scan(&has)
	return has, classify(err, "looking for users")
}

// CreateFirstAdmin makes the first user, a system admin with exactly one team
// grant. It reports false when there is a user already.
func (s *Store) CreateFirstAdmin(ctx context.Context, a FirstAdmin) (bool, error) {
	created := false
	err := s.inTx(ctx, "creating the first admin", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", bootstrapLock); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			WITH admin AS (
				INSERT INTO users (email, name, password_hash, is_admin, email_verified)
				SELECT $1, $2, $3, true, true WHERE NOT EXISTS (SELECT FROM users)
				RETURNING id
			), team AS (
				INSERT INTO teams (name, slug, owner_id, home_region_id)
				SELECT $4, $5, id, $6 FROM admin
				RETURNING id, owner_id
			)
			INSERT INTO team_members (team_id, user_id, role) SELECT id, owner_id, 'admin' FROM team`,
			a.Email, a.Name, a.PasswordHash, a.TeamName, a.TeamSlug, a.RegionID)
		created = err == nil && tag.RowsAffected() == 1
		return err
	})
	return created && err == nil, err
}

const userColumns = "id, email, name, avatar_url, email_verified, password_hash, is_admin, disabled_at IS NOT NULL, created_at, updated_at"

func scanUser(row pgx.CollectableRow) (User, error) {
	var u User
	err := row.Scan(&u.ID, &u.Email, &u.Name, &u.AvatarURL, &u.Verified, &u.PasswordHash, &u.IsAdmin, &u.Disabled, &u.CreatedAt, &u.UpdatedAt)
	return u, err
}

// UserByEmail finds a user without regard to the email's case.
func (s *Store) UserByEmail(ctx context.Context, email string) (User, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+userColumns+" FROM users WHERE lower(email) = lower($1)", email)
	u, err := pgx.CollectExactlyOneRow(rows, scanUser)
	return u, found(err, "reading a user", "user")
}

// User reads one user.
func (s *Store) User(ctx context.Context, id uuid.UUID) (User, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+userColumns+" FROM users WHERE id = $1", id)
	u, err := pgx.CollectExactlyOneRow(rows, scanUser)
	return u, found(err, "reading a user", "user")
}

// Grants reads what a user is in which teams.
func (s *Store) Grants(ctx context.Context, user uuid.UUID) ([]Grant, error) {
	rows, _ := s.pool.Query(ctx, `
		SELECT m.team_id, m.role, t.home_region_id, t.owner_id = m.user_id
		FROM team_members m JOIN teams t ON t.id = m.team_id
		WHERE m.user_id = $1 ORDER BY t.created_at, t.id`, user)
	grants, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Grant])
	return grants, classify(err, "reading a user's teams")
}

// maxOfTeam bounds how many of a kind of thing a team can have, so that a list
// shows them all.
const maxOfTeam = 500

// room fails with a conflict when the team has as many rows of a table as it can
// have. Until tx ends nobody else can add one: the caller does (A15).
func room(ctx context.Context, tx pgx.Tx, team uuid.UUID, table, what string) error {
	if _, err := lockTeam(ctx, tx, team); err != nil {
		return err
	}
	var have int
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM "+table+" WHERE team_id = $1", team).Scan(&have); err != nil {
		return err
	}
	if have >= maxOfTeam {
		return errdefs.New(errdefs.Conflict, "the team has %d %s, and can have no more: delete one first", have, what)
	}
	return nil
}

// ChangePassword replaces the hash that the caller verified and ends every
// refresh token of the user. A hash that changed meanwhile is a conflict.
func (s *Store) ChangePassword(ctx context.Context, user uuid.UUID, oldHash, newHash string) error {
	return s.inTx(ctx, "changing a password", func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			UPDATE users SET password_hash = $3, updated_at = now()
			WHERE id = $1 AND password_hash = $2`, user, oldHash, newHash)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errdefs.New(errdefs.Conflict, "the password was changed meanwhile")
		}
		_, err = tx.Exec(ctx, "DELETE FROM refresh_tokens WHERE user_id = $1", user)
		return err
	})
}

// ErrTokenReused is returned for a refresh token that was used before.
var ErrTokenReused = errors.New("refresh token used twice")

// AddRefreshToken stores the first token of a new family, of a user who has signed in as
// he was read. One whose password was changed since, or who was disabled, has to sign in
// again: whoever did that has ended all tokens, or waits for this one to end it.
func (s *Store) AddRefreshToken(ctx context.Context, u User, hash []byte, life time.Duration) error {
	tag, err := s.pool.Exec(ctx, `
		INSERT INTO refresh_tokens (hash, family, user_id, expires_at)
		SELECT $1, gen_random_uuid(), id, now() + $2 FROM users
		WHERE id = $3 AND password_hash = $4 AND disabled_at IS NULL FOR SHARE`, hash, life, u.ID, u.PasswordHash)
	if err == nil && tag.RowsAffected() == 0 {
		return errdefs.New(errdefs.Unauthenticated, "the user was changed a moment ago: sign in again")
	}
	return classify(err, "storing a refresh token")
}

// RotateRefreshToken exchanges a token for its successor and answers whose it
// is. A token that was used before ends its family and gives [ErrTokenReused];
// an unknown or expired one is not found.
func (s *Store) RotateRefreshToken(ctx context.Context, hash, next []byte, life time.Duration) (uuid.UUID, error) {
	var user uuid.UUID
	reused := false
	err := s.inTx(ctx, "rotating a refresh token", func(ctx context.Context, tx pgx.Tx) error {
		// Whoever ends tokens of a user sees the successor, or ends the token first. So does
		// the second use of one, which ends a family here.
		if _, err := tx.Exec(ctx, "SELECT FROM users WHERE id = (SELECT user_id FROM refresh_tokens WHERE hash = $1) FOR NO KEY UPDATE", hash); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `
			WITH used AS (
				UPDATE refresh_tokens SET used_at = now()
				WHERE hash = $1 AND used_at IS NULL AND expires_at > now()
				RETURNING family, user_id
			)
			INSERT INTO refresh_tokens (hash, family, user_id, expires_at)
			SELECT $2, family, user_id, now() + $3 FROM used
			RETURNING user_id`, hash, next, life).Scan(&user)
		if !errors.Is(err, pgx.ErrNoRows) {
			audit.By(ctx, user)
			return err
		}
		tag, err := tx.Exec(ctx, `
			DELETE FROM refresh_tokens WHERE family =
				(SELECT family FROM refresh_tokens WHERE hash = $1 AND used_at IS NOT NULL)`, hash)
		reused = err == nil && tag.RowsAffected() > 0
		return err
	})
	switch {
	case err != nil:
		return uuid.Nil, err
	case reused:
		return uuid.Nil, ErrTokenReused
	case user == uuid.Nil:
		return uuid.Nil, notFound("refresh token")
	}
	return user, nil
}

// EndRefreshTokens ends the family of one token of the user, or every family
// when hash is nil. Ending what is not there is fine.
func (s *Store) EndRefreshTokens(ctx context.Context, user uuid.UUID, hash []byte) error {
	return s.inTx(ctx, "ending refresh tokens", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", user); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			DELETE FROM refresh_tokens
			WHERE user_id = $1 AND ($2::bytea IS NULL OR family =
				(SELECT family FROM refresh_tokens WHERE user_id = $1 AND hash = $2))`, user, hash)
		return err
	})
}

// PurgeRefreshTokens forgets tokens that expired.
func (s *Store) PurgeRefreshTokens(ctx context.Context) error {
	return s.purge(ctx, "purging refresh tokens", `DELETE FROM refresh_tokens WHERE hash IN
		(SELECT hash FROM refresh_tokens WHERE expires_at < now() - $1::interval LIMIT $2)`, 0)
}
