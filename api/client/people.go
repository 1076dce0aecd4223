package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// Register signs up, where the server's operator allows that. It needs no token.
func (c *Client) Register(ctx context.Context, req RegisterRequest) (*Login, error) {
	return do[Login](ctx, c, call{method: http.MethodPost, path: "/auth/register", body: req})
}

// IssueRegionToken returns a token for the region of a team; an empty id stands
// for the team that requests act in.
func (c *Client) IssueRegionToken(ctx context.Context, team string) (*RegionToken, error) {
	body := RegionTokenRequest{}
	if team != "" {
		body.TeamID = &team
	}
	return do[RegionToken](ctx, c, call{method: http.MethodPost, path: "/auth/region-token", body: body})
}

// ActiveTenant returns the team that requests act in.
func (c *Client) ActiveTenant(ctx context.Context) (*ActiveTenant, error) {
	return do[ActiveTenant](ctx, c, call{method: http.MethodGet, path: "/tenant/active"})
}

// UpdateUser changes the signed-in user's name or picture.
func (c *Client) UpdateUser(ctx context.Context, req UpdateUserRequest) (*User, error) {
	return do[User](ctx, c, call{method: http.MethodPut, path: "/users/me", body: req})
}

// ListIdentities lists the ways in which the signed-in user can sign in.
func (c *Client) ListIdentities(ctx context.Context) (*IdentityList, error) {
	return do[IdentityList](ctx, c, call{method: http.MethodGet, path: "/users/me/identities"})
}

// DeleteIdentity takes away a way to sign in, never the last.
func (c *Client) DeleteIdentity(ctx context.Context, id string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: escape("users", "me", "identities", id)})
}

// ListSSHKeys lists the signed-in user's SSH keys in the team.
func (c *Client) ListSSHKeys(ctx context.Context) (*SSHKeyList, error) {
	return do[SSHKeyList](ctx, c, call{method: http.MethodGet, path: "/users/me/ssh-keys"})
}

// CreateSSHKey adds an SSH key of the signed-in user in the team.
func (c *Client) CreateSSHKey(ctx context.Context, name, publicKey string) (*SSHKey, error) {
	body := CreateSSHKeyRequest{Name: name, PublicKey: publicKey}
	return do[SSHKey](ctx, c, call{method: http.MethodPost, path: "/users/me/ssh-keys", body: body})
}

// DeleteSSHKey deletes an SSH key of the signed-in user in the team.
func (c *Client) DeleteSSHKey(ctx context.Context, id string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: escape("users", "me", "ssh-keys", id)})
}

// CreateTeam creates a team that the signed-in user owns.
func (c *Client) CreateTeam(ctx context.Context, req CreateTeamRequest) (*Team, error) {
	return do[Team](ctx, c, call{method: http.MethodPost, path: "/teams", body: req})
}

// GetTeam returns a team that the signed-in user is in.
func (c *Client) GetTeam(ctx context.Context, id string) (*Team, error) {
	return do[Team](ctx, c, call{method: http.MethodGet, path: escape("teams", id)})
}

// UpdateTeam renames a team.
func (c *Client) UpdateTeam(ctx context.Context, id string, req UpdateTeamRequest) (*Team, error) {
	return do[Team](ctx, c, call{method: http.MethodPut, path: escape("teams", id), body: req})
}

// DeleteTeam deletes a team that the signed-in user owns. While it has sandboxes
// or templates it is refused with a 409.
func (c *Client) DeleteTeam(ctx context.Context, id string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: escape("teams", id)})
}

// TransferTeam makes another member the owner of a team.
func (c *Client) TransferTeam(ctx context.Context, id, user string) (*Team, error) {
	body := TransferTeamRequest{UserID: user}
	return do[Team](ctx, c, call{method: http.MethodPut, path: escape("teams", id, "owner"), body: body})
}

// ListTeamMembers lists the members of a team whose email address or name has the
// query in it; an empty one lists all.
func (c *Client) ListTeamMembers(ctx context.Context, team, query string) (*TeamMemberList, error) {
	in := call{method: http.MethodGet, path: escape("teams", team, "members")}
	if query != "" {
		in.query = url.Values{"query": {query}}
	}
	return do[TeamMemberList](ctx, c, in)
}

// AddTeamMember makes the user with an email address a member of a team.
func (c *Client) AddTeamMember(ctx context.Context, team, email string, role Role) (*TeamMember, error) {
	body := AddTeamMemberRequest{Email: email, Role: role}
	return do[TeamMember](ctx, c, call{method: http.MethodPost, path: escape("teams", team, "members"), body: body})
}

// UpdateTeamMember changes the role of a member.
func (c *Client) UpdateTeamMember(ctx context.Context, team, user string, role Role) error {
	body := UpdateTeamMemberRequest{Role: role}
	return exec(ctx, c, call{method: http.MethodPut, path: escape("teams", team, "members", user), body: body})
}

// RemoveTeamMember removes a member from a team. Everybody may remove himself but
// the owner.
func (c *Client) RemoveTeamMember(ctx context.Context, team, user string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: escape("teams", team, "members", user)})
}

// ListUsersOptions narrows [Client.ListUsers].
type ListUsersOptions struct {
	Query  string // a part of the email address or the name
	Limit  int    // 0: the server's default
	Offset int
}

// ListUsers lists the users of the whole system, for its admins.
func (c *Client) ListUsers(ctx context.Context, o ListUsersOptions) (*UserAccountList, error) {
	query := url.Values{}
	if o.Query != "" {
		query.Set("query", o.Query)
	}
	if o.Limit != 0 {
		query.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.Offset != 0 {
		query.Set("offset", strconv.Itoa(o.Offset))
	}
	return do[UserAccountList](ctx, c, call{method: http.MethodGet, path: "/internal/v1/users", query: query})
}

// UpdateUserRights disables a user or makes one an admin of the system, for its
// admins. What is nil stays.
func (c *Client) UpdateUserRights(ctx context.Context, id string, req UserRightsRequest) (*UserAccount, error) {
	return do[UserAccount](ctx, c, call{method: http.MethodPut, path: escape("internal", "v1", "users", id), body: req})
}
