package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// AuditOptions chooses what the audit lists return. The zero value is the first
// page of all records.
type AuditOptions struct {
	Start, End time.Time // open where zero
	UserID     string
	Operation  string // an operationId of the contract
	Resource   string
	Outcome    AuditRecordOutcome
	Cursor     string // NextCursor of the page before
	Limit      int    // 1 to 500; defaults to the server's page size
}

func (o AuditOptions) query() url.Values {
	q := url.Values{}
	setTimes(q, o.Start, o.End)
	setAll(q, map[string]string{
		"user_id": o.UserID, "operation": o.Operation, "resource": o.Resource, "outcome": string(o.Outcome), "cursor": o.Cursor,
	})
	setInts(q, map[string]int{"limit": o.Limit})
	return q
}

// ListAuditRecords lists what was changed in the team, newest first.
func (c *Client) ListAuditRecords(ctx context.Context, opts AuditOptions) (*AuditRecordList, error) {
	return do[AuditRecordList](ctx, c, call{method: http.MethodGet, path: "/api/v1/audit", query: opts.query()})
}

// ListAllAuditRecords lists what was changed anywhere, newest first. The caller is
// a system admin.
func (c *Client) ListAllAuditRecords(ctx context.Context, opts AuditOptions) (*AuditRecordList, error) {
	return do[AuditRecordList](ctx, c, call{method: http.MethodGet, path: "/internal/v1/audit", query: opts.query()})
}
