package httpapi

import (
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"s0.run/api/internal/auth"
	"s0.run/api/internal/identity"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// Login implements POST /auth/login.
func (a *API) Login(w http.ResponseWriter, r *http.Request) {
	var req openapi.LoginRequest
	err := decode(w, r, controlBytes, &req, "email", "password")
	if err == nil {
		err = checkEmail(req.Email)
	}
	if err == nil {
		err = a.limitSignIns(w, r, strings.ToLower(req.Email))
	}
	var s identity.Session
	if err == nil {
		s, err = a.cfg.Identity.Login(r.Context(), req.Email, req.Password)
	}
	a.answer(w, r, http.StatusOK, sessionOut(s), err)
}

const maxEmailBytes = 254 // RFC 5321

func checkEmail(email string) error {
	if email == "" || len(email) > maxEmailBytes || !plain(email) {
		return errdefs.New(errdefs.InvalidArgument, "email is invalid")
	}
	return nil
}

// limitSignIns bounds how often passwords are tried: from one address, since each
// costs as much as a hundred other requests, and for one user, from wherever.
// Somebody who uses up a user's tries keeps him from signing in, but from nothing
// else: sessions and API keys go on.
func (a *API) limitSignIns(w http.ResponseWriter, r *http.Request, user string) error {
	if err := a.limitSignInHosts(w, r); err != nil {
		return err
	}
	return a.limit(w, a.signInUsers, user)
}

// RefreshToken implements POST /auth/refresh.
func (a *API) RefreshToken(w http.ResponseWriter, r *http.Request) {
	var req openapi.RefreshTokenRequest
	err := decode(w, r, controlBytes, &req, "refresh_token")
	var s identity.Session
	if err == nil {
		s, err = a.cfg.Identity.Refresh(r.Context(), req.RefreshToken)
	}
	a.answer(w, r, http.StatusOK, sessionOut(s), err)
}

func sessionOut(s identity.Session) openapi.Login {
	return openapi.Login{
		AccessToken: s.AccessToken, RefreshToken: s.RefreshToken, ExpiresAt: s.Expires.Unix(), User: userOut(s.User, s.DefaultTeam),
	}
}

func userOut(u store.User, defaultTeam uuid.UUID) openapi.User {
	out := openapi.User{
		ID: u.ID.String(), Email: u.Email, Name: u.Name, AvatarURL: unlessEmpty(u.AvatarURL), EmailVerified: u.Verified, IsAdmin: u.IsAdmin, CreatedAt: u.CreatedAt, UpdatedAt: u.UpdatedAt,
	}
	if defaultTeam != uuid.Nil {
		out.DefaultTeamID = new(defaultTeam.String())
	}
	return out
}

// Logout implements POST /auth/logout.
func (a *API) Logout(w http.ResponseWriter, r *http.Request) {
	var req openapi.LogoutRequest
	err := decodeOptional(w, r, &req)
	if err == nil {
		err = a.cfg.Identity.Logout(r.Context(), callerOf(r).identity.UserID, value(req.RefreshToken))
	}
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "logged out"}, err)
}

// ChangePassword implements POST /auth/change-password.
func (a *API) ChangePassword(w http.ResponseWriter, r *http.Request) {
	var req openapi.ChangePasswordRequest
	err := decode(w, r, controlBytes, &req, "old_password", "new_password")
	if err == nil {
		err = a.limitSignIns(w, r, callerOf(r).identity.UserID.String())
	}
	if err == nil {
		err = a.cfg.Identity.ChangePassword(r.Context(), callerOf(r).identity.UserID, req.OldPassword, req.NewPassword)
	}
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "password changed"}, err)
}

// GetCurrentUser implements GET /users/me.
func (a *API) GetCurrentUser(w http.ResponseWriter, r *http.Request) {
	id := callerOf(r).identity
	u, err := a.cfg.Store.User(r.Context(), id.UserID)
	if errdefs.Is(err, errdefs.NotFound) {
		err = auth.ErrUnauthenticated // the token outlived its user
	}
	a.answer(w, r, http.StatusOK, userOut(u, defaultTeam(&id)), err)
}

// ListAPIKeys implements GET /api-keys.
func (a *API) ListAPIKeys(w http.ResponseWriter, r *http.Request) {
	keys, err := a.cfg.Store.APIKeys(r.Context(), principalOf(r).TeamID)
	out := openapi.APIKeyList{APIKeys: []openapi.APIKey{}}
	for _, k := range keys {
		out.APIKeys = append(out.APIKeys, openapi.APIKey{
			ID: k.ID.String(), TeamID: k.TeamID.String(), CreatedBy: k.CreatedBy.String(), UserID: new(k.CreatedBy.String()), Name: k.Name,
			Scope: openapi.APIKeyScope(k.Scope), Roles: rolesOut(k.Roles), IsActive: k.Active && !k.Expired, ExpiresAt: timeOut(k.ExpiresAt),
			LastUsedAt: k.LastUsedAt, CreatedAt: k.CreatedAt, UpdatedAt: k.UpdatedAt,
		})
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// CreateAPIKey implements POST /api-keys.
func (a *API) CreateAPIKey(w http.ResponseWriter, r *http.Request) {
	var req openapi.CreateAPIKeyRequest
	err := decode(w, r, controlBytes, &req, "name")
	var k identity.NewKey
	if err == nil {
		k, err = newKey(req)
	}
	var row store.APIKey
	var secret string
	if err == nil {
		row, secret, err = a.cfg.Identity.CreateKey(r.Context(), principalOf(r), k)
	}
	a.answer(w, r, http.StatusCreated, openapi.CreatedAPIKey{
		ID: row.ID.String(), Name: row.Name, Scope: openapi.APIKeyScope(row.Scope), Roles: rolesOut(row.Roles), TeamID: row.TeamID.String(),
		Key: secret, ExpiresAt: timeOut(row.ExpiresAt), CreatedAt: row.CreatedAt,
	}, err)
}

// lives is how long keys can be asked to hold.
var lives = map[openapi.CreateAPIKeyRequestExpiresIn]time.Duration{
	"30d": 30 * 24 * time.Hour, "90d": 90 * 24 * time.Hour, "180d": 180 * 24 * time.Hour, "365d": 365 * 24 * time.Hour, "never": 0,
}

const maxNameBytes = 100

func newKey(req openapi.CreateAPIKeyRequest) (identity.NewKey, error) {
	k := identity.NewKey{Name: req.Name, Scope: auth.ScopeTeam, Life: lives["90d"]}
	if req.Name == "" || len(req.Name) > maxNameBytes || !plain(req.Name) {
		return k, errdefs.New(errdefs.InvalidArgument, "name must be printable and have 1 to %d bytes", maxNameBytes)
	}
	if req.Scope != nil {
		if !req.Scope.Valid() {
			return k, errdefs.New(errdefs.InvalidArgument, "scope must be team or platform")
		}
		k.Scope = string(*req.Scope)
	}
	if req.ExpiresIn != nil {
		life, ok := lives[*req.ExpiresIn]
		if !ok {
			return k, errdefs.New(errdefs.InvalidArgument, "expires_in must be 30d, 90d, 180d, 365d or never")
		}
		k.Life = life
	}
	for _, role := range req.Roles {
		k.Roles = append(k.Roles, string(role))
	}
	if len(k.Roles) == 0 {
		k.Roles = []string{auth.RoleDeveloper}
	}
	if len(k.Roles) > 16 {
		return k, errdefs.New(errdefs.InvalidArgument, "roles: at most 16")
	}
	return k, nil
}

// plain reports whether a name has no control characters (A18).
func plain(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }

// GetCurrentAPIKey implements GET /api-keys/current.
func (a *API) GetCurrentAPIKey(w http.ResponseWriter, r *http.Request) {
	k, err := a.cfg.Store.APIKeyByID(r.Context(), callerOf(r).identity.KeyID)
	if errdefs.Is(err, errdefs.NotFound) {
		err = auth.ErrUnauthenticated // deleted a moment ago
	}
	roles := k.Roles
	if k.Scope == auth.ScopePlatform {
		roles = []string{auth.RoleAdmin}
	}
	permissions := []string{}
	for _, p := range auth.Permissions(roles) {
		permissions = append(permissions, string(p))
	}
	a.answer(w, r, http.StatusOK, openapi.CurrentAPIKeyResult{APIKey: openapi.CurrentAPIKey{
		ID: k.ID.String(), TeamID: k.TeamID.String(), CreatedBy: k.CreatedBy.String(), Name: new(k.Name), Scope: openapi.APIKeyScope(k.Scope),
		Roles: rolesOut(k.Roles), Permissions: permissions, IsActive: k.Active && !k.Expired, ExpiresAt: timeOut(k.ExpiresAt),
	}}, err)
}

// DeleteAPIKey implements DELETE /api-keys/{id}.
func (a *API) DeleteAPIKey(w http.ResponseWriter, r *http.Request, id string) {
	key, err := keyID(id)
	if err == nil {
		err = a.cfg.Store.DeleteAPIKey(r.Context(), principalOf(r).TeamID, key)
	}
	a.rightsChanged(err)
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "api key deleted"}, err)
}

// DeactivateAPIKey implements POST /api-keys/{id}/deactivate.
func (a *API) DeactivateAPIKey(w http.ResponseWriter, r *http.Request, id string) {
	key, err := keyID(id)
	if err == nil {
		err = a.cfg.Store.DeactivateAPIKey(r.Context(), principalOf(r).TeamID, key)
	}
	a.rightsChanged(err)
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "api key deactivated"}, err)
}

func keyID(id string) (uuid.UUID, error) {
	key, err := uuid.Parse(id)
	if err != nil {
		return uuid.Nil, errdefs.New(errdefs.NotFound, "api key not found")
	}
	return key, nil
}

func rolesOut(roles []string) []openapi.Role {
	out := make([]openapi.Role, 0, len(roles))
	for _, r := range roles {
		out = append(out, openapi.Role(r))
	}
	return out
}

// timeOut is the wire's zero time for one that is not set.
func timeOut(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// value is the zero value for a field that is absent.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
