package wsapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/sessions"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	// An input of procapi.MaxInputBytes in base64, and what is around it.
	maxExecutionMessageBytes = procapi.MaxInputBytes/3*4 + 16<<10
	maxRequestID             = 255
)

// Execution says what a WebSocket of an execution session is attached to.
type Execution struct {
	To        dataplane.Target
	SessionID string
	After     uint64 // the last event that the client knows
}

// AttachExecution serves a WebSocket of an execution session until it ends. The
// session's events are followed by one goroutine, what the client says is done by
// another, message by message, and one writes what both have to tell: while the
// client does not read, they wait, and the sandbox's log runs ahead. An error means
// that nothing was answered yet.
func (s *Server) AttachExecution(w http.ResponseWriter, r *http.Request, want Execution) error {
	if !websocket.IsWebSocketUpgrade(r) {
		return errdefs.New(errdefs.InvalidArgument, "this is a WebSocket: an upgrade is required")
	}
	leave, err := s.enter(want.To)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	client := sessions.Client{Plane: s.cfg.Plane}
	events, err := client.Follow(ctx, want.To, want.SessionID, want.After)
	if err != nil {
		return err
	}
	es := &executionSession{
		session: &session{cancel: cancel, done: make(chan struct{}), writeTimeout: s.writeTimeout}, client: client, want: want,
		out: make(chan openapi.ExecutionSessionServerMessage), end: make(chan goodbye),
	}
	if es.conn, err = s.upgrade(w, r); err != nil {
		events.Close()
		return err
	}
	es.conn.SetReadLimit(maxExecutionMessageBytes)
	es.serve(ctx, s, events)
	return nil
}

// executionSession is one client attached to one execution session.
type executionSession struct {
	*session
	client sessions.Client
	want   Execution

	out chan openapi.ExecutionSessionServerMessage // to the one writer
	end chan goodbye                               // likewise, at last
}

func (es *executionSession) serve(ctx context.Context, s *Server, events *sessions.Follower) {
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(es.done)
		es.read(ctx)
	})
	wg.Go(func() { es.follow(ctx, events) })
	wg.Go(func() { s.watchOver(ctx, es.session) })
	if bye, ok := es.write(ctx); ok {
		es.goodbye(bye.code, bye.text)
	}
	es.cancel()
	es.conn.Close()
	wg.Wait()
}

// write writes what there is to tell, until the session ends or shall be ended
// with a goodbye.
func (es *executionSession) write(ctx context.Context) (bye goodbye, ok bool) {
	for {
		select {
		case <-ctx.Done():
			return bye, false
		case bye = <-es.end:
			return bye, true
		case m := <-es.out:
			b, err := json.Marshal(m)
			if err == nil {
				es.conn.SetWriteDeadline(time.Now().Add(es.writeTimeout))
				err = es.conn.WriteMessage(websocket.TextMessage, b)
			}
			if err != nil {
				return bye, false
			}
		}
	}
}

// tell hands a message to the writer.
func (es *executionSession) tell(ctx context.Context, m openapi.ExecutionSessionServerMessage) error {
	select {
	case es.out <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// follow tells the events, and at last how it ended.
func (es *executionSession) follow(ctx context.Context, events *sessions.Follower) {
	err := events.Run(ctx, func(ev openapi.ExecutionSessionEvent) error {
		return es.tell(ctx, openapi.ExecutionSessionServerMessage{Type: openapi.ExecutionSessionServerMessageTypeEvent, Event: &ev})
	})
	bye := goodbye{websocket.CloseServiceRestart, "the connection to the sandbox was lost; attach again"}
	switch {
	case err == nil:
		bye = goodbye{websocket.CloseNormalClosure, "session deleted"}
	case errors.Is(err, sessions.ErrNonsense):
		bye = goodbye{websocket.CloseInternalServerErr, "the sandbox's answer makes no sense"}
	}
	select {
	case es.end <- bye:
	case <-ctx.Done():
	}
}

// read does what the client says until it is gone.
func (es *executionSession) read(ctx context.Context) {
	defer es.cancel()
	es.conn.SetPongHandler(func(string) error { return es.conn.SetReadDeadline(time.Now().Add(pongWait)) })
	for {
		es.conn.SetReadDeadline(time.Now().Add(pongWait))
		kind, msg, err := es.conn.ReadMessage()
		if errors.Is(err, websocket.ErrReadLimit) {
			es.reject(websocket.CloseMessageTooBig, "message too long")
			return
		}
		if err != nil {
			if wasTold(err) {
				es.linger()
			}
			return
		}
		if kind == websocket.TextMessage && !utf8.Valid(msg) {
			es.reject(websocket.CloseInvalidFramePayloadData, "invalid UTF-8")
			return
		}
		if es.tell(ctx, es.answer(ctx, msg)) != nil {
			return
		}
	}
}

// answer does what a message says.
func (es *executionSession) answer(ctx context.Context, msg []byte) openapi.ExecutionSessionServerMessage {
	var m openapi.ExecutionSessionClientMessage
	err := json.Unmarshal(msg, &m)
	switch {
	case err != nil || !m.Type.Valid():
		m = openapi.ExecutionSessionClientMessage{}
		err = errdefs.New(errdefs.InvalidArgument, "want JSON of type input, resize or signal")
	case m.RequestID != nil && len(*m.RequestID) > maxRequestID:
		m.RequestID = nil
		err = errdefs.New(errdefs.InvalidArgument, "request_id of more than %d bytes", maxRequestID)
	default:
		err = es.client.Of(ctx, es.want.To, es.want.SessionID, callOf(m))
	}
	if err != nil {
		e := errdefs.From(err)
		return openapi.ExecutionSessionServerMessage{Type: openapi.ExecutionSessionServerMessageTypeError, RequestID: m.RequestID, Error: &e.Message, Code: &e.Code}
	}
	return openapi.ExecutionSessionServerMessage{Type: openapi.ExecutionSessionServerMessageTypeAck, RequestID: m.RequestID}
}

// callOf is the call that a message stands for. What is missing in it, procd says.
func callOf(m openapi.ExecutionSessionClientMessage) sessions.Call {
	switch m.Type {
	case openapi.ExecutionSessionClientMessageTypeInput:
		in := openapi.ExecutionSessionInputRequest{DataBase64: m.DataBase64, EOF: m.EOF, ExpectedAttemptID: m.ExpectedAttemptID}
		if m.InputID != nil {
			in.InputID = *m.InputID
		}
		return sessions.Call{Method: http.MethodPost, Op: "/inputs", In: in}
	case openapi.ExecutionSessionClientMessageTypeResize:
		in := openapi.ExecutionSessionTerminalResizeRequest{ExpectedAttemptID: m.ExpectedAttemptID}
		if m.Rows != nil && m.Cols != nil {
			in.Rows, in.Cols = *m.Rows, *m.Cols
		}
		return sessions.Call{Method: http.MethodPut, Op: "/terminal", In: in}
	default:
		in := openapi.ExecutionSessionSignalRequest{ExpectedAttemptID: m.ExpectedAttemptID}
		if m.Signal != nil {
			in.Signal = *m.Signal
		}
		return sessions.Call{Method: http.MethodPost, Op: "/signals", In: in}
	}
}
