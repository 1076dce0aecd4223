package auth

import (
	"time"

	"github.com/google/uuid"

	"s0.run/internal/errdefs"
)

// Identity is a caller whose credential was verified, before a team is chosen.
type Identity struct {
	UserID  uuid.UUID
	Grants  []Grant   // of a user: one for each team, as it is now
	IsAdmin bool      // of a user: of the whole system, as it is now
	KeyID   uuid.UUID // of an API key; uuid.Nil for a user
	Expires time.Time // of a user: when the access token does

	key keyIdentity
}

type keyIdentity struct {
	team     uuid.UUID
	roles    []string
	platform bool
}

// Grant is what a user is in a team. Its JSON is part of the access token.
type Grant struct {
	TeamID       uuid.UUID `json:"team_id"`
	TeamRole     string    `json:"team_role"`
	HomeRegionID string    `json:"home_region_id"`
	Owner        bool      `json:"-"` // of the team
}

// IsKey reports whether the caller came with an API key.
func (id *Identity) IsKey() bool { return id.KeyID != uuid.Nil }

// Operator reports whether the caller administers the whole system: a system
// admin, or a platform key.
func (id *Identity) Operator() bool { return id.IsAdmin || id.IsKey() && id.key.platform }

// Grant is what the caller, a user, is in a team.
func (id *Identity) Grant(team uuid.UUID) (Grant, bool) {
	for _, g := range id.Grants {
		if g.TeamID == team {
			return g, true
		}
	}
	return Grant{}, false
}

// Principal is a caller who acts within a team.
type Principal struct {
	UserID  uuid.UUID
	TeamID  uuid.UUID
	KeyID   uuid.UUID // uuid.Nil for a user
	IsAdmin bool      // of the whole system

	roles []string
}

// Can reports whether the caller's roles in the team grant the permission.
func (p *Principal) Can(perm Permission) bool { return grants(p.roles, perm) }

// ErrUnauthenticated is the one answer to every credential that does not hold.
var ErrUnauthenticated = errdefs.New(errdefs.Unauthenticated, "authentication required")

// InTeam chooses the team that the caller acts in. selected is the X-Team-ID
// header, empty when absent. An API key acts in its own team alone; a platform
// key in any (see [Identity.Elsewhere]).
func (id *Identity) InTeam(selected string) (Principal, error) {
	var team uuid.UUID
	if selected != "" {
		var err error
		if team, err = uuid.Parse(selected); err != nil {
			return Principal{}, errdefs.New(errdefs.InvalidArgument, "X-Team-ID is not a team id")
		}
	}
	if id.IsKey() {
		return id.keyInTeam(team)
	}
	return id.userInTeam(team)
}

// Elsewhere reports whether the caller, a platform key, acts in a team that its
// credential does not vouch for: the caller of InTeam checks that it exists.
func (id *Identity) Elsewhere(team uuid.UUID) bool {
	return id.IsKey() && id.key.platform && team != id.key.team
}

func (id *Identity) keyInTeam(team uuid.UUID) (Principal, error) {
	p := Principal{UserID: id.UserID, TeamID: id.key.team, KeyID: id.KeyID, IsAdmin: id.key.platform, roles: id.key.roles}
	switch {
	case team == uuid.Nil || team == id.key.team:
	case id.key.platform:
		p.TeamID = team
	default:
		return Principal{}, ErrUnauthenticated
	}
	return p, nil
}

func (id *Identity) userInTeam(team uuid.UUID) (Principal, error) {
	if team == uuid.Nil && len(id.Grants) != 1 {
		return Principal{}, errdefs.New(errdefs.InvalidArgument, "X-Team-ID is required: you belong to %d teams", len(id.Grants))
	}
	if team == uuid.Nil {
		team = id.Grants[0].TeamID
	}
	g, member := id.Grant(team)
	if !member {
		return Principal{}, errdefs.New(errdefs.PermissionDenied, "insufficient permissions")
	}
	return Principal{UserID: id.UserID, TeamID: g.TeamID, IsAdmin: id.IsAdmin, roles: []string{g.TeamRole}}, nil
}
