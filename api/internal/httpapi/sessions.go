package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/sessions"
	"s0.run/api/internal/wsapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	// sessionInputBytes is an input of procapi.MaxInputBytes in base64, and what is
	// around it.
	sessionInputBytes = 2 << 20

	// streamHeartbeat is how long a stream of events is silent.
	streamHeartbeat = 15 * time.Second
)

func (a *API) sessions() sessions.Client { return sessions.Client{Plane: a.cfg.Plane} }

// ofSession makes a call about one session.
func (a *API) ofSession(r *http.Request, id, sessionID string, call sessions.Call) error {
	to, err := target(r, id)
	if err != nil {
		return err
	}
	return a.sessions().Of(r.Context(), to, sessionID, call)
}

// answerSession makes a call about one session that answers with it.
func (a *API) answerSession(w http.ResponseWriter, r *http.Request, id, sessionID string, call sessions.Call, err error) {
	var out openapi.ExecutionSession
	if err == nil {
		call.Out, call.Check = &out, func() error { return sessions.CheckSession(&out) }
		err = a.ofSession(r, id, sessionID, call)
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// ListSessions implements GET /api/v1/sandboxes/{id}/sessions.
func (a *API) ListSessions(w http.ResponseWriter, r *http.Request, id string) {
	var out openapi.ExecutionSessionList
	to, err := target(r, id)
	if err == nil {
		err = a.sessions().OfAll(r.Context(), to, sessions.Call{
			Method: http.MethodGet, Out: &out, Check: func() error { return sessions.CheckList(&out) },
		})
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// CreateSession implements POST /api/v1/sandboxes/{id}/sessions.
func (a *API) CreateSession(w http.ResponseWriter, r *http.Request, id string, params openapi.CreateSessionParams) {
	var req openapi.ExecutionSessionSpec
	err := decode(w, r, controlBytes, &req, "command")
	var to dataplane.Target
	if err == nil {
		to, err = target(r, id)
	}
	var out openapi.ExecutionSession
	call := sessions.Call{Method: http.MethodPost, In: req, Out: &out, Check: func() error { return sessions.CheckSession(&out) }}
	if key := params.IdempotencyKey; key != nil {
		if *key == "" || len(*key) > procapi.MaxSessionKey {
			err = errdefs.New(errdefs.InvalidArgument, "Idempotency-Key: want 1 to %d bytes", procapi.MaxSessionKey)
		}
		call.Header = http.Header{procapi.IdempotencyHeader: {*key}}
	}
	if err == nil {
		err = a.sessions().OfAll(r.Context(), to, call)
	}
	a.answer(w, r, http.StatusCreated, out, err)
}

// GetSession implements GET …/sessions/{session_id}.
func (a *API) GetSession(w http.ResponseWriter, r *http.Request, id, sessionID string) {
	a.answerSession(w, r, id, sessionID, sessions.Call{Method: http.MethodGet}, nil)
}

// UpdateSession implements PUT …/sessions/{session_id}.
func (a *API) UpdateSession(w http.ResponseWriter, r *http.Request, id, sessionID string) {
	var req openapi.ExecutionSessionSpec
	err := decode(w, r, controlBytes, &req, "command")
	a.answerSession(w, r, id, sessionID, sessions.Call{Method: http.MethodPut, In: req}, err)
}

// DeleteSession implements DELETE …/sessions/{session_id}.
func (a *API) DeleteSession(w http.ResponseWriter, r *http.Request, id, sessionID string) {
	err := a.ofSession(r, id, sessionID, sessions.Call{Method: http.MethodDelete})
	a.answer(w, r, http.StatusOK, openapi.Deleted{Deleted: true}, err)
}

// SetSessionDesiredState implements PUT …/sessions/{session_id}/desired-state.
func (a *API) SetSessionDesiredState(w http.ResponseWriter, r *http.Request, id, sessionID string) {
	var req openapi.ExecutionSessionDesiredStateRequest
	err := decode(w, r, controlBytes, &req, "state")
	a.answerSession(w, r, id, sessionID, sessions.Call{Method: http.MethodPut, Op: "/desired-state", In: req}, err)
}

// CreateSessionAttempt implements POST …/sessions/{session_id}/attempts.
func (a *API) CreateSessionAttempt(w http.ResponseWriter, r *http.Request, id, sessionID string) {
	var req openapi.CreateExecutionSessionAttemptRequest
	err := decode(w, r, controlBytes, &req)
	a.answerSession(w, r, id, sessionID, sessions.Call{Method: http.MethodPost, Op: "/attempts", In: req}, err)
}

// WriteSessionInput implements POST …/sessions/{session_id}/inputs.
func (a *API) WriteSessionInput(w http.ResponseWriter, r *http.Request, id, sessionID string) {
	var req openapi.ExecutionSessionInputRequest
	var out openapi.ExecutionSessionInputResponse
	err := decode(w, r, sessionInputBytes, &req, "input_id")
	if err == nil {
		err = a.ofSession(r, id, sessionID, sessions.Call{
			Method: http.MethodPost, Op: "/inputs", In: req, Out: &out, Check: func() error { return sessions.CheckReceipt(&out, req.InputID) },
		})
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// SendSessionSignal implements POST …/sessions/{session_id}/signals.
func (a *API) SendSessionSignal(w http.ResponseWriter, r *http.Request, id, sessionID string) {
	var req openapi.ExecutionSessionSignalRequest
	err := decode(w, r, controlBytes, &req, "signal")
	if err == nil {
		err = a.ofSession(r, id, sessionID, sessions.Call{Method: http.MethodPost, Op: "/signals", In: req})
	}
	a.answer(w, r, http.StatusOK, openapi.Accepted{Accepted: true}, err)
}

// ResizeSessionTerminal implements PUT …/sessions/{session_id}/terminal.
func (a *API) ResizeSessionTerminal(w http.ResponseWriter, r *http.Request, id, sessionID string) {
	var req openapi.ExecutionSessionTerminalResizeRequest
	err := decode(w, r, controlBytes, &req, "rows", "cols")
	if err == nil {
		err = a.ofSession(r, id, sessionID, sessions.Call{Method: http.MethodPut, Op: "/terminal", In: req})
	}
	a.answer(w, r, http.StatusOK, openapi.Resized{Resized: true}, err)
}

// ListSessionEvents implements GET …/sessions/{session_id}/events.
func (a *API) ListSessionEvents(w http.ResponseWriter, r *http.Request, id, sessionID string, params openapi.ListSessionEventsParams) {
	query, after := url.Values{}, value(params.After)
	query.Set("after", strconv.FormatUint(after, 10))
	if params.Limit != nil {
		query.Set("limit", strconv.Itoa(*params.Limit))
	}
	var out openapi.ExecutionSessionEventPage
	err := a.ofSession(r, id, sessionID, sessions.Call{
		Method: http.MethodGet, Op: "/events", Query: query, Out: &out, Check: func() error { return sessions.CheckPage(&out, sessionID, after) },
	})
	a.answer(w, r, http.StatusOK, out, err)
}

// StreamSessionEvents implements GET …/sessions/{session_id}/events/stream.
func (a *API) StreamSessionEvents(w http.ResponseWriter, r *http.Request, id, sessionID string, params openapi.StreamSessionEventsParams) {
	after := value(params.After)
	if params.LastEventID != nil {
		after = *params.LastEventID
	}
	to, err := target(r, id)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	ctx, leave, err := a.cfg.Watches.Enter(r.Context(), to.Team)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer leave()
	events, err := a.sessions().Follow(ctx, to, sessionID, after)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	if err := (&eventStream{w: w, rc: http.NewResponseController(w)}).run(ctx, events); err != nil {
		panic(http.ErrAbortHandler) // an end that looks clean would say that the session was deleted
	}
}

// ConnectSession implements GET …/sessions/{session_id}/ws.
func (a *API) ConnectSession(w http.ResponseWriter, r *http.Request, id, sessionID string, params openapi.ConnectSessionParams) {
	to, err := target(r, id)
	if err == nil {
		err = a.cfg.Sockets.AttachExecution(w, r, wsapi.Execution{To: to, SessionID: sessionID, After: value(params.After)})
	}
	if err != nil {
		a.fail(w, r, err)
	}
}

// eventStream writes server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html).
type eventStream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// run writes the events until they end, which is no error, or one side is gone.
// While the client does not read, nothing is read from the sandbox.
func (s *eventStream) run(ctx context.Context, events *sessions.Follower) error {
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	next, ended := make(chan openapi.ExecutionSessionEvent), make(chan error, 1)
	following.Go(func() {
		ended <- events.Run(ctx, func(ev openapi.ExecutionSessionEvent) error {
			select {
			case next <- ev:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	heartbeat := time.NewTicker(streamHeartbeat)
	defer heartbeat.Stop()
	err := s.write([]byte(":\n\n"))
	for err == nil {
		select {
		case ev := <-next:
			err = s.event(ev)
		case <-heartbeat.C:
			err = s.write([]byte(":\n\n"))
		case err := <-ended:
			return err
		}
	}
	return err
}

func (s *eventStream) event(ev openapi.ExecutionSessionEvent) error {
	data, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString("id: " + strconv.FormatInt(ev.Seq, 10) + "\ndata: ")
	b.Write(data)
	b.WriteString("\n\n")
	return s.write(b.Bytes())
}

func (s *eventStream) write(b []byte) error {
	s.rc.SetWriteDeadline(time.Now().Add(chunkTimeout))
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.rc.Flush()
}
