package httpapi

import (
	"net/http"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/ndjson"
	"s0.run/api/internal/observe"
	"s0.run/api/internal/openapi"
)

// ListSandboxLogs implements GET /api/v1/sandboxes/{id}/observability/logs.
func (a *API) ListSandboxLogs(w http.ResponseWriter, r *http.Request, id string, params openapi.ListSandboxLogsParams) {
	to, err := target(r, id)
	q := observe.LogQuery{
		Range: observe.NewRange(params.StartTime, params.EndTime), Limit: observe.DefaultPage,
		Cursor: value(params.Cursor), ContextID: value(params.ContextID), Stream: value(params.Stream),
	}
	if params.Limit != nil {
		q.Limit = *params.Limit
	}
	if err == nil && value(params.Watch) {
		first, next, err := a.cfg.Observe.WatchLogs(r.Context(), to, q)
		a.watch(w, r, to, watch{first, next, err})
		return
	}
	var list openapi.SandboxLogList
	if err == nil {
		list, err = a.cfg.Observe.Logs(r.Context(), to, q)
	}
	a.answer(w, r, http.StatusOK, list, err)
}

// ListSandboxLogsByOldPath implements GET /api/v1/sandboxes/{id}/logs.
func (a *API) ListSandboxLogsByOldPath(w http.ResponseWriter, r *http.Request, id string, params openapi.ListSandboxLogsByOldPathParams) {
	a.ListSandboxLogs(w, r, id, openapi.ListSandboxLogsParams(params))
}

// watch is a watch that is about to begin, or why it is not.
type watch struct {
	first []ndjson.Line
	next  ndjson.Source
	err   error
}

func (a *API) watch(w http.ResponseWriter, r *http.Request, to dataplane.Target, of watch) {
	err := of.err
	if err == nil {
		err = a.cfg.Watches.Serve(w, r, to.Team, of.first, of.next)
	}
	if err != nil {
		a.fail(w, r, err)
	}
}
