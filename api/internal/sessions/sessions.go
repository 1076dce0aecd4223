// Package sessions asks a sandbox about its execution sessions: it knows where
// procd has them, checks what procd answers, and follows their events across a
// restart of the node's daemon.
//
// What procd says is data from a hostile place: it is let through as the contract
// has it, or not at all. The package keeps no state.
package sessions

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

var (
	sessionIDPattern = regexp.MustCompile(`^sess-[0-9a-f]{12}$`)
	attemptIDPattern = regexp.MustCompile(`^att-[0-9a-f]{12}$`)
	eventTypePattern = regexp.MustCompile(`^[a-z]+(\.[a-z]+)?$`)
)

// Call is one call to procd about sessions. In and Out may be nil.
type Call struct {
	Method string
	Op     string // "" or a path below the session's
	Header http.Header
	Query  url.Values
	In     any
	Out    any
	Check  func() error // of Out
}

// Client asks sandboxes.
type Client struct{ Plane *dataplane.Plane }

// OfAll makes a call about all sessions of a sandbox.
func (c Client) OfAll(ctx context.Context, to dataplane.Target, call Call) error {
	return c.Plane.Call(ctx, to, dataplane.Request{
		Method: call.Method, Path: procapi.PathSessions, Header: call.Header, Timeout: dataplane.CallTimeout,
	}, call.In, call.Out, call.Check)
}

// Of makes a call about one session.
func (c Client) Of(ctx context.Context, to dataplane.Target, sessionID string, call Call) error {
	if err := c.checkID(ctx, to, sessionID); err != nil {
		return err
	}
	return c.Plane.Call(ctx, to, dataplane.Request{
		Method: call.Method, Path: procapi.PathSessions + "/" + sessionID + call.Op, Query: call.Query, Header: call.Header, Timeout: dataplane.CallTimeout,
	}, call.In, call.Out, call.Check)
}

// checkID refuses an id that no session has. Of such a one, only whether the
// sandbox is there can be told.
func (c Client) checkID(ctx context.Context, to dataplane.Target, sessionID string) error {
	if sessionIDPattern.MatchString(sessionID) {
		return nil
	}
	if err := c.Plane.Check(ctx, to); err != nil {
		return err
	}
	return errdefs.WithCode(errdefs.NotFound, procapi.CodeSessionNotFound, "session not found")
}

// CheckList lets sessions through that are some.
func CheckList(list *openapi.ExecutionSessionList) error {
	if len(list.Sessions) > procapi.MaxSessions {
		return fmt.Errorf("%d sessions", len(list.Sessions))
	}
	if list.Sessions == nil {
		list.Sessions = []openapi.ExecutionSession{}
	}
	for i := range list.Sessions {
		if err := CheckSession(&list.Sessions[i]); err != nil {
			return err
		}
	}
	return nil
}

// CheckSession lets through what the contract says, and nothing that a decoder of
// it would refuse.
func CheckSession(s *openapi.ExecutionSession) error {
	if !sessionIDPattern.MatchString(s.ID) || !s.Phase.Valid() {
		return fmt.Errorf("session %.20q in phase %.20q", s.ID, s.Phase)
	}
	if a := s.Attempt; a != nil && !attemptIDPattern.MatchString(a.ID) {
		return fmt.Errorf("attempt %.20q", a.ID)
	}
	return checkSpec(&s.Spec)
}

func checkSpec(spec *openapi.ExecutionSessionSpec) error {
	if len(spec.Command) == 0 {
		return fmt.Errorf("a session without a command")
	}
	ok := true
	if io := spec.Io; io != nil {
		ok = ok && valid(io.Mode)
	}
	if l := spec.Lifecycle; l != nil {
		ok = ok && valid(l.DesiredState) && valid(l.RuntimeRecovery) && (l.Restart == nil || valid(l.Restart.Policy))
	}
	if r := spec.Readiness; r != nil {
		ok = ok && valid(r.Type)
	}
	if !ok {
		return fmt.Errorf("a session's spec has a value that is none")
	}
	return nil
}

func valid[T interface{ Valid() bool }](v *T) bool { return v == nil || (*v).Valid() }

// CheckReceipt lets through the answer to one input.
func CheckReceipt(r *openapi.ExecutionSessionInputResponse, inputID string) error {
	if r.InputID != inputID || !attemptIDPattern.MatchString(r.AttemptID) {
		return fmt.Errorf("receipt for %.20q of attempt %.20q", r.InputID, r.AttemptID)
	}
	return nil
}

// CheckPage lets through events of one session behind a number, in order.
func CheckPage(page *openapi.ExecutionSessionEventPage, sessionID string, after uint64) error {
	if len(page.Events) > procapi.MaxSessionEvents || page.Cursor.Earliest < 0 || page.Cursor.Latest < 0 {
		return fmt.Errorf("page of %d events, cursor %v", len(page.Events), page.Cursor)
	}
	if page.Events == nil {
		page.Events = []openapi.ExecutionSessionEvent{}
	}
	for i := range page.Events {
		if err := checkEvent(&page.Events[i], sessionID, after); err != nil {
			return err
		}
		after = uint64(page.Events[i].Seq)
	}
	return nil
}

func checkEvent(ev *openapi.ExecutionSessionEvent, sessionID string, after uint64) error {
	switch {
	case ev.SessionID != sessionID, ev.Seq <= 0, uint64(ev.Seq) <= after:
		return fmt.Errorf("event %d of session %.20q", ev.Seq, ev.SessionID)
	case len(ev.Type) > 64 || !eventTypePattern.MatchString(ev.Type):
		return fmt.Errorf("event type %.20q", ev.Type)
	case !valid(ev.Stream):
		return fmt.Errorf("stream %.20q", *ev.Stream)
	case ev.AttemptID != nil && !attemptIDPattern.MatchString(*ev.AttemptID):
		return fmt.Errorf("attempt %.20q", *ev.AttemptID)
	}
	return nil
}
