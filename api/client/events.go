package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// ListSandboxEventsOptions chooses what ListSandboxEvents returns. The zero value
// is the first page of all events.
type ListSandboxEventsOptions struct {
	Action string // the type, as webhooks call it, such as "process.exited"
	Cursor string // events behind it
	Limit  int    // 1 to 1000; defaults to the server's page size
}

// ListSandboxEvents lists what happened to a sandbox and in it, oldest first.
func (c *Client) ListSandboxEvents(ctx context.Context, id string, opts ListSandboxEventsOptions) (*SandboxEventList, error) {
	q := url.Values{}
	if opts.Action != "" {
		q.Set("action", opts.Action)
	}
	if opts.Cursor != "" {
		q.Set("cursor", opts.Cursor)
	}
	if opts.Limit != 0 {
		q.Set("limit", strconv.Itoa(opts.Limit))
	}
	return do[SandboxEventList](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "observability", "events"), query: q})
}
