package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxSSELine bounds a line of a session's event stream: a chunk of output in base64.
const maxSSELine = 4 << 20

func sessionPath(sandboxID, sessionID string, more ...string) string {
	return sandboxPath(append([]string{sandboxID, "sessions", sessionID}, more...)...)
}

// ListSessions lists a sandbox's execution sessions, oldest first.
func (c *Client) ListSessions(ctx context.Context, sandboxID string) (*ExecutionSessionList, error) {
	return do[ExecutionSessionList](ctx, c, call{method: http.MethodGet, path: sandboxPath(sandboxID, "sessions")})
}

// CreateSession starts a supervised command. Repeating the call with the same key,
// unless that is empty, answers the same session.
func (c *Client) CreateSession(ctx context.Context, sandboxID, key string, spec ExecutionSessionSpec) (*ExecutionSession, error) {
	in := call{method: http.MethodPost, path: sandboxPath(sandboxID, "sessions"), body: spec}
	if key != "" {
		in.header = http.Header{"Idempotency-Key": {key}}
	}
	return do[ExecutionSession](ctx, c, in)
}

// GetSession shows one session.
func (c *Client) GetSession(ctx context.Context, sandboxID, sessionID string) (*ExecutionSession, error) {
	return do[ExecutionSession](ctx, c, call{method: http.MethodGet, path: sessionPath(sandboxID, sessionID)})
}

// UpdateSession replaces a session's spec.
func (c *Client) UpdateSession(ctx context.Context, sandboxID, sessionID string, spec ExecutionSessionSpec) (*ExecutionSession, error) {
	return do[ExecutionSession](ctx, c, call{method: http.MethodPut, path: sessionPath(sandboxID, sessionID), body: spec})
}

// DeleteSession ends a session and everything that it runs.
func (c *Client) DeleteSession(ctx context.Context, sandboxID, sessionID string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: sessionPath(sandboxID, sessionID)})
}

// SetSessionState says whether the session shall run.
func (c *Client) SetSessionState(ctx context.Context, sandboxID, sessionID string, state ExecutionSessionDesiredState) (*ExecutionSession, error) {
	return do[ExecutionSession](ctx, c, call{
		method: http.MethodPut, path: sessionPath(sandboxID, sessionID, "desired-state"), body: ExecutionSessionDesiredStateRequest{State: state},
	})
}

// CreateSessionAttempt runs the command anew. A live attempt is a conflict unless
// it is to be replaced.
func (c *Client) CreateSessionAttempt(ctx context.Context, sandboxID, sessionID string, replaceCurrent bool) (*ExecutionSession, error) {
	return do[ExecutionSession](ctx, c, call{
		method: http.MethodPost, path: sessionPath(sandboxID, sessionID, "attempts"), body: CreateExecutionSessionAttemptRequest{ReplaceCurrent: &replaceCurrent},
	})
}

// WriteSessionInput writes to the live attempt's input, once for each input id.
func (c *Client) WriteSessionInput(ctx context.Context, sandboxID, sessionID string, in ExecutionSessionInputRequest) (*ExecutionSessionInputResponse, error) {
	return do[ExecutionSessionInputResponse](ctx, c, call{method: http.MethodPost, path: sessionPath(sandboxID, sessionID, "inputs"), body: in})
}

// SignalSession signals the live attempt.
func (c *Client) SignalSession(ctx context.Context, sandboxID, sessionID string, req ExecutionSessionSignalRequest) error {
	return exec(ctx, c, call{method: http.MethodPost, path: sessionPath(sandboxID, sessionID, "signals"), body: req})
}

// ResizeSession tells the live attempt's terminal its size.
func (c *Client) ResizeSession(ctx context.Context, sandboxID, sessionID string, req ExecutionSessionTerminalResizeRequest) error {
	return exec(ctx, c, call{method: http.MethodPut, path: sessionPath(sandboxID, sessionID, "terminal"), body: req})
}

// ListSessionEvents lists the events behind a number, limit of them at most; 0 is
// the server's page size.
func (c *Client) ListSessionEvents(ctx context.Context, sandboxID, sessionID string, after uint64, limit int) (*ExecutionSessionEventPage, error) {
	q := afterQuery(after)
	setInts(q, map[string]int{"limit": limit})
	return do[ExecutionSessionEventPage](ctx, c, call{method: http.MethodGet, path: sessionPath(sandboxID, sessionID, "events"), query: q})
}

// FollowSessionEvents calls found with every event behind a number, first those
// that are kept. It returns nil once the session was deleted; an error of found's,
// or one after which to go on behind the last event.
func (c *Client) FollowSessionEvents(ctx context.Context, sandboxID, sessionID string, after uint64, found func(ExecutionSessionEvent) error) error {
	in := call{
		method: http.MethodGet, path: sessionPath(sandboxID, sessionID, "events", "stream"), query: afterQuery(after),
		header: http.Header{"Accept": {"text/event-stream"}},
	}
	resp, err := c.send(ctx, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxSSELine)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			continue // an id, which the event has too, a comment, or the end of an event
		}
		var e ExecutionSessionEvent
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("following session %s: event of the server: %w", sessionID, err)
		}
		if err := found(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("following session %s: %w", sessionID, err)
	}
	return nil
}

func afterQuery(after uint64) url.Values {
	if after == 0 {
		return url.Values{}
	}
	return url.Values{"after": {strconv.FormatUint(after, 10)}}
}
