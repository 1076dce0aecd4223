package httpapi

import (
	"net/http"
	"slices"
	"strings"

	"s0.run/api/internal/observe"
	"s0.run/api/internal/openapi"
)

// ListSandboxMetricSamples implements GET /api/v1/sandboxes/{id}/observability/metrics.
func (a *API) ListSandboxMetricSamples(w http.ResponseWriter, r *http.Request, id string, params openapi.ListSandboxMetricSamplesParams) {
	to, err := target(r, id)
	q := observe.SampleQuery{
		Range: observe.NewRange(params.StartTime, params.EndTime), Limit: observe.DefaultPage,
		Cursor: value(params.Cursor), ContextID: value(params.ContextID),
		Names: namesOf(slices.Concat(params.Name, r.URL.Query()["name[]"], []string{value(params.Names)})),
	}
	if params.Limit != nil {
		q.Limit = *params.Limit
	}
	if err == nil && value(params.Watch) {
		first, next, err := a.cfg.Observe.WatchSamples(r.Context(), to, q)
		a.watch(w, r, to, watch{first, next, err})
		return
	}
	var list openapi.SandboxMetricSampleList
	if err == nil {
		list, err = a.cfg.Observe.Samples(r.Context(), to, q)
	}
	a.answer(w, r, http.StatusOK, list, err)
}

// GetSandboxMetrics implements GET /api/v1/sandboxes/{id}/metrics.
func (a *API) GetSandboxMetrics(w http.ResponseWriter, r *http.Request, id string, params openapi.GetSandboxMetricsParams) {
	to, err := target(r, id)
	q := observe.SeriesQuery{
		Range: observe.NewRange(params.StartTime, params.EndTime), Names: namesOf([]string{value(params.Metrics)}),
		Statistic: value(params.Statistic), StepSeconds: value(params.StepSeconds), MaxPoints: value(params.MaxPoints),
	}
	var out openapi.SandboxRuntimeMetrics
	if err == nil {
		out, err = a.cfg.Observe.Series(r.Context(), to, q)
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// namesOf splits lists of names at their commas.
func namesOf(lists []string) []string {
	var names []string
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// GetSandboxMetricsCatalog implements GET /api/v1/sandboxes/{id}/metrics/catalog.
func (a *API) GetSandboxMetricsCatalog(w http.ResponseWriter, r *http.Request, id string) {
	_, err := a.sandbox(r, id)
	a.answer(w, r, http.StatusOK, observe.Catalog(), err)
}
