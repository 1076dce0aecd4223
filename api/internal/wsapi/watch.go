package wsapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	watchesPerSocket     = 64
	maxWatchMessageBytes = 32 << 10 // a path, every byte of it escaped
)

// Watch serves a WebSocket of file watches until it ends. Each of its subscriptions
// is a request of its own to the sandbox, so that one that is slow or ends is no
// other's concern; one goroutine writes what they all have to tell, and while the
// client does not read, they wait and the sandbox gathers, in bounds. An error means
// that nothing was answered yet.
func (s *Server) Watch(w http.ResponseWriter, r *http.Request, to dataplane.Target) error {
	if !websocket.IsWebSocketUpgrade(r) {
		return errdefs.New(errdefs.InvalidArgument, "this is a WebSocket: an upgrade is required")
	}
	leave, err := s.enter(to)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if err := s.cfg.Plane.Check(ctx, to); err != nil {
		return err
	}
	ws := &watchSession{
		session: &session{cancel: cancel, done: make(chan struct{}), writeTimeout: s.writeTimeout}, plane: s.cfg.Plane, to: to,
		out: make(chan openapi.FileWatchServerMessage), end: make(chan goodbye), watches: map[string]*oneWatch{},
	}
	if ws.conn, err = s.upgrade(w, r); err != nil {
		return err
	}
	ws.conn.SetReadLimit(maxWatchMessageBytes)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(ws.done)
		ws.read(ctx, &wg)
	})
	wg.Go(func() { s.watchOver(ctx, ws.session) })
	if bye, ok := ws.write(ctx); ok {
		ws.goodbye(bye.code, bye.text)
	}
	cancel()
	ws.conn.Close()
	wg.Wait()
	return nil
}

// watchSession is one client and its watches.
type watchSession struct {
	*session
	plane *dataplane.Plane
	to    dataplane.Target

	out chan openapi.FileWatchServerMessage // to the one writer
	end chan goodbye                        // likewise, at last

	mu      sync.Mutex
	watches map[string]*oneWatch // by id
}

// oneWatch is a subscription that has a place among its socket's.
type oneWatch struct {
	cancel context.CancelFunc
	ending bool // it was unsubscribed
}

// goodbye is how a socket is closed.
type goodbye struct {
	code int
	text string
}

// write writes what there is to tell, until the session ends or shall be ended
// with a goodbye.
func (ws *watchSession) write(ctx context.Context) (bye goodbye, ok bool) {
	for {
		select {
		case <-ctx.Done():
			return bye, false
		case bye = <-ws.end:
			return bye, true
		case m := <-ws.out:
			b, err := json.Marshal(m)
			if err == nil {
				ws.conn.SetWriteDeadline(time.Now().Add(ws.writeTimeout))
				err = ws.conn.WriteMessage(websocket.TextMessage, b)
			}
			if err != nil {
				return bye, false
			}
		}
	}
}

// tell hands a message to the writer; false when the session has ended.
func (ws *watchSession) tell(ctx context.Context, m openapi.FileWatchServerMessage) bool {
	select {
	case ws.out <- m:
		return true
	case <-ctx.Done():
		return false
	}
}

func (ws *watchSession) tellError(ctx context.Context, path string, err error) {
	e := errdefs.From(err)
	m := openapi.FileWatchServerMessage{Type: openapi.FileWatchServerMessageTypeError, Error: &e.Message, Code: &e.Code}
	if path != "" {
		m.Path = &path
	}
	ws.tell(ctx, m)
}

// read does what the client says until it is gone.
func (ws *watchSession) read(ctx context.Context, wg *sync.WaitGroup) {
	defer ws.cancel()
	ws.conn.SetPongHandler(func(string) error { return ws.conn.SetReadDeadline(time.Now().Add(pongWait)) })
	for {
		ws.conn.SetReadDeadline(time.Now().Add(pongWait))
		_, msg, err := ws.conn.ReadMessage()
		if errors.Is(err, websocket.ErrReadLimit) {
			ws.linger() // the client was told
		}
		if err != nil {
			return
		}
		if err := ws.act(ctx, msg, wg); err != nil {
			ws.tellError(ctx, "", err)
		}
	}
}

func (ws *watchSession) act(ctx context.Context, msg []byte, wg *sync.WaitGroup) error {
	var m openapi.FileWatchClientMessage
	dec := json.NewDecoder(bytes.NewReader(msg))
	if err := dec.Decode(&m); err != nil || !m.Action.Valid() {
		return errdefs.New(errdefs.InvalidArgument, "want an action, subscribe or unsubscribe")
	}
	switch {
	case m.Action == openapi.FileWatchClientMessageActionUnsubscribe:
		return ws.unsubscribe(m.WatchID)
	case m.Path == nil || *m.Path == "":
		return errdefs.New(errdefs.InvalidArgument, "path is required")
	}
	id, one, err := ws.add(ctx)
	if err != nil {
		return err
	}
	wg.Go(func() { ws.watch(ctx, one, id, m) })
	return nil
}

// add makes room for a watch, whose context ends with its subscription.
func (ws *watchSession) add(ctx context.Context) (id string, one context.Context, err error) {
	var b [4]byte
	rand.Read(b[:]) // never fails
	id = "watch-" + hex.EncodeToString(b[:])
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if len(ws.watches) >= watchesPerSocket || ws.watches[id] != nil {
		return "", nil, errdefs.New(errdefs.Exhausted, "too many watches: a WebSocket has at most %d", watchesPerSocket)
	}
	one, cancel := context.WithCancel(ctx)
	ws.watches[id] = &oneWatch{cancel: cancel}
	return id, one, nil
}

// unsubscribe has a watch end, which tells of it. It is unknown from here on: each
// unsubscription has one answer.
func (ws *watchSession) unsubscribe(id *string) error {
	if id == nil {
		return errdefs.New(errdefs.InvalidArgument, "watch_id is required")
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	one := ws.watches[*id]
	if one == nil || one.ending {
		return errdefs.New(errdefs.NotFound, "unknown watch_id")
	}
	one.ending = true
	one.cancel()
	return nil
}

func (ws *watchSession) drop(id string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.watches[id].cancel()
	delete(ws.watches, id)
}

// watch is one subscription from its request to its end. That is told when its place is
// free, for another one may follow at once.
func (ws *watchSession) watch(session, ctx context.Context, id string, m openapi.FileWatchClientMessage) {
	tell := ws.stream(session, ctx, id, m)
	ws.drop(id)
	tell()
}

// stream passes a watch on until it ends, and returns what tells of that.
func (ws *watchSession) stream(session, ctx context.Context, id string, m openapi.FileWatchClientMessage) (tell func()) {
	q := url.Values{"path": {*m.Path}}
	if m.Recursive != nil {
		q.Set("recursive", strconv.FormatBool(*m.Recursive))
	}
	resp, err := ws.plane.Stream(ctx, ws.to, dataplane.Request{
		Method: http.MethodGet, Path: procapi.PathFiles + "/watch", Query: q, Timeout: attachTimeout,
	})
	if err != nil {
		return func() { ws.tellError(session, *m.Path, err) }
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, procapi.MaxWatchLine)
	lines.Split(dataplane.WholeLines)
	err = ws.follow(session, id, lines)
	switch {
	case session.Err() != nil:
		return func() {}
	case ctx.Err() != nil, err == nil:
		return func() {
			ws.tell(session, openapi.FileWatchServerMessage{Type: openapi.FileWatchServerMessageTypeUnsubscribed, WatchID: &id})
		}
	case errors.Is(err, errLine) || errors.Is(err, bufio.ErrTooLong):
		return func() {
			ws.stop(session, goodbye{websocket.CloseInternalServerErr, "the sandbox's answer makes no sense"})
		}
	default:
		return func() {
			ws.stop(session, goodbye{websocket.CloseServiceRestart, "the connection to the sandbox was lost; subscribe again"})
		}
	}
}

func (ws *watchSession) stop(ctx context.Context, bye goodbye) {
	select {
	case ws.end <- bye:
	case <-ctx.Done():
	}
}

// errLine is a line that is none of a watch.
var errLine = errors.New("malformed line of a watch")

// follow passes a watch's lines on. Its end without an error means that the
// directory has gone.
func (ws *watchSession) follow(ctx context.Context, id string, lines *bufio.Scanner) error {
	for first := true; lines.Scan(); first = false {
		m, err := watchMessage(lines.Bytes(), first)
		if err != nil {
			return err
		}
		m.WatchID = &id
		if !ws.tell(ctx, m) {
			return ctx.Err()
		}
	}
	return lines.Err()
}

// watchMessage checks a line of procd's and translates it.
func watchMessage(b []byte, first bool) (m openapi.FileWatchServerMessage, err error) {
	var line procapi.WatchLine
	if err := json.Unmarshal(b, &line); err != nil {
		return m, fmt.Errorf("%w: %w", errLine, err)
	}
	if line.Path == "" || first != (line.Event == "") {
		return m, errLine
	}
	m.Path = &line.Path
	if first {
		m.Type = openapi.FileWatchServerMessageTypeSubscribed
		return m, nil
	}
	m.Type = openapi.FileWatchServerMessageTypeEvent
	event := openapi.FileWatchServerMessageEvent(line.Event)
	if !event.Valid() {
		return m, errLine
	}
	m.Event = &event
	if line.OldPath != "" {
		m.OldPath = &line.OldPath
	}
	if line.Reason != "" {
		reason := openapi.FileWatchServerMessageReason(line.Reason)
		if !reason.Valid() {
			return m, errLine
		}
		m.Reason = &reason
	}
	return m, nil
}
