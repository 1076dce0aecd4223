package noded

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

func sessionPath(id string, rest string) string {
	return procapi.PathSessions + "/" + url.PathEscape(id) + rest
}

// EnsureSession makes a session, or finds the one that was made under the same key. It
// stays what it was made as: what its spec was taken from may have changed since.
func (c *Client) EnsureSession(ctx context.Context, sb Sandbox, key string, spec procapi.SessionSpec) (procapi.Session, error) {
	var s procapi.Session
	err := c.Call(ctx, sb, Request{Method: http.MethodPost, Path: procapi.PathSessions, Header: map[string]string{procapi.IdempotencyHeader: key}, JSON: spec}, &s)
	if e := new(errdefs.Error); errors.As(err, &e) && e.Code == procapi.CodeKeyReused {
		return c.sessionNamed(ctx, sb, spec.Name, err)
	}
	return s, err
}

// Sessions are all that a sandbox has.
func (c *Client) Sessions(ctx context.Context, sb Sandbox) ([]procapi.Session, error) {
	var all procapi.SessionList
	err := c.Call(ctx, sb, Request{Method: http.MethodGet, Path: procapi.PathSessions}, &all)
	return all.Sessions, err
}

func (c *Client) sessionNamed(ctx context.Context, sb Sandbox, name string, missing error) (procapi.Session, error) {
	all, err := c.Sessions(ctx, sb)
	if err != nil {
		return procapi.Session{}, err
	}
	for _, s := range all {
		if s.Spec.Name == name {
			return s, nil
		}
	}
	return procapi.Session{}, missing
}

// Session is a session as it is now.
func (c *Client) Session(ctx context.Context, sb Sandbox, id string) (procapi.Session, error) {
	var s procapi.Session
	err := c.Call(ctx, sb, Request{Method: http.MethodGet, Path: sessionPath(id, "")}, &s)
	return s, err
}

// StopSession has a session's command end: TERM, then KILL after its grace.
func (c *Client) StopSession(ctx context.Context, sb Sandbox, id string) error {
	return c.Call(ctx, sb, Request{Method: http.MethodPut, Path: sessionPath(id, "/desired-state"), JSON: procapi.SessionDesiredState{State: procapi.DesiredStopped}}, nil)
}

// SessionInput gives bytes to a session's command.
func (c *Client) SessionInput(ctx context.Context, sb Sandbox, id string, in procapi.SessionInput) error {
	return c.Call(ctx, sb, Request{Method: http.MethodPost, Path: sessionPath(id, "/inputs"), JSON: in}, nil)
}

// ResizeSession sets a session's terminal.
func (c *Client) ResizeSession(ctx context.Context, sb Sandbox, id string, size procapi.PTYSize) error {
	return c.Call(ctx, sb, Request{Method: http.MethodPut, Path: sessionPath(id, "/terminal"), JSON: procapi.SessionResize{Rows: size.Rows, Cols: size.Cols}}, nil)
}

// SessionPage is the oldest of a session's events behind a number.
func (c *Client) SessionPage(ctx context.Context, sb Sandbox, id string, after uint64) (procapi.SessionEventPage, error) {
	var page procapi.SessionEventPage
	err := c.Call(ctx, sb, Request{Method: http.MethodGet, Path: sessionPath(id, "/events"), Query: url.Values{
		"after": {strconv.FormatUint(after, 10)}, "limit": {strconv.Itoa(procapi.MaxSessionEvents)},
	}}, &page)
	return page, err
}

// FollowSession tells of each of a session's events behind a number until tell says no,
// ctx ends, or the session is deleted.
func (c *Client) FollowSession(ctx context.Context, sb Sandbox, id string, after uint64, tell func(procapi.SessionEvent) bool) error {
	body, err := c.Stream(ctx, sb, Request{Method: http.MethodGet, Path: sessionPath(id, "/events/stream"), Query: url.Values{"after": {strconv.FormatUint(after, 10)}}})
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 4<<10), procapi.MaxSessionEvent)
	for lines.Scan() {
		var e procapi.SessionEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("events of session %s of %s: %w", id, sb.ID, err)
		}
		if !tell(e) {
			return nil
		}
	}
	return lines.Err()
}

// Logs is a page of what all processes of a sandbox printed.
func (c *Client) Logs(ctx context.Context, sb Sandbox, query url.Values) (procapi.LogPage, error) {
	var page procapi.LogPage
	err := c.Call(ctx, sb, Request{Method: http.MethodGet, Path: procapi.PathLogs, Query: query}, &page)
	return page, err
}
