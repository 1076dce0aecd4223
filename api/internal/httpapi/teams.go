package httpapi

import (
	"net/http"

	"s0.run/api/internal/auth"
	"s0.run/api/internal/identity"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// ListTeams implements GET /teams.
func (a *API) ListTeams(w http.ResponseWriter, r *http.Request) {
	teams, err := a.cfg.Store.Teams(r.Context(), callerOf(r).identity.UserID)
	out := openapi.TeamList{Teams: []openapi.Team{}}
	for _, t := range teams {
		out.Teams = append(out.Teams, teamOut(t))
	}
	a.answer(w, r, http.StatusOK, out, err)
}

func teamOut(t store.Team) openapi.Team {
	return openapi.Team{
		ID: t.ID.String(), Name: t.Name, Slug: t.Slug, OwnerID: new(t.OwnerID.String()), HomeRegionID: new(t.HomeRegionID),
		CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt,
	}
}

// CreateTeam implements POST /teams. Who makes and deletes teams all day leaves
// traces of each for a while, and therefore is slow at it.
func (a *API) CreateTeam(w http.ResponseWriter, r *http.Request) {
	var req openapi.CreateTeamRequest
	err := decode(w, r, controlBytes, &req, "name")
	if err == nil {
		err = a.cfg.Identity.CheckRegion(value(req.HomeRegionID))
	}
	if err == nil && req.Slug != nil {
		err = identity.CheckSlug(*req.Slug)
	}
	user := callerOf(r).identity.UserID
	if err == nil {
		err = a.limit(w, a.signInHosts, user.String())
	}
	var t store.Team
	if err == nil {
		t, err = a.cfg.Identity.CreateTeam(r.Context(), store.Team{Name: req.Name, Slug: value(req.Slug), OwnerID: user})
	}
	a.rightsChanged(err)
	a.answer(w, r, http.StatusCreated, teamOut(t), err)
}

// GetTeam implements GET /teams/{id}.
func (a *API) GetTeam(w http.ResponseWriter, r *http.Request, _ string) {
	t, err := a.cfg.Store.Team(r.Context(), principalOf(r).TeamID)
	a.answer(w, r, http.StatusOK, teamOut(t), err)
}

// UpdateTeam implements PUT /teams/{id}.
func (a *API) UpdateTeam(w http.ResponseWriter, r *http.Request, _ string) {
	var req openapi.UpdateTeamRequest
	err := decode(w, r, controlBytes, &req)
	if err == nil && req.Name != nil {
		err = identity.CheckName("name", *req.Name)
	}
	if err == nil && req.Slug != nil {
		err = identity.CheckSlug(*req.Slug)
	}
	var t store.Team
	if err == nil {
		t, err = a.cfg.Store.UpdateTeam(r.Context(), principalOf(r).TeamID, req.Name, req.Slug)
	}
	a.answer(w, r, http.StatusOK, teamOut(t), err)
}

// DeleteTeam implements DELETE /teams/{id}.
func (a *API) DeleteTeam(w http.ResponseWriter, r *http.Request, _ string) {
	p := principalOf(r)
	err := a.cfg.Store.DeleteTeam(r.Context(), p.TeamID, p.UserID)
	a.rightsChanged(err)
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "team deleted"}, err)
}

// TransferTeam implements PUT /teams/{id}/owner.
func (a *API) TransferTeam(w http.ResponseWriter, r *http.Request, _ string) {
	var req openapi.TransferTeamRequest
	err := decode(w, r, controlBytes, &req, "user_id")
	p := principalOf(r)
	var t store.Team
	if err == nil {
		t, err = a.transferTeam(r, p, req.UserID)
	}
	a.rightsChanged(err)
	a.answer(w, r, http.StatusOK, teamOut(t), err)
}

func (a *API) transferTeam(r *http.Request, p auth.Principal, to string) (store.Team, error) {
	user, err := parseID(to, "member")
	if err != nil {
		return store.Team{}, err
	}
	return a.cfg.Store.TransferTeam(r.Context(), p.TeamID, p.UserID, user)
}

// ListTeamMembers implements GET /teams/{id}/members.
func (a *API) ListTeamMembers(w http.ResponseWriter, r *http.Request, _ string, p openapi.ListTeamMembersParams) {
	query, err := searchTerm(p.Query)
	var members []store.Member
	if err == nil {
		members, err = a.cfg.Store.Members(r.Context(), principalOf(r).TeamID, query)
	}
	out := openapi.TeamMemberList{Members: []openapi.TeamMember{}}
	for _, m := range members {
		out.Members = append(out.Members, memberOut(m))
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// memberOut gives a membership its user's id for its own.
func memberOut(m store.Member) openapi.TeamMember {
	return openapi.TeamMember{
		ID: m.UserID.String(), TeamID: m.TeamID.String(), UserID: m.UserID.String(), Role: openapi.Role(m.Role), JoinedAt: m.JoinedAt,
		Email: new(m.Email), Name: new(m.Name), AvatarURL: unlessEmpty(m.AvatarURL),
	}
}

// AddTeamMember implements POST /teams/{id}/members. Who adds finds out which
// addresses have an account here, and therefore is slow at it.
func (a *API) AddTeamMember(w http.ResponseWriter, r *http.Request, _ string) {
	var req openapi.AddTeamMemberRequest
	err := decode(w, r, controlBytes, &req, "email", "role")
	if err == nil {
		err = checkEmail(req.Email)
	}
	if err == nil {
		err = checkRole(req.Role)
	}
	p := principalOf(r)
	if err == nil {
		err = a.limit(w, a.signInHosts, p.UserID.String())
	}
	var m store.Member
	if err == nil {
		m, err = a.cfg.Store.AddMember(r.Context(), p.TeamID, req.Email, string(req.Role))
	}
	a.rightsChanged(err)
	a.answer(w, r, http.StatusCreated, memberOut(m), err)
}

func checkRole(role openapi.Role) error {
	if !auth.ValidRole(string(role)) {
		return errdefs.New(errdefs.InvalidArgument, "role must be admin, developer, builder or viewer")
	}
	return nil
}

// UpdateTeamMember implements PUT /teams/{id}/members/{user_id}.
func (a *API) UpdateTeamMember(w http.ResponseWriter, r *http.Request, _, userID string) {
	user, err := parseID(userID, "member")
	var req openapi.UpdateTeamMemberRequest
	if err == nil {
		err = decode(w, r, controlBytes, &req, "role")
	}
	if err == nil {
		err = checkRole(req.Role)
	}
	if err == nil {
		err = a.cfg.Store.SetMemberRole(r.Context(), principalOf(r).TeamID, user, string(req.Role))
	}
	a.rightsChanged(err)
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "member updated"}, err)
}

// RemoveTeamMember implements DELETE /teams/{id}/members/{user_id}.
func (a *API) RemoveTeamMember(w http.ResponseWriter, r *http.Request, _, userID string) {
	user, err := parseID(userID, "member")
	if err == nil {
		err = a.cfg.Store.RemoveMember(r.Context(), principalOf(r).TeamID, user)
	}
	a.rightsChanged(err)
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "member removed"}, err)
}

// GetActiveTenant implements GET /tenant/active.
func (a *API) GetActiveTenant(w http.ResponseWriter, r *http.Request, p openapi.GetActiveTenantParams) {
	g, err := activeTeam(r, value(p.TeamID))
	var gateway *string
	if err == nil {
		gateway, err = a.gatewayURL(r.Context(), g.HomeRegionID)
	}
	a.answer(w, r, http.StatusOK, openapi.ActiveTenant{
		UserID: callerOf(r).identity.UserID.String(), TeamID: g.TeamID.String(), TeamRole: openapi.Role(g.TeamRole), HomeRegionID: g.HomeRegionID,
		DefaultTeam: value(p.TeamID) == "", RegionalGatewayURL: gateway,
	}, err)
}

// activeTeam is the team that was asked for, or else that the header says.
func activeTeam(r *http.Request, team string) (auth.Grant, error) {
	if team == "" {
		team = r.Header.Get("X-Team-ID")
	}
	id := callerOf(r).identity
	p, err := id.InTeam(team)
	if err != nil {
		return auth.Grant{}, err
	}
	g, _ := id.Grant(p.TeamID)
	return g, nil
}

// IssueRegionToken implements POST /auth/region-token. Who has all regions in one
// server gets back the token that he came with: none that would outlive it.
func (a *API) IssueRegionToken(w http.ResponseWriter, r *http.Request) {
	var req openapi.RegionTokenRequest
	err := decodeOptional(w, r, &req)
	var g auth.Grant
	if err == nil {
		g, err = activeTeam(r, value(req.TeamID))
	}
	var gateway *string
	if err == nil {
		gateway, err = a.gatewayURL(r.Context(), g.HomeRegionID)
	}
	a.answer(w, r, http.StatusOK, openapi.RegionToken{
		RegionID: g.HomeRegionID, RegionalGatewayURL: gateway, Token: bearer(r), ExpiresAt: callerOf(r).identity.Expires.Unix(),
	}, err)
}
