package httpapi

import (
	"net/http"

	"s0.run/api/internal/events"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
)

// ListSandboxEvents implements GET /api/v1/sandboxes/{id}/observability/events.
func (a *API) ListSandboxEvents(w http.ResponseWriter, r *http.Request, id string, params openapi.ListSandboxEventsParams) {
	to, err := target(r, id)
	var q events.ListQuery
	if err == nil {
		q, err = eventQuery(params)
	}
	if err == nil && value(params.Watch) {
		first, next, err := a.cfg.Events.Watch(r.Context(), to.Team, to.ID, q)
		a.watch(w, r, to, watch{first, next, err})
		return
	}
	var list openapi.SandboxEventList
	if err == nil {
		list, err = a.cfg.Events.List(r.Context(), to.Team, to.ID, q)
	}
	a.answer(w, r, http.StatusOK, list, err)
}

func eventQuery(p openapi.ListSandboxEventsParams) (events.ListQuery, error) {
	if p.Limit != nil && *p.Limit == 0 {
		return events.ListQuery{}, errdefs.New(errdefs.InvalidArgument, "limit must be more than 0")
	}
	switch {
	case p.Source != nil && !p.Source.Valid(), p.EventType != nil && !p.EventType.Valid(),
		p.Outcome != nil && !p.Outcome.Valid(), p.ActorKind != nil && !p.ActorKind.Valid():
		return events.ListQuery{}, errdefs.New(errdefs.InvalidArgument, "source, event_type, outcome or actor_kind is invalid")
	}
	return events.ListQuery{
		Query: events.Query{
			Source: string(value(p.Source)), EventType: string(value(p.EventType)), Outcome: string(value(p.Outcome)),
			ActorKind: string(value(p.ActorKind)), ResourceType: value(p.ResourceType), Action: value(p.Action),
		},
		Start: p.StartTime, End: p.EndTime, Limit: value(p.Limit), Cursor: value(p.Cursor),
		ActorID: value(p.ActorID), EventID: value(p.EventID), Operation: value(p.OperationID),
	}, nil
}
