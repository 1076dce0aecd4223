package httpapi

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/google/uuid"

	"s0.run/api/internal/auth"
	"s0.run/api/internal/identity"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/sshkey"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	maxURLBytes  = 2048
	usersPage    = 50
	maxUsersPage = 200
	maxUsersSkip = 1_000_000
)

// Register implements POST /auth/register.
func (a *API) Register(w http.ResponseWriter, r *http.Request) {
	var req openapi.RegisterRequest
	err := decode(w, r, controlBytes, &req, "email", "password", "name")
	if err == nil {
		err = a.limitSignIns(w, r, strings.ToLower(req.Email))
	}
	if err == nil {
		err = a.cfg.Identity.CheckRegion(value(req.HomeRegionID))
	}
	var s identity.Session
	if err == nil {
		s, err = a.cfg.Identity.Register(r.Context(), identity.Registration{Email: req.Email, Password: req.Password, Name: req.Name})
	}
	a.answer(w, r, http.StatusCreated, sessionOut(s), err)
}

// UpdateCurrentUser implements PUT /users/me.
func (a *API) UpdateCurrentUser(w http.ResponseWriter, r *http.Request) {
	var req openapi.UpdateUserRequest
	err := decode(w, r, controlBytes, &req)
	if err == nil && req.Name != nil {
		err = identity.CheckName("name", *req.Name)
	}
	if err == nil && req.AvatarURL != nil {
		err = checkPicture(*req.AvatarURL)
	}
	id := callerOf(r).identity
	var u store.User
	if err == nil {
		u, err = a.cfg.Store.UpdateUser(r.Context(), id.UserID, req.Name, req.AvatarURL)
	}
	a.answer(w, r, http.StatusOK, userOut(u, defaultTeam(&id)), err)
}

// checkPicture refuses what a page should not load.
func checkPicture(link string) error {
	u, err := url.Parse(link)
	if link != "" && (err != nil || len(link) > maxURLBytes || !plain(link) || u.Scheme != "https" || u.Host == "" || u.User != nil) {
		return errdefs.New(errdefs.InvalidArgument, "avatar_url must be an https URL, or empty")
	}
	return nil
}

// defaultTeam is the team that a user came into first.
func defaultTeam(id *auth.Identity) uuid.UUID {
	if len(id.Grants) == 0 {
		return uuid.Nil
	}
	return id.Grants[0].TeamID
}

// ListIdentities implements GET /users/me/identities.
func (a *API) ListIdentities(w http.ResponseWriter, r *http.Request) {
	list, err := a.cfg.Store.UserIdentities(r.Context(), callerOf(r).identity.UserID)
	out := openapi.IdentityList{Identities: []openapi.Identity{}}
	for _, i := range list {
		out.Identities = append(out.Identities, openapi.Identity{ID: i.ID.String(), Provider: i.Provider, CreatedAt: i.CreatedAt.Unix()})
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// DeleteIdentity implements DELETE /users/me/identities/{id}.
func (a *API) DeleteIdentity(w http.ResponseWriter, r *http.Request, id string) {
	which, err := parseID(id, "identity")
	if err == nil {
		err = a.cfg.Store.DeleteUserIdentity(r.Context(), callerOf(r).identity.UserID, which)
	}
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "identity deleted"}, err)
}

// unlessEmpty leaves out what is empty.
func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// parseID reads an id of ours. What can't be one is not there.
func parseID(id, what string) (uuid.UUID, error) {
	parsed, err := uuid.Parse(id)
	if err != nil || parsed.String() != id {
		return uuid.Nil, errdefs.New(errdefs.NotFound, "%s not found", what)
	}
	return parsed, nil
}

// ListSSHKeys implements GET /users/me/ssh-keys.
func (a *API) ListSSHKeys(w http.ResponseWriter, r *http.Request) {
	p := principalOf(r)
	keys, err := a.cfg.Store.SSHKeys(r.Context(), p.TeamID, p.UserID)
	out := openapi.SSHKeyList{SSHKeys: []openapi.SSHKey{}}
	for _, k := range keys {
		out.SSHKeys = append(out.SSHKeys, sshKeyOut(k))
	}
	a.answer(w, r, http.StatusOK, out, err)
}

func sshKeyOut(k store.SSHKey) openapi.SSHKey {
	return openapi.SSHKey{
		ID: k.ID.String(), Name: k.Name, PublicKey: k.PublicKey, KeyType: k.KeyType, FingerprintSha256: k.Fingerprint, Comment: unlessEmpty(k.Comment),
		CreatedAt: k.CreatedAt, UpdatedAt: k.UpdatedAt,
	}
}

// CreateSSHKey implements POST /users/me/ssh-keys.
func (a *API) CreateSSHKey(w http.ResponseWriter, r *http.Request) {
	var req openapi.CreateSSHKeyRequest
	err := decode(w, r, controlBytes, &req, "name", "public_key")
	if err == nil {
		err = identity.CheckName("name", req.Name)
	}
	var key sshkey.Key
	if err == nil {
		if key, err = sshkey.Parse(req.PublicKey); err != nil {
			err = errdefs.New(errdefs.InvalidArgument, "%s", err)
		}
	}
	p := principalOf(r)
	var row store.SSHKey
	if err == nil {
		row, err = a.cfg.Store.AddSSHKey(r.Context(), p.TeamID, p.UserID, store.SSHKey{
			Name: req.Name, PublicKey: key.Line, KeyType: key.Type, Fingerprint: key.Fingerprint, Comment: key.Comment,
		})
	}
	a.answer(w, r, http.StatusCreated, sshKeyOut(row), err)
}

// DeleteSSHKey implements DELETE /users/me/ssh-keys/{id}.
func (a *API) DeleteSSHKey(w http.ResponseWriter, r *http.Request, id string) {
	p := principalOf(r)
	key, err := parseID(id, "ssh key")
	if err == nil {
		err = a.cfg.Store.DeleteSSHKey(r.Context(), p.TeamID, p.UserID, key)
	}
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "ssh key deleted"}, err)
}

// ListUsers implements GET /internal/v1/users.
func (a *API) ListUsers(w http.ResponseWriter, r *http.Request, p openapi.ListUsersParams) {
	limit, skip := usersPage, value(p.Offset)
	if p.Limit != nil {
		limit = *p.Limit
	}
	var err error
	if limit < 1 || limit > maxUsersPage || skip < 0 || skip > maxUsersSkip {
		err = errdefs.New(errdefs.InvalidArgument, "limit must be 1 to %d and offset 0 to %d", maxUsersPage, maxUsersSkip)
	}
	var query string
	if err == nil {
		query, err = searchTerm(p.Query)
	}
	var users []store.User
	if err == nil {
		users, err = a.cfg.Store.Users(r.Context(), query, limit, skip)
	}
	out := openapi.UserAccountList{Users: []openapi.UserAccount{}}
	for _, u := range users {
		out.Users = append(out.Users, accountOut(u))
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// searchTerm is a part of an email address or a name.
func searchTerm(query *string) (string, error) {
	term := value(query)
	if len(term) > maxEmailBytes || !plain(term) {
		return "", errdefs.New(errdefs.InvalidArgument, "query is invalid")
	}
	return term, nil
}

func accountOut(u store.User) openapi.UserAccount {
	return openapi.UserAccount{
		ID: u.ID.String(), Email: u.Email, Name: u.Name, EmailVerified: u.Verified, IsAdmin: u.IsAdmin, Disabled: u.Disabled,
		CreatedAt: u.CreatedAt, UpdatedAt: u.UpdatedAt,
	}
}

// UpdateUserRights implements PUT /internal/v1/users/{id}.
func (a *API) UpdateUserRights(w http.ResponseWriter, r *http.Request, id string) {
	which, err := parseID(id, "user")
	var req openapi.UserRightsRequest
	if err == nil {
		err = decode(w, r, controlBytes, &req)
	}
	var u store.User
	if err == nil {
		u, err = a.cfg.Store.SetUserRights(r.Context(), which, req.Disabled, req.IsAdmin)
	}
	a.rightsChanged(err)
	a.answer(w, r, http.StatusOK, accountOut(u), err)
}

// rightsChanged makes what an answer says true here at once; other replicas are
// told by the database, and so is this one of a change whose answer was lost. Who
// changes nothing makes nobody be looked up again (A08).
func (a *API) rightsChanged(err error) {
	if err == nil {
		a.cfg.Auth.Forget()
	}
}
