package httpapi

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	meteringPage    = 100
	maxMeteringPage = 1000
)

// GetMeteringStatus implements GET /internal/v1/metering/status.
func (a *API) GetMeteringStatus(w http.ResponseWriter, r *http.Request) {
	st, err := a.cfg.Store.MeteringStatus(r.Context())
	a.answer(w, r, http.StatusOK, openapi.MeteringStatus{
		RegionID: a.cfg.RegionID, EventsCompleteBefore: st.EventsUntil, WindowsCompleteBefore: st.WindowsUntil,
		LastEventCursor: meteringCursor(st.LastEvent), LastWindowCursor: meteringCursor(st.LastWindow),
	}, err)
}

// ListMeteringEvents implements GET /internal/v1/metering/events.
func (a *API) ListMeteringEvents(w http.ResponseWriter, r *http.Request, params openapi.ListMeteringEventsParams) {
	after, limit, err := meteringQuery(params.Cursor, params.Limit)
	var list []store.MeteringEvent
	if err == nil {
		list, err = a.cfg.Store.MeteringEvents(r.Context(), after, limit)
	}
	page := openapi.MeteringEventPage{Events: []openapi.MeteringEvent{}, NextCursor: meteringCursor(after)}
	for _, e := range list {
		page.NextCursor = meteringCursor(e.Seq)
		subject, sandboxID, cluster := a.subject(e.Type, e.SandboxID)
		page.Events = append(page.Events, openapi.MeteringEvent{
			EventID: e.EventID, EventType: e.Type, RegionID: a.cfg.RegionID, ClusterID: cluster,
			TeamID: e.TeamID.String(), UserID: e.UserID.String(), SubjectType: subject, SubjectID: e.SandboxID,
			SandboxID: sandboxID, TemplateID: e.TemplateID, OccurredAt: e.OccurredAt, RecordedAt: e.RecordedAt,
		})
	}
	a.answer(w, r, http.StatusOK, page, err)
}

// ListMeteringWindows implements GET /internal/v1/metering/windows.
func (a *API) ListMeteringWindows(w http.ResponseWriter, r *http.Request, params openapi.ListMeteringWindowsParams) {
	f, err := windowFilter(params.Cursor, params.Limit, params.WindowType)
	var list []store.Window
	if err == nil {
		list, err = a.cfg.Store.AllWindows(r.Context(), f)
	}
	a.answer(w, r, http.StatusOK, a.windowsOut(f, list, true), err)
}

// ListUsageWindows implements GET /api/v1/usage/windows.
func (a *API) ListUsageWindows(w http.ResponseWriter, r *http.Request, params openapi.ListUsageWindowsParams) {
	f, err := windowFilter(params.Cursor, params.Limit, params.WindowType)
	var list []store.Window
	if err == nil {
		list, err = a.cfg.Store.Windows(r.Context(), principalOf(r).TeamID, f)
	}
	a.answer(w, r, http.StatusOK, a.windowsOut(f, list, false), err)
}

func (a *API) windowsOut(f store.WindowFilter, list []store.Window, teams bool) openapi.UsageWindowPage {
	page := openapi.UsageWindowPage{Windows: []openapi.UsageWindow{}, NextCursor: meteringCursor(f.After)}
	for _, win := range list {
		page.NextCursor = meteringCursor(win.Seq)
		subject, sandboxID, cluster := a.subject(win.Type, win.SandboxID)
		out := openapi.UsageWindow{
			WindowID: fmt.Sprintf("%s/%s/%d", win.Type, win.SandboxID, win.Start.Unix()),
			RegionID: new(a.cfg.RegionID), ClusterID: &cluster,
			WindowType: win.Type, SubjectType: subject, SubjectID: win.SandboxID, SandboxID: optional(sandboxID),
			WindowStart: win.Start, WindowEnd: win.End, Value: win.Value, Unit: win.Unit, RecordedAt: win.RecordedAt,
		}
		if teams {
			out.TeamID = new(win.TeamID.String())
		}
		page.Windows = append(page.Windows, out)
	}
	return page
}

// subject says what was metered: a sandbox, whose id names its cluster, or a volume.
func (a *API) subject(of, id string) (kind, sandboxID, cluster string) {
	if of == store.WindowVolume || strings.HasPrefix(of, "volume.") || strings.HasPrefix(of, "snapshot.") {
		return "volume", "", a.cfg.Cluster
	}
	return "sandbox", id, sandbox.ID(id).Cluster()
}

var windowTypes = []string{store.WindowRuntime, store.WindowIngress, store.WindowEgress, store.WindowRootfs, store.WindowVolume}

func windowFilter(cursor *string, limit *int, windowType *string) (store.WindowFilter, error) {
	f := store.WindowFilter{Type: value(windowType)}
	var err error
	if f.After, f.Limit, err = meteringQuery(cursor, limit); err != nil {
		return f, err
	}
	if f.Type != "" && !slices.Contains(windowTypes, f.Type) {
		return f, errdefs.New(errdefs.InvalidArgument, "window_type: want one of %s", strings.Join(windowTypes, ", "))
	}
	return f, nil
}

// A cursor is the number of the last row that was read: opaque to clients, and good
// for ever, since rows become visible in the order of their numbers.
func meteringCursor(seq int64) string { return "m" + strconv.FormatInt(seq, 36) }

func meteringQuery(cursor *string, limit *int) (after int64, n int, err error) {
	n = meteringPage
	if limit != nil {
		n = *limit
	}
	if n < 1 || n > maxMeteringPage {
		return 0, 0, errdefs.New(errdefs.InvalidArgument, "limit must be 1 to %d", maxMeteringPage)
	}
	if value(cursor) == "" {
		return 0, n, nil
	}
	after, err = strconv.ParseInt(strings.TrimPrefix(*cursor, "m"), 36, 64)
	if err != nil || after < 0 || meteringCursor(after) != *cursor {
		return 0, 0, errdefs.New(errdefs.InvalidArgument, "cursor is invalid")
	}
	return after, n, nil
}
