package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// A06: whoever ends all refresh tokens of a user ends the one that is being made of
// another at the same time, too.
func TestA06_ATokenDoesNotOutliveTheEndOfAll(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	who := store.User{ID: user(t, conn, "a@example.com"), PasswordHash: "x"}
	for i := range 100 {
		old, next := fmt.Append(nil, "old", i), fmt.Append(nil, "next", i)
		if err := s.AddRefreshToken(t.Context(), who, old, time.Hour); err != nil {
			t.Fatal(err)
		}
		var g errgroup.Group
		g.Go(func() error {
			_, err := s.RotateRefreshToken(t.Context(), old, next, time.Hour)
			if errdefs.Is(err, errdefs.NotFound) {
				return nil // it was too late
			}
			return err
		})
		g.Go(func() error { return s.EndRefreshTokens(t.Context(), who.ID, nil) })
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		var left int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM refresh_tokens WHERE user_id = $1", who.ID).Scan(&left); err != nil || left != 0 {
			t.Fatalf("round %d: %d tokens are left: %v", i, left, err)
		}
	}
}

// inTheWay holds up whoever stores a refresh token until it is rolled back.
func inTheWay(t *testing.T, conn *pgx.Conn, of uuid.UUID, token string) pgx.Tx {
	t.Helper()
	return beside(t, conn, []any{[]byte(token), of},
		"INSERT INTO refresh_tokens (hash, family, user_id, expires_at) VALUES ($1, gen_random_uuid(), $2, now())")
}

// A06: the second use of a token ends its family with the one that another of it is being
// exchanged for at the same time.
func TestA06_ASecondUseEndsTheSuccessorThatIsBeingMade(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	u, _ := bootstrap(t, s)
	if err := s.AddRefreshToken(t.Context(), u, []byte("first"), time.Hour); err != nil {
		t.Fatal(err)
	}
	rotate := func(token, next string) error {
		_, err := s.RotateRefreshToken(t.Context(), []byte(token), []byte(next), time.Hour)
		return err
	}
	if err := rotate("first", "second"); err != nil {
		t.Fatal(err)
	}
	stop := inTheWay(t, conn, u.ID, "third")
	exchanged := meanwhile(t, conn, 1, func() error { return rotate("second", "third") })
	reused := meanwhile(t, conn, 2, func() error { return rotate("first", "fourth") })
	rollback(t, stop)
	if err := <-exchanged; err != nil {
		t.Error(err)
	}
	if err := <-reused; !errors.Is(err, store.ErrTokenReused) {
		t.Error(err)
	}
	if err := rotate("third", "fifth"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a token of the family lives: %v", err)
	}
}

// A06: a password's change and a user's end take the session that is beginning with them,
// and let none begin of a user who was read before.
func TestA06_NoSessionOutlivesWhatItBeganWith(t *testing.T) {
	t.Parallel()
	yes := true
	for name, end := range map[string]func(context.Context, *store.Store, store.User) error{
		"the password is changed": func(ctx context.Context, s *store.Store, u store.User) error {
			return s.ChangePassword(ctx, u.ID, u.PasswordHash, "another")
		},
		"the user is disabled": func(ctx context.Context, s *store.Store, u store.User) error {
			_, err := s.SetUserRights(ctx, u.ID, &yes, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, conn := open(t)
			bootstrap(t, s) // the system keeps an admin
			u, err := s.User(t.Context(), user(t, conn, "u@example.com"))
			if err != nil {
				t.Fatal(err)
			}
			stop := inTheWay(t, conn, u.ID, "token")
			begun := meanwhile(t, conn, 1, func() error { return s.AddRefreshToken(t.Context(), u, []byte("token"), time.Hour) })
			ended := meanwhile(t, conn, 2, func() error { return end(t.Context(), s, u) })
			rollback(t, stop)
			if err := errors.Join(<-begun, <-ended); err != nil {
				t.Fatal(err)
			}
			if _, err := s.RotateRefreshToken(t.Context(), []byte("token"), []byte("next"), time.Hour); !errdefs.Is(err, errdefs.NotFound) {
				t.Errorf("the session goes on: %v", err)
			}
			if err := s.AddRefreshToken(t.Context(), u, []byte("late"), time.Hour); !errdefs.Is(err, errdefs.Unauthenticated) {
				t.Errorf("a session began: %v", err)
			}
		})
	}
}
