package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

// Member is a user in a team.
type Member struct {
	TeamID    uuid.UUID
	UserID    uuid.UUID
	Role      string
	JoinedAt  time.Time
	Email     string
	Name      string
	AvatarURL string
}

const memberColumns = "m.team_id, m.user_id, m.role, m.created_at, u.email, u.name, u.avatar_url"

// Members lists a team's members, who joined first first. A query that is not
// empty finds them by a part of their email or name.
func (s *Store) Members(ctx context.Context, team uuid.UUID, query string) ([]Member, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+memberColumns+` FROM team_members m JOIN users u ON u.id = m.user_id
		WHERE m.team_id = $1 AND (position(lower($2) in lower(u.email)) > 0 OR position(lower($2) in lower(u.name)) > 0)
		ORDER BY m.created_at, m.user_id LIMIT $3`, team, query, maxOfTeam)
	members, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Member])
	return members, classify(err, "listing members")
}

// AddMember makes the user with an email a member. One who is a member already,
// or in too many teams, is a conflict.
func (s *Store) AddMember(ctx context.Context, team uuid.UUID, email, role string) (m Member, err error) {
	err = s.inTx(ctx, "adding a member", func(ctx context.Context, tx pgx.Tx) error {
		if err := room(ctx, tx, team, "team_members", "members"); err != nil {
			return err
		}
		var user uuid.UUID
		err := tx.QueryRow(ctx, "SELECT id FROM users WHERE lower(email) = lower($1) AND disabled_at IS NULL", email).Scan(&user)
		if err != nil {
			return found(err, "looking for a user", "user with this email")
		}
		_, in, err := teamsOf(ctx, tx, user)
		if err != nil {
			return err
		}
		if in >= maxTeams {
			return errdefs.New(errdefs.Conflict, "this user is in too many teams")
		}
		audit.Resource(ctx, user.String())
		m, err = insertMember(ctx, tx, team, user, role)
		return err
	})
	return m, err
}

func insertMember(ctx context.Context, tx pgx.Tx, team, user uuid.UUID, role string) (Member, error) {
	rows, _ := tx.Query(ctx, `
		WITH m AS (INSERT INTO team_members (team_id, user_id, role) VALUES ($1, $2, $3) RETURNING *)
		SELECT `+memberColumns+" FROM m JOIN users u ON u.id = m.user_id", team, user, role)
	m, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Member])
	if violates(err, "team_members_pkey") {
		return m, errdefs.New(errdefs.Conflict, "this user is a member already")
	}
	return m, err
}

// lockTeam locks a team's row and answers its owner: nobody becomes the owner, or
// stops being it, until tx ends.
func lockTeam(ctx context.Context, tx pgx.Tx, team uuid.UUID) (owner uuid.UUID, err error) {
	err = tx.QueryRow(ctx, "SELECT owner_id FROM teams WHERE id = $1 FOR NO KEY UPDATE", team).Scan(&owner)
	return owner, found(err, "locking a team", "team")
}

// lockMember locks a membership: it lasts until tx ends, and what tx stores of the member
// goes with it. Who was removed a moment ago may do nothing.
func lockMember(ctx context.Context, tx pgx.Tx, team, user uuid.UUID) error {
	tag, err := tx.Exec(ctx, "SELECT FROM team_members WHERE team_id = $1 AND user_id = $2 FOR NO KEY UPDATE", team, user)
	if err == nil && tag.RowsAffected() == 0 {
		return errdefs.New(errdefs.PermissionDenied, "insufficient permissions")
	}
	return err
}

// SetMemberRole changes what a member is. The owner stays an admin, so that a team
// always has one.
func (s *Store) SetMemberRole(ctx context.Context, team, user uuid.UUID, role string) error {
	return s.inTx(ctx, "changing a member", func(ctx context.Context, tx pgx.Tx) error {
		owner, err := lockTeam(ctx, tx, team)
		if err != nil {
			return err
		}
		if owner == user && role != "admin" {
			return errdefs.New(errdefs.Conflict, "the team's owner is an admin: make somebody else the owner first")
		}
		tag, err := tx.Exec(ctx, "UPDATE team_members SET role = $3 WHERE team_id = $1 AND user_id = $2", team, user, role)
		if err == nil && tag.RowsAffected() == 0 {
			return notFound("member")
		}
		return err
	})
}

// RemoveMember ends a membership, and with it what it gave: SSH keys go, and API
// keys of the team that the user made stop working.
func (s *Store) RemoveMember(ctx context.Context, team, user uuid.UUID) error {
	return s.inTx(ctx, "removing a member", func(ctx context.Context, tx pgx.Tx) error {
		owner, err := lockTeam(ctx, tx, team)
		if err != nil {
			return err
		}
		if owner == user {
			return errdefs.New(errdefs.Conflict, "the team's owner can't be removed: make somebody else the owner first")
		}
		tag, err := tx.Exec(ctx, "DELETE FROM team_members WHERE team_id = $1 AND user_id = $2", team, user)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return notFound("member")
		}
		_, err = tx.Exec(ctx, `
			UPDATE api_keys SET deactivated_at = now(), updated_at = now()
			WHERE team_id = $1 AND created_by = $2 AND deactivated_at IS NULL`, team, user)
		return err
	})
}
