// Package wsapi serves WebSockets, the contract's JSON frames towards the client: a
// context's, of which the other end is procapi's frames, and that of file watches
// ([Server.Watch]), each a stream of procapi's lines.
//
// A context's session is three goroutines that end together: one reads the socket into the
// sandbox, one writes what the sandbox says, one pings. Nothing queues in
// between: a client that reads slowly makes the sandbox's log wait, and one that
// stops reading is dropped; what it missed is still in the log for its next
// attach. Neither side is trusted. The package owns its sessions until
// [Server.Close].
package wsapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/inflight"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	attachTimeout = 10 * time.Second // until procd says whether it has the context
	writeTimeout  = 10 * time.Second // a client that takes longer for one frame has stopped
	pingEvery     = 25 * time.Second
	pongWait      = 60 * time.Second // more than two pings
	closeWait     = 2 * time.Second  // for the client's side of the closing handshake

	// An input of procapi.MaxInputBytes is larger as JSON: six times when it
	// consists of control characters.
	maxMessageBytes = 6*procapi.MaxInputBytes + 64<<10
	// usualMessageBytes is what a message may have that little is escaped in. Few
	// may have more at the same time, so that sessions cost no six times as much.
	usualMessageBytes    = procapi.MaxInputBytes + 64<<10
	largeMessagesPerTeam = 16

	// What idle sessions may cost this server and a sandbox's node (A23). A thousand
	// readers of one context are served.
	sessionsPerTeam    = 2048
	sessionsPerSandbox = 1024
)

// Config names what sessions need.
type Config struct {
	Plane *dataplane.Plane
	// CheckOrigin says whether a browser's page may open a socket.
	CheckOrigin func(r *http.Request) bool
	Log         *slog.Logger
}

// Server owns the sessions.
type Server struct {
	cfg          Config
	writeTimeout time.Duration
	stopping     chan struct{}
	teams        *inflight.Counter[uuid.UUID]
	sandboxes    *inflight.Counter[string]
	large        *inflight.Counter[uuid.UUID] // messages
	sessions     sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

// New makes a Server.
func New(cfg Config) *Server {
	return &Server{
		cfg: cfg, writeTimeout: writeTimeout, stopping: make(chan struct{}),
		teams: inflight.New[uuid.UUID](sessionsPerTeam), sandboxes: inflight.New[string](sessionsPerSandbox),
		large: inflight.New[uuid.UUID](largeMessagesPerTeam),
	}
}

// Close tells every client to come back (1012) and waits for the sessions' ends.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stopping)
	}
	s.mu.Unlock()
	s.sessions.Wait()
}

var errStopping = errdefs.New(errdefs.Unavailable, "the server is stopping").WithRetryAfter(time.Second)

// enter counts a session in.
func (s *Server) enter(to dataplane.Target) (leave func(), err error) {
	ofTeam, ok := s.teams.Enter(to.Team)
	if !ok {
		return nil, tooMany("the team", sessionsPerTeam)
	}
	ofSandbox, ok := s.sandboxes.Enter(to.Name())
	if !ok {
		ofTeam()
		return nil, tooMany("the sandbox", sessionsPerSandbox)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		ofTeam()
		ofSandbox()
		return nil, errStopping
	}
	s.sessions.Add(1)
	return func() {
		ofTeam()
		ofSandbox()
		s.sessions.Done()
	}, nil
}

func tooMany(whose string, most int) error {
	return errdefs.New(errdefs.Exhausted, "%s has %d open WebSockets, the most it may", whose, most).WithRetryAfter(time.Second)
}

// Session says what a WebSocket is attached to.
type Session struct {
	To dataplane.Target
	// ContextPath is the context's at procd, "" for an id that none has.
	ContextPath string
	// Offset is of the first byte of output that is wanted.
	Offset uint64
}

// Attach serves one WebSocket until it ends. An error means that nothing was
// answered yet. The sandbox is asked first, so that what is wrong with it is an
// ordinary HTTP answer; an unknown context alone is told on the socket, for so the
// contract says.
func (s *Server) Attach(w http.ResponseWriter, r *http.Request, want Session) error {
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
	ss := &session{
		cancel: cancel, done: make(chan struct{}), writeTimeout: s.writeTimeout,
		large: func() (func(), bool) { return s.large.Enter(want.To.Team) },
	}
	frames, err := s.open(ctx, ss, want)
	if err != nil {
		return err
	}
	if ss.conn, err = s.upgrade(w, r); err != nil {
		return err
	}
	s.serve(ctx, ss, func() (int, string, error) {
		if frames == nil {
			return websocket.CloseNormalClosure, "context not found", nil
		}
		return ss.writeClient(frames)
	})
	return nil
}

// open attaches to the context and answers procd's frames, nil when there is no
// such context. Both directions end with ctx.
func (s *Server) open(ctx context.Context, ss *session, want Session) (io.Reader, error) {
	input, output := io.Pipe()
	ss.input = output
	context.AfterFunc(ctx, func() { input.CloseWithError(context.Canceled) })
	if want.ContextPath == "" {
		return nil, s.cfg.Plane.Check(ctx, want.To)
	}
	req := dataplane.Request{
		Method: http.MethodPost, Path: want.ContextPath + "/attach", Body: input, Length: -1, Timeout: attachTimeout,
	}
	if want.Offset > 0 {
		req.Query = url.Values{"offset": {strconv.FormatUint(want.Offset, 10)}}
	}
	resp, err := s.cfg.Plane.Stream(ctx, want.To, req)
	if err != nil {
		if errdefs.From(err).Code == dataplane.ContextNotFound {
			return nil, nil
		}
		return nil, err
	}
	// The HTTP/2 client looks at ctx again only when the request's body is done.
	context.AfterFunc(ctx, func() { resp.Body.Close() })
	return resp.Body, nil
}

var writeBuffers sync.Pool

func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) (*websocket.Conn, error) {
	refused := http.StatusBadRequest
	up := websocket.Upgrader{
		HandshakeTimeout: writeTimeout, CheckOrigin: s.cfg.CheckOrigin,
		WriteBufferSize: 16 << 10, WriteBufferPool: &writeBuffers, // idle sessions hold none
		Error: func(_ http.ResponseWriter, _ *http.Request, status int, _ error) { refused = status },
	}
	conn, err := up.Upgrade(w, r, http.Header{"X-Request-Id": w.Header().Values("X-Request-Id")})
	if err == nil {
		conn.SetReadLimit(maxMessageBytes)
		conn.SetPingHandler(func(data string) error { return s.pong(conn, data) })
		return conn, nil
	}
	if refused == http.StatusForbidden {
		return nil, errdefs.New(errdefs.PermissionDenied, "pages of this origin may not open a WebSocket").WithCause(err)
	}
	return nil, errdefs.New(errdefs.InvalidArgument, "the WebSocket handshake is wrong").WithCause(err)
}

// pong answers a ping. A client that asks and does not read the answers is gone:
// reading on would cost as much as it likes to send.
func (s *Server) pong(conn *websocket.Conn, data string) error {
	err := conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(s.writeTimeout))
	if err == nil || errors.Is(err, websocket.ErrCloseSent) {
		return nil
	}
	return fmt.Errorf("%w: %w", errGone, err)
}

// serve runs a session's goroutines until one of them ends it. write says how
// the socket is to be closed when the sandbox has nothing more to say.
func (s *Server) serve(ctx context.Context, ss *session, write func() (code int, text string, err error)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(ss.done)
		ss.readClient()
	})
	wg.Go(func() { s.watchOver(ctx, ss) })
	code, text, err := write()
	if err != nil {
		s.cfg.Log.Debug("a WebSocket ended early", "err", err)
	}
	if ctx.Err() == nil {
		ss.goodbye(code, text)
	}
	ss.cancel()
	ss.conn.Close()
	wg.Wait()
}

// watchOver pings, and ends the session when the server stops.
func (s *Server) watchOver(ctx context.Context, ss *session) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.stopping:
			ss.goodbye(websocket.CloseServiceRestart, "the server restarts; attach again")
			ss.cancel()
			return
		case <-tick.C:
			if ss.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout)) != nil {
				ss.cancel()
				return
			}
		}
	}
}

// errGone ends a session whose client is not there any more.
var errGone = errors.New("the client is gone")
