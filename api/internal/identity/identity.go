// Package identity signs people in and manages what they sign in with: the first
// admin, sessions of access and refresh tokens, passwords and API keys.
//
// It joins the store's records with package auth's formats and keeps no state.
// It decides no permission; callers have checked that before.
package identity

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/auth"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// Config names what the Service works with.
type Config struct {
	Store    *store.Store
	Signer   *auth.Signer
	Hasher   *auth.Hasher
	RegionID string

	AllowRegistration bool // anybody may sign up
}

// Service is safe for concurrent use.
type Service struct{ cfg Config }

// New makes a Service.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// Session is what a sign-in gives.
type Session struct {
	AccessToken  string
	RefreshToken string
	Expires      time.Time // of the access token
	User         store.User
	DefaultTeam  uuid.UUID // uuid.Nil when the user has none
}

// Bootstrap makes the first admin, with exactly one team, when nobody can sign
// in yet. It answers the password, generated when none is given, or "" when there
// was a user already.
func (s *Service) Bootstrap(ctx context.Context, email, password string) (string, error) {
	has, err := s.cfg.Store.HasUsers(ctx)
	if err != nil || has {
		return "", err
	}
	if password == "" {
		password = generatePassword()
	}
	if err := auth.CheckPassword(password); err != nil {
		return "", err
	}
	hash, err := s.cfg.Hasher.Hash(ctx, password)
	if err != nil {
		return "", err
	}
	created, err := s.cfg.Store.CreateFirstAdmin(ctx, store.FirstAdmin{
		Email: email, Name: "Admin", PasswordHash: hash, TeamName: "Default", TeamSlug: "default", RegionID: s.cfg.RegionID,
	})
	if err != nil || !created {
		return "", err
	}
	return password, nil
}

// generatePassword gives 100 random bits that can be typed.
func generatePassword() string {
	b := make([]byte, 13)
	rand.Read(b) // never fails
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))[:20]
}

// Login signs a user in. A wrong password and an unknown email give the same
// answer after the same work.
func (s *Service) Login(ctx context.Context, email, password string) (Session, error) {
	user, err := s.cfg.Store.UserByEmail(ctx, email)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return Session{}, err
	}
	audit.By(ctx, user.ID)
	ok, err := s.cfg.Hasher.Verify(ctx, password, user.PasswordHash)
	switch {
	case err != nil:
		return Session{}, err
	case !ok:
		return Session{}, errdefs.New(errdefs.Unauthenticated, "invalid email or password")
	case user.Disabled:
		return Session{}, errdefs.New(errdefs.PermissionDenied, "this user is disabled")
	}
	return s.begin(ctx, user)
}

// begin opens a session for a user who has shown who he is.
func (s *Service) begin(ctx context.Context, user store.User) (Session, error) {
	refresh, hash := auth.NewRefreshToken()
	if err := s.cfg.Store.AddRefreshToken(ctx, user, hash, auth.RefreshTokenLife); err != nil {
		return Session{}, err
	}
	return s.session(ctx, user, refresh)
}

var errRefreshToken = errdefs.New(errdefs.Unauthenticated, "invalid refresh token")

// Refresh exchanges a refresh token for a new session.
func (s *Service) Refresh(ctx context.Context, token string) (Session, error) {
	next, hash := auth.NewRefreshToken()
	id, err := s.cfg.Store.RotateRefreshToken(ctx, auth.HashRefreshToken(token), hash, auth.RefreshTokenLife)
	if errors.Is(err, store.ErrTokenReused) || errdefs.Is(err, errdefs.NotFound) {
		return Session{}, errRefreshToken.WithCause(err)
	}
	if err != nil {
		return Session{}, err
	}
	user, err := s.cfg.Store.User(ctx, id)
	if errdefs.Is(err, errdefs.NotFound) || user.Disabled {
		return Session{}, errRefreshToken
	}
	if err != nil {
		return Session{}, err
	}
	return s.session(ctx, user, next)
}

func (s *Service) session(ctx context.Context, user store.User, refresh string) (Session, error) {
	grants, err := s.cfg.Store.Grants(ctx, user.ID)
	if err != nil {
		return Session{}, err
	}
	out := Session{RefreshToken: refresh, User: user}
	if len(grants) > 0 {
		out.DefaultTeam = grants[0].TeamID
	}
	out.AccessToken, out.Expires, err = s.cfg.Signer.Sign(user.ID, auth.GrantsOf(grants), user.IsAdmin)
	return out, err
}

// Logout ends one session of a user, or all when token is empty.
func (s *Service) Logout(ctx context.Context, user uuid.UUID, token string) error {
	var hash []byte
	if token != "" {
		hash = auth.HashRefreshToken(token)
	}
	return s.cfg.Store.EndRefreshTokens(ctx, user, hash)
}

// ChangePassword replaces a password that the caller knows and ends the user's
// sessions.
func (s *Service) ChangePassword(ctx context.Context, id uuid.UUID, old, next string) error {
	if err := auth.CheckPassword(next); err != nil {
		return err
	}
	user, err := s.cfg.Store.User(ctx, id)
	if err != nil {
		return err
	}
	ok, err := s.cfg.Hasher.Verify(ctx, old, user.PasswordHash)
	if err != nil {
		return err
	}
	if !ok {
		return errdefs.New(errdefs.PermissionDenied, "the old password is wrong")
	}
	hash, err := s.cfg.Hasher.Hash(ctx, next)
	if err != nil {
		return err
	}
	return s.cfg.Store.ChangePassword(ctx, id, user.PasswordHash, hash)
}

// NewKey is an API key to be made.
type NewKey struct {
	Name  string
	Scope string
	Roles []string
	Life  time.Duration // 0: for ever
}

// CreateKey makes an API key. Its secret is in the answer and nowhere else.
func (s *Service) CreateKey(ctx context.Context, by auth.Principal, k NewKey) (store.APIKey, string, error) {
	if k.Scope == auth.ScopePlatform && !by.IsAdmin {
		return store.APIKey{}, "", errdefs.New(errdefs.PermissionDenied, "only a system admin can create a platform key")
	}
	for _, role := range k.Roles {
		if !auth.ValidRole(role) {
			return store.APIKey{}, "", errdefs.New(errdefs.InvalidArgument, "unknown role %.40q", role)
		}
	}
	key := auth.NewAPIKey(s.cfg.RegionID)
	row, err := s.cfg.Store.CreateAPIKey(ctx, by.TeamID, store.APIKey{
		CreatedBy: by.UserID, Name: k.Name, Scope: k.Scope, Roles: k.Roles, Prefix: key.Prefix, Hash: key.Hash,
	}, k.Life)
	return row, key.Secret, err
}
