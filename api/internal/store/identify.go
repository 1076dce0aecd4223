package store

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

// Account is somebody at a provider, as the provider has vouched for it.
type Account struct {
	Provider string // its id here
	Issuer   string
	Subject  string
	Email    string // verified by the provider; empty: the account may sign in who is known, and join nobody
	Name     string
}

// Provision says what becomes of an account that nobody here has. The zero
// Provision refuses it.
type Provision struct {
	Team string // slug of the team that it joins
	Role string // there
}

// Identify finds whose account this is. One that is new joins the user who has
// its address, or becomes a user. Nobody is joined whose own address was never
// verified: whoever made such a user may be another.
func (s *Store) Identify(ctx context.Context, a Account, p Provision) (uuid.UUID, error) {
	user, err := s.identify(ctx, a, p)
	if violates(err, "user_identities_issuer_subject") || violates(err, "users_email") {
		return s.identify(ctx, a, p) // it signed in for the first time twice at once: now it is known
	}
	return user, err
}

func (s *Store) identify(ctx context.Context, a Account, p Provision) (user uuid.UUID, err error) {
	err = s.inTx(ctx, "identifying a user", func(ctx context.Context, tx pgx.Tx) error {
		var disabled bool
		err := tx.QueryRow(ctx, `
			SELECT u.id, u.disabled_at IS NOT NULL FROM user_identities i JOIN users u ON u.id = i.user_id
			WHERE i.issuer = $1 AND i.subject = $2`, a.Issuer, a.Subject).Scan(&user, &disabled)
		switch {
		case err == nil && disabled:
			return errDisabled
		case err == nil:
			audit.By(ctx, user)
			return nil
		case !errors.Is(err, pgx.ErrNoRows):
			return err
		case a.Email == "":
			return errdefs.New(errdefs.PermissionDenied, "the provider has not verified your email address")
		}
		if user, err = join(ctx, tx, a, p); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO user_identities (user_id, provider, issuer, subject, email) VALUES ($1, $2, $3, $4, $5)`,
			user, a.Provider, a.Issuer, a.Subject, a.Email)
		audit.By(ctx, user)
		return err
	})
	return user, err
}

var errDisabled = errdefs.New(errdefs.PermissionDenied, "this user is disabled")

// join finds the user who has the account's address, or makes one.
func join(ctx context.Context, tx pgx.Tx, a Account, p Provision) (user uuid.UUID, err error) {
	var disabled, verified bool
	err = tx.QueryRow(ctx, `
		SELECT id, disabled_at IS NOT NULL, email_verified FROM users WHERE lower(email) = lower($1)`, a.Email).Scan(&user, &disabled, &verified)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return provision(ctx, tx, a, p)
	case err != nil:
		return uuid.Nil, err
	case disabled:
		return uuid.Nil, errDisabled
	case !verified:
		return uuid.Nil, errdefs.New(errdefs.Conflict, "a user has this email address and has never confirmed it: sign in as that user")
	}
	return user, nil
}

func provision(ctx context.Context, tx pgx.Tx, a Account, p Provision) (user uuid.UUID, err error) {
	if p == (Provision{}) {
		return uuid.Nil, errdefs.New(errdefs.PermissionDenied, "you have no account here: ask an admin for one")
	}
	var team uuid.UUID
	err = tx.QueryRow(ctx, "SELECT id FROM teams WHERE slug = $1", p.Team).Scan(&team)
	if errors.Is(err, pgx.ErrNoRows) {
		return uuid.Nil, errdefs.New(errdefs.Unavailable, "new users can't join now: an operator has to look at this server's configuration").
			WithCause(errors.New("provisioning: there is no team " + p.Team))
	}
	if err != nil {
		return uuid.Nil, err
	}
	if err := room(ctx, tx, team, "team_members", "members"); err != nil {
		return uuid.Nil, err
	}
	err = tx.QueryRow(ctx, `
		INSERT INTO users (email, name, password_hash, email_verified) VALUES ($1, $2, '', true) RETURNING id`, a.Email, a.Name).Scan(&user)
	if err != nil {
		return uuid.Nil, err
	}
	_, err = insertMember(ctx, tx, team, user, p.Role)
	return user, err
}
