// Package wsapi serves a context's WebSocket: the contract's JSON frames towards
// the client, procapi's frames towards the sandbox.
//
// A session is three goroutines that end together: one reads the socket into the
// sandbox, one writes what the sandbox says, one pings. Nothing queues in
// between: a client that reads slowly makes the sandbox's log wait, and one that
// stops reading is dropped; what it missed is still in the log for its next
// attach. Neither side is trusted. The package owns its sessions until
// [Server.Close].
package wsapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"

	"s0.run/api/internal/dataplane"
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
	maxMessageBytes = procapi.MaxInputBytes + 64<<10

	sessionsPerTeam = 500
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
	sessions     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	byTeam map[uuid.UUID]int
}

// New makes a Server.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, writeTimeout: writeTimeout, stopping: make(chan struct{}), byTeam: map[uuid.UUID]int{}}
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
func (s *Server) enter(team uuid.UUID) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errStopping
	case s.byTeam[team] >= sessionsPerTeam:
		return nil, errdefs.New(errdefs.Exhausted, "too many open WebSockets").WithRetryAfter(time.Second)
	}
	s.byTeam[team]++
	s.sessions.Add(1)
	return func() {
		defer s.sessions.Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.byTeam[team]--; s.byTeam[team] == 0 {
			delete(s.byTeam, team)
		}
	}, nil
}

// Attach serves one WebSocket until it ends. contextPath is the context's at
// procd, "" for an id that none has. An error means that nothing was answered
// yet. The sandbox is asked first, so that what is wrong with it is an ordinary
// HTTP answer; an unknown context alone is told on the socket, for so the
// contract says.
func (s *Server) Attach(w http.ResponseWriter, r *http.Request, to dataplane.Target, contextPath string) error {
	if !websocket.IsWebSocketUpgrade(r) {
		return errdefs.New(errdefs.InvalidArgument, "this is a WebSocket: an upgrade is required")
	}
	leave, err := s.enter(to.Team)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	ss := &session{cancel: cancel, done: make(chan struct{}), writeTimeout: s.writeTimeout}
	frames, err := s.open(ctx, ss, to, contextPath)
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
func (s *Server) open(ctx context.Context, ss *session, to dataplane.Target, contextPath string) (io.Reader, error) {
	input, output := io.Pipe()
	ss.input = output
	context.AfterFunc(ctx, func() { input.CloseWithError(context.Canceled) })
	if contextPath == "" {
		return nil, s.cfg.Plane.Check(ctx, to)
	}
	resp, err := s.cfg.Plane.Stream(ctx, to, dataplane.Request{
		Method: http.MethodPost, Path: contextPath + "/attach", Body: input, Length: -1, Timeout: attachTimeout,
	})
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
		return conn, nil
	}
	if refused == http.StatusForbidden {
		return nil, errdefs.New(errdefs.PermissionDenied, "pages of this origin may not open a WebSocket").WithCause(err)
	}
	return nil, errdefs.New(errdefs.InvalidArgument, "the WebSocket handshake is wrong").WithCause(err)
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
