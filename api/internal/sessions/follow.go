package sessions

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	followTimeout = 10 * time.Second // until procd says whether it has the session
	retryPause    = time.Second      // between two attempts to go on
	patience      = time.Minute      // with a sandbox that does not answer, for its node's daemon restarts
)

// ErrNonsense is what following ends with when procd's events are none.
var ErrNonsense = errors.New("malformed event of a session")

// Follower follows a session's events. It is for one goroutine.
type Follower struct {
	client  Client
	to      dataplane.Target
	session string
	after   uint64        // the last event that was sent
	pause   time.Duration // tests have a shorter one

	body io.ReadCloser // nil while the sandbox can't be asked
}

// Follow asks for the events behind a number, and so tells whether there is such a
// session.
func (c Client) Follow(ctx context.Context, to dataplane.Target, sessionID string, after uint64) (*Follower, error) {
	if err := c.checkID(ctx, to, sessionID); err != nil {
		return nil, err
	}
	f := &Follower{client: c, to: to, session: sessionID, after: after, pause: retryPause}
	return f, f.open(ctx)
}

// Close lets go of a follower that does not run.
func (f *Follower) Close() {
	if f.body != nil {
		f.body.Close()
		f.body = nil
	}
}

func (f *Follower) open(ctx context.Context) error {
	resp, err := f.client.Plane.Stream(ctx, f.to, dataplane.Request{
		Method: http.MethodGet, Path: procapi.PathSessions + "/" + f.session + "/events/stream",
		Query: url.Values{"after": {strconv.FormatUint(f.after, 10)}}, Timeout: followTimeout,
	})
	if err == nil {
		f.body = resp.Body
	}
	return err
}

// Run sends the events, as they happen, until ctx or the session ends, which is no
// error, or something is wrong. A connection that breaks off is made again, for a
// session outlives it.
func (f *Follower) Run(ctx context.Context, send func(openapi.ExecutionSessionEvent) error) error {
	defer f.Close()
	for {
		ended, err := f.pass(ctx, send)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case ended || err != nil:
			return err
		}
		if err := f.reopen(ctx); err != nil {
			if errdefs.From(err).Code == procapi.CodeSessionNotFound {
				return nil
			}
			return err
		}
	}
}

// reopen opens again, for as long as patience. It never hurries: a sandbox may
// answer and break off for ever.
func (f *Follower) reopen(ctx context.Context) error {
	f.Close()
	for began := time.Now(); ; {
		select {
		case <-time.After(f.pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		err := f.open(ctx)
		if err == nil || !passing(err) || time.Since(began) > patience {
			return err
		}
	}
}

// passing tells the errors that go by.
func passing(err error) bool {
	e, ok := errors.AsType[*errdefs.Error](err)
	return ok && (e.Kind == errdefs.GatewayTimeout || e.Kind == errdefs.Unavailable && e.RetryAfter > 0)
}

// pass sends what one connection brings; ended tells that nothing follows. With
// neither ended nor an error, the connection broke off.
func (f *Follower) pass(ctx context.Context, send func(openapi.ExecutionSessionEvent) error) (ended bool, err error) {
	// The HTTP/2 client looks at ctx again only when the request's body is done.
	body := f.body
	defer context.AfterFunc(ctx, func() { body.Close() })()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, procapi.MaxSessionEvent)
	lines.Split(dataplane.WholeLines)
	for lines.Scan() {
		var ev openapi.ExecutionSessionEvent
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			return true, fmt.Errorf("%w: %w", ErrNonsense, err)
		}
		if err := checkEvent(&ev, f.session, f.after); err != nil {
			return true, fmt.Errorf("%w: %w", ErrNonsense, err)
		}
		if err := send(ev); err != nil {
			return true, err
		}
		f.after = uint64(ev.Seq)
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return true, fmt.Errorf("%w: more than %d bytes", ErrNonsense, procapi.MaxSessionEvent)
	}
	return lines.Err() == nil, nil
}
