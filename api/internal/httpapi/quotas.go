package httpapi

import (
	"context"
	"net/http"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/quota"
	"s0.run/internal/errdefs"
)

// ListQuotas implements GET /api/v1/quotas.
func (a *API) ListQuotas(w http.ResponseWriter, r *http.Request, params openapi.ListQuotasParams) {
	v, err := a.quotas(r.Context(), principalOf(r).TeamID)
	a.answer(w, r, http.StatusOK, v.List(value(params.All)), err)
}

// GetQuota implements GET /api/v1/quotas/{dimension}.
func (a *API) GetQuota(w http.ResponseWriter, r *http.Request, dimension string) {
	q, err := a.quota(r.Context(), principalOf(r).TeamID, dimension)
	a.answer(w, r, http.StatusOK, q, err)
}

func (a *API) quota(ctx context.Context, team uuid.UUID, dimension string) (openapi.TeamQuota, error) {
	v, err := a.quotas(ctx, team)
	if err != nil {
		return openapi.TeamQuota{}, err
	}
	return v.One(dimension)
}

func (a *API) quotas(ctx context.Context, team uuid.UUID) (quota.View, error) {
	v := quota.View{Team: team, RequestsPerSecond: a.cfg.Rate, RequestBurst: a.cfg.Burst}
	var err error
	if v.Limits, err = a.cfg.Store.Quotas(ctx, team); err == nil {
		v.Usage, err = a.cfg.Store.Usage(ctx, team)
	}
	return v, err
}

// SetTeamQuota implements PUT /internal/v1/teams/{team_id}/quotas/{dimension}.
func (a *API) SetTeamQuota(w http.ResponseWriter, r *http.Request, teamID, dimension string) {
	var req openapi.SetQuotaRequest
	team, err := knownTeam(teamID)
	if err == nil {
		err = decode(w, r, controlBytes, &req)
	}
	var q openapi.TeamQuota
	if err == nil {
		q, err = a.setQuota(r.Context(), team, dimension, req)
	}
	a.answer(w, r, http.StatusOK, q, err)
}

func (a *API) setQuota(ctx context.Context, team uuid.UUID, dimension string, req openapi.SetQuotaRequest) (openapi.TeamQuota, error) {
	limit, err := quota.Parse(dimension, req)
	if err == nil {
		err = a.cfg.Store.SetQuota(ctx, team, limit)
	}
	if err != nil {
		return openapi.TeamQuota{}, err
	}
	return a.quota(ctx, team, dimension)
}

// UnsetTeamQuota implements DELETE /internal/v1/teams/{team_id}/quotas/{dimension}.
func (a *API) UnsetTeamQuota(w http.ResponseWriter, r *http.Request, teamID, dimension string) {
	team, err := knownTeam(teamID)
	var stored string
	if err == nil {
		stored, err = quota.Stored(dimension)
	}
	if err == nil {
		err = a.cfg.Store.UnsetQuota(r.Context(), team, stored)
	}
	var q openapi.TeamQuota
	if err == nil {
		q, err = a.quota(r.Context(), team, dimension)
	}
	a.answer(w, r, http.StatusOK, q, err)
}

// knownTeam is the gate for the id of a team; one that can't be is like one that is not.
func knownTeam(id string) (uuid.UUID, error) {
	team, err := uuid.Parse(id)
	if err != nil {
		return uuid.Nil, errdefs.New(errdefs.NotFound, "team not found")
	}
	return team, nil
}
