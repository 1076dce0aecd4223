package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// SandboxEventsOptions chooses what ListSandboxEvents returns. The zero value is
// the first page of all events.
type SandboxEventsOptions struct {
	Start, End time.Time // open where zero
	Source     SandboxEventSource
	EventType  SandboxEventType
	Outcome    SandboxEventOutcome
	Action     string // the type, as webhooks call it, such as "process.exited"
	Cursor     string // events behind it
	Limit      int    // 1 to 1000; defaults to the server's page size
}

func (o SandboxEventsOptions) query() url.Values {
	q := url.Values{}
	setTimes(q, o.Start, o.End)
	setAll(q, map[string]string{
		"source": string(o.Source), "event_type": string(o.EventType), "outcome": string(o.Outcome), "action": o.Action, "cursor": o.Cursor,
	})
	setInts(q, map[string]int{"limit": o.Limit})
	return q
}

// ListSandboxEvents lists what happened to a sandbox and in it, oldest first.
func (c *Client) ListSandboxEvents(ctx context.Context, id string, opts SandboxEventsOptions) (*SandboxEventList, error) {
	return do[SandboxEventList](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "observability", "events"), query: opts.query()})
}

// FollowSandboxEvents calls found with every event, first those that there are. It
// ends with an error: found's, [ErrWatchEnded], or one behind which to go on with
// the last event's cursor.
func (c *Client) FollowSandboxEvents(ctx context.Context, id string, opts SandboxEventsOptions, found func(SandboxEvent) error) error {
	return follow(ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "observability", "events"), query: opts.query()}, "event", found)
}
