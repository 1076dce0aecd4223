package store_test

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"s0.run/internal/errdefs"
)

// A06: whoever ends all refresh tokens of a user ends the one that is being made of
// another at the same time, too.
func TestA06_ATokenDoesNotOutliveTheEndOfAll(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	who := user(t, conn, "a@example.com")
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
		g.Go(func() error { return s.EndRefreshTokens(t.Context(), who, nil) })
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		var left int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM refresh_tokens WHERE user_id = $1", who).Scan(&left); err != nil || left != 0 {
			t.Fatalf("round %d: %d tokens are left: %v", i, left, err)
		}
	}
}
