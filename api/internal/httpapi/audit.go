package httpapi

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	auditPage    = 100
	maxAuditPage = 500

	// settleTimeout bounds what is written after an answer: a refusal must not wait
	// for a database that is away.
	settleTimeout = time.Second

	maxResourceBytes = 200
)

// dataPlane are the calls that go into a sandbox, whose events tell what happens in it, or
// to the files of a volume: they are not of the control plane's record.
var dataPlane = regexp.MustCompile(`^[A-Z]+ /api/v1/(sandboxes/\{id\}/(contexts|sessions|files)|sandboxvolumes/\{id\}/files)(/|$)`)

// recordedFirst are the changes that no row of ours shows: they are recorded
// before they are made.
var recordedFirst = map[string]bool{
	"POST /api/v1/registry/credentials": true,
	"POST /auth/region-token":           true,
}

// signsIn is the only GET that changes something: a provider sends a browser to it.
const signsIn = "GET /auth/oidc/{provider}/callback"

// changes reports whether an operation changes the control plane.
func changes(pattern string) bool {
	return pattern == signsIn || !strings.HasPrefix(pattern, http.MethodGet+" ") && !dataPlane.MatchString(pattern)
}

// audited gives the calls of an operation that changes the control plane their
// record. The change and its record are one write (A24): what the operation
// stores stores it, and is refused when it can't. A call that changed nothing is
// recorded after it; so is what became of a change whose call failed later on.
func (a *API) audited(pattern string, operation http.HandlerFunc) http.HandlerFunc {
	if !changes(pattern) {
		return operation
	}
	id := a.cfg.Doc.OperationID(pattern)
	return func(w http.ResponseWriter, r *http.Request) {
		rec := auditRecord(r, id)
		if recordedFirst[pattern] {
			rec.End(audit.Begun, "")
			if err := a.cfg.Store.PutAudit(r.Context(), rec); err != nil {
				a.fail(w, r, err)
				return
			}
		}
		defer a.settle(r, rec)
		operation(w, r.WithContext(audit.With(r.Context(), rec)))
	}
}

// auditRecord is the record of a call that begins.
func auditRecord(r *http.Request, operation string) *audit.Record {
	e := entryOf(r)
	rec := &audit.Record{ID: uuid.Must(uuid.NewV7()), Operation: operation, Address: e.client, RequestID: e.id}
	var user uuid.UUID
	if c := callerOf(r); c != nil {
		user, rec.TeamID, rec.KeyID = c.identity.UserID, c.principal.TeamID, c.identity.KeyID
	}
	rec.Begin(user, resourceOf(r))
	return rec
}

var pathValue = regexp.MustCompile(`\{([a-z_]+)\}`)

// resourceOf is what a path names: its values, as far as they can be a name.
func resourceOf(r *http.Request) string {
	var values []string
	for _, m := range pathValue.FindAllStringSubmatch(r.Pattern, -1) {
		values = append(values, r.PathValue(m[1]))
	}
	name := strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '?'
	}, strings.Join(values, "/"))
	if len(name) > maxResourceBytes {
		name = strings.ToValidUTF8(name[:maxResourceBytes], "")
	}
	return name
}

// settle stores what the change itself has not: that a call of somebody known was
// refused, or had nothing to change.
func (a *API) settle(r *http.Request, rec *audit.Record) {
	e := entryOf(r)
	switch {
	case e.status == 0 || e.status >= http.StatusInternalServerError: // 0: it panicked
		rec.End(audit.Failed, e.code)
	case e.status >= http.StatusBadRequest:
		rec.End(audit.Refused, e.code)
	default:
		rec.End(audit.Succeeded, "")
	}
	if rec.State().UserID == uuid.Nil && !rec.IsStored() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), settleTimeout)
	defer cancel()
	if err := a.cfg.Store.PutAudit(ctx, rec); err != nil {
		s := rec.State()
		a.cfg.Log.Error("could not record how a call ended", "request", e.id, "operation", rec.Operation, "team", rec.TeamID,
			"user", s.UserID, "resource", s.Resource, "outcome", s.Outcome, "err", err)
	}
}

// ListAuditRecords implements GET /api/v1/audit.
func (a *API) ListAuditRecords(w http.ResponseWriter, r *http.Request, params openapi.ListAuditRecordsParams) {
	f, err := auditFilter(params)
	var list []store.AuditRecord
	if err == nil {
		list, err = a.cfg.Store.Audit(r.Context(), principalOf(r).TeamID, f)
	}
	a.answer(w, r, http.StatusOK, auditOut(list, f.Limit), err)
}

// ListAllAuditRecords implements GET /internal/v1/audit.
func (a *API) ListAllAuditRecords(w http.ResponseWriter, r *http.Request, params openapi.ListAllAuditRecordsParams) {
	f, err := auditFilter(openapi.ListAuditRecordsParams(params))
	var list []store.AuditRecord
	if err == nil {
		list, err = a.cfg.Store.AuditOfAll(r.Context(), f)
	}
	a.answer(w, r, http.StatusOK, auditOut(list, f.Limit), err)
}

func auditFilter(p openapi.ListAuditRecordsParams) (store.AuditFilter, error) {
	f := store.AuditFilter{
		Start: p.StartTime, End: p.EndTime, Operation: value(p.Operation), Resource: value(p.Resource),
		Outcome: string(value(p.Outcome)), Limit: auditPage,
	}
	if p.Limit != nil {
		f.Limit = *p.Limit
	}
	var err error
	switch {
	case f.Limit < 1 || f.Limit > maxAuditPage:
		return f, errdefs.New(errdefs.InvalidArgument, "limit must be 1 to %d", maxAuditPage)
	case p.Outcome != nil && !p.Outcome.Valid():
		return f, errdefs.New(errdefs.InvalidArgument, "outcome is invalid")
	case !plain(f.Operation) || !plain(f.Resource):
		return f, errdefs.New(errdefs.InvalidArgument, "operation and resource must be printable")
	}
	if f.UserID, err = optionalID(p.UserID); err != nil {
		return f, errdefs.New(errdefs.InvalidArgument, "user_id is invalid")
	}
	if f.Before, err = optionalID(p.Cursor); err != nil {
		return f, errdefs.New(errdefs.InvalidArgument, "cursor is invalid")
	}
	return f, nil
}

func optionalID(s *string) (uuid.UUID, error) {
	if s == nil {
		return uuid.Nil, nil
	}
	return uuid.Parse(*s)
}

func auditOut(list []store.AuditRecord, limit int) openapi.AuditRecordList {
	out := openapi.AuditRecordList{Records: []openapi.AuditRecord{}}
	for _, rec := range list {
		out.Records = append(out.Records, openapi.AuditRecord{
			ID: rec.ID.String(), At: rec.At, TeamID: idOut(rec.TeamID), UserID: idOut(rec.UserID), APIKeyID: idOut(rec.KeyID),
			Operation: rec.Operation, Resource: rec.Resource, Outcome: openapi.AuditRecordOutcome(rec.Outcome), Code: rec.Code,
			Address: rec.Address, RequestID: rec.RequestID,
		})
	}
	if len(list) > 0 && len(list) == limit {
		out.NextCursor = new(list[limit-1].ID.String())
	}
	return out
}

func idOut(id *uuid.UUID) *string {
	if id == nil {
		return nil
	}
	return new(id.String())
}
