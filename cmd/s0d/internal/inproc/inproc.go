// Package inproc lets one part of a process ask another over HTTP without a connection: a
// [Link] is the client's transport and serves the handler. A call is a goroutine, its bodies
// are memory; nothing is framed, copied into a kernel or handed on by more goroutines than
// the two that talk.
//
// What HTTP/2 promises holds: both bodies flow at once and wait for a slow reader, an answer
// that breaks off ends in an error, a caller that has gone ends the handler's context, and
// nothing of the caller's context reaches the handler but its end. There are no trailers.
//
// A Link owns the calls under way: Serve returns when all of their handlers have.
package inproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// ErrClosed is what a call gets after Serve was told to stop.
var ErrClosed = errors.New("inproc: the other part has stopped")

var errBrokeOff = fmt.Errorf("inproc: the answer breaks off: %w", io.ErrUnexpectedEOF)

// Link is safe for concurrent use.
type Link struct {
	log   *slog.Logger
	ready chan struct{} // closed when there is a handler

	handler http.Handler    // set before ready is closed, and so is base
	base    context.Context // of all handlers

	mu     sync.Mutex
	closed bool           // no call begins any more
	calls  sync.WaitGroup // handlers that run
}

// New makes a Link that nobody serves yet. log is told of handlers that panic.
func New(log *slog.Logger) *Link { return &Link{log: log, ready: make(chan struct{})} }

// Serve has h answer until ctx ends, gives the calls under way grace to finish, and then
// ends their contexts and bodies. It is called once.
func (l *Link) Serve(ctx context.Context, h http.Handler, grace time.Duration) error {
	base, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(ErrClosed)
	l.handler, l.base = h, base
	close(l.ready)
	<-ctx.Done()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	timer := time.AfterFunc(grace, func() { abort(ErrClosed) })
	defer timer.Stop()
	l.calls.Wait()
	return nil
}

// RoundTrip implements http.RoundTripper. It waits until the Link is served. An answer's
// header comes with the first of its body, or when the handler flushes it or returns.
func (l *Link) RoundTrip(req *http.Request) (*http.Response, error) {
	c, err := l.begin(req)
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	go c.serve(l.handler, l.log, &l.calls)
	select {
	case <-c.answer.sent:
		return c.response()
	case <-c.ctx.Done():
	}
	select { // a handler that has answered ends the context, too
	case <-c.answer.sent:
		return c.response()
	default:
		return nil, context.Cause(c.ctx)
	}
}

// begin counts a call that may be made; its serve takes it off.
func (l *Link) begin(req *http.Request) (*call, error) {
	select {
	case <-l.ready:
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	l.calls.Add(1)
	return newCall(l.base, req), nil
}
