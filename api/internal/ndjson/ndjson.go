// Package ndjson serves watches: answers that go on for as long as both sides
// want, one JSON value a line.
//
// A watch is its request's goroutine. It pulls batches from its source and writes
// them: a client that reads slowly makes its source wait, one that stops reading
// is dropped. While there is nothing to say a heartbeat goes out, so that a dead
// connection is found. How many watches a team has is bounded. The package owns
// the watches until [Server.Close]; what is in the lines is its callers' matter.
package ndjson

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/internal/errdefs"
)

const (
	// Heartbeat is how long a source may keep a batch back.
	Heartbeat = 15 * time.Second

	writeTimeout   = 30 * time.Second      // a client that takes longer for one batch has stopped
	pace           = 50 * time.Millisecond // between two batches, so that they are some
	watchesPerTeam = 200
	// A source that can't be asked at the moment, for its daemon restarts, is asked
	// again every retryPause for as long as patience.
	retryPause = time.Second
	patience   = time.Minute

	maxErrorBytes = 1 << 10
)

// Line is one line of the contract's watches.
type Line struct {
	Type      string     `json:"type"`
	Data      any        `json:"data,omitempty"`
	Cursor    string     `json:"cursor,omitempty"`
	Watermark string     `json:"watermark,omitempty"`
	Time      *time.Time `json:"time,omitempty"`
	Error     string     `json:"error,omitempty"`
}

// Watermark ends a batch: whoever comes back with the cursor misses nothing.
func Watermark(cursor string) Line {
	return Line{Type: "watermark", Cursor: cursor, Watermark: cursor}
}

// A Source answers the next batch. It waits for one, but no longer than
// [Heartbeat], and answers none then.
type Source func(ctx context.Context) ([]Line, error)

// Server owns the watches.
type Server struct {
	stopping chan struct{}
	watches  sync.WaitGroup
	pause    time.Duration
	timeout  time.Duration

	mu     sync.Mutex
	closed bool
	byTeam map[uuid.UUID]int
}

// New makes a Server.
func New() *Server {
	return &Server{stopping: make(chan struct{}), pause: retryPause, timeout: writeTimeout, byTeam: map[uuid.UUID]int{}}
}

// Close ends every watch and waits for the ends. A client comes back with the
// cursor of its last watermark.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stopping)
	}
	s.mu.Unlock()
	s.watches.Wait()
}

// enter counts a watch in.
func (s *Server) enter(team uuid.UUID) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errdefs.New(errdefs.Unavailable, "the server is stopping").WithRetryAfter(time.Second)
	case s.byTeam[team] >= watchesPerTeam:
		return nil, errdefs.New(errdefs.Exhausted, "too many open watches").WithRetryAfter(time.Second)
	}
	s.byTeam[team]++
	s.watches.Add(1)
	return func() {
		defer s.watches.Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.byTeam[team]--; s.byTeam[team] == 0 {
			delete(s.byTeam, team)
		}
	}, nil
}

// Enter counts in an answer that goes on, for one that isn't written here. Its
// context ends with [Server.Close], which waits for leave to be called.
func (s *Server) Enter(ctx context.Context, team uuid.UUID) (entered context.Context, leave func(), err error) {
	left, err := s.enter(team)
	if err != nil {
		return nil, nil, err
	}
	entered, cancel := context.WithCancel(ctx)
	s.watches.Go(func() {
		select {
		case <-s.stopping:
			cancel()
		case <-entered.Done():
		}
	})
	return entered, func() { cancel(); left() }, nil
}

// Serve answers a request with a watch until one side ends it. The first batch is
// the caller's, so that what is wrong with the request is an ordinary answer; so
// is an error of Serve's, which has answered nothing then.
func (s *Server) Serve(w http.ResponseWriter, r *http.Request, team uuid.UUID, first []Line, next Source) error {
	ctx, leave, err := s.Enter(r.Context(), team)
	if err != nil {
		return err
	}
	defer leave()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := &writer{w, http.NewResponseController(w), s.timeout}
	for lines := first; ; {
		if len(lines) == 0 {
			lines = []Line{heartbeat()}
		}
		if out.write(lines) != nil {
			return nil // the client is gone
		}
		if !Sleep(ctx, pace) {
			return nil
		}
		if lines, err = s.pull(ctx, out, next); ctx.Err() != nil {
			return nil
		}
		if err != nil {
			_ = out.write([]Line{{Type: "error", Error: shown(err)}}) // gone, or told
			return nil
		}
	}
}

// pull asks the source, again and again while it can't be asked for the moment.
func (s *Server) pull(ctx context.Context, out *writer, next Source) ([]Line, error) {
	for began := time.Now(); ; {
		lines, err := next(ctx)
		if !passing(err) || time.Since(began) > patience {
			return lines, err
		}
		if !Sleep(ctx, s.pause) {
			return nil, ctx.Err()
		}
		if err := out.write([]Line{heartbeat()}); err != nil {
			return nil, err
		}
	}
}

// Sleep waits, and tells whether ctx lasted that long.
func Sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// passing tells the errors that go by.
func passing(err error) bool {
	e, ok := errors.AsType[*errdefs.Error](err)
	return ok && (e.Kind == errdefs.GatewayTimeout || e.Kind == errdefs.Unavailable && e.RetryAfter > 0)
}

func shown(err error) string {
	m := errdefs.From(err).Message
	return m[:min(len(m), maxErrorBytes)]
}

func heartbeat() Line {
	now := time.Now().UTC()
	return Line{Type: "heartbeat", Time: &now}
}

// writer writes batches, each in time.
type writer struct {
	w  http.ResponseWriter
	rc *http.ResponseController

	timeout time.Duration
}

func (o *writer) write(lines []Line) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return err
		}
	}
	_ = o.rc.SetWriteDeadline(time.Now().Add(o.timeout)) // where there is none, the client's reading sets the pace alone
	if _, err := o.w.Write(b.Bytes()); err != nil {
		return err
	}
	return o.rc.Flush()
}
