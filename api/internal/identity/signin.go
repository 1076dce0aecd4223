package identity

import (
	"context"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/auth"
	"s0.run/internal/errdefs"
)

// SignIn begins a session of a user whom somebody else has identified.
func (s *Service) SignIn(ctx context.Context, id uuid.UUID) (Session, error) {
	user, err := s.cfg.Store.User(ctx, id)
	switch {
	case errdefs.Is(err, errdefs.NotFound):
		return Session{}, auth.ErrUnauthenticated // deleted a moment ago
	case err != nil:
		return Session{}, err
	case user.Disabled:
		return Session{}, errdefs.New(errdefs.PermissionDenied, "this user is disabled")
	}
	audit.By(ctx, user.ID)
	return s.begin(ctx, user)
}
