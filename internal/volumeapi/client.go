package volumeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"s0.run/internal/errdefs"
)

const (
	// maxBody bounds every body.
	maxBody = 8 << 20
	// dialTimeout is for a socket of this machine: who does not accept hangs.
	dialTimeout = time.Second
	// idleConns are kept for claims that come together.
	idleConns = 16
)

// ErrDown is what calls end in that reached nobody, or were cut: volumed does not run.
var ErrDown = errors.New("volumed does not answer")

// A Client talks to volumed. It is safe for concurrent use. How long a call may take is
// its context's to say: a commit takes as long as its data.
type Client struct{ http *http.Client }

// NewClient makes a client of the volumed that listens on a unix socket; nothing is
// dialled yet.
func NewClient(socket string) *Client {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: idleConns, DisableCompression: true,
	}}}
}

// RoundTrip implements [http.RoundTripper] for file calls: the address is volumed's.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.http.Transport.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDown, err)
	}
	return resp, nil
}

// Close drops the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Info says who answers.
func (c *Client) Info(ctx context.Context) (answer Info, err error) {
	return answer, c.call(ctx, PathInfo, struct{}{}, &answer)
}

// Create makes a volume.
func (c *Client) Create(ctx context.Context, req Create) (answer State, err error) {
	return answer, c.call(ctx, PathCreate, req, &answer)
}

// Fork makes a volume of another.
func (c *Client) Fork(ctx context.Context, req Fork) (answer State, err error) {
	return answer, c.call(ctx, PathFork, req, &answer)
}

// Use has a volume mounted.
func (c *Client) Use(ctx context.Context, req Use) (answer Mounted, err error) {
	return answer, c.call(ctx, PathUse, req, &answer)
}

// Leave ends a use. An error other than ErrDown says that the last commit failed; the use
// has ended.
func (c *Client) Leave(ctx context.Context, req Leave) error {
	return c.call(ctx, PathLeave, req, &struct{}{})
}

// Commit makes what was written durable.
func (c *Client) Commit(ctx context.Context, id string) (answer Committed, err error) {
	return answer, c.call(ctx, PathCommit, One{id}, &answer)
}

// Capture takes a volume as it is now, for Snapshot and Fork: nobody writes to it before the
// answer. What an error came of is nothing. It waits for this machine's disk alone.
func (c *Client) Capture(ctx context.Context, v Volume) (answer Captured, err error) {
	return answer, c.call(ctx, PathCapture, v, &answer)
}

// Snapshot keeps what a volume is, at one instant: without a capture, one that is written to
// all the time is Unavailable. So is one whose capture is gone.
func (c *Client) Snapshot(ctx context.Context, req Snapshot) (answer State, err error) {
	return answer, c.call(ctx, PathSnapshot, req, &answer)
}

// Drop forgets a snapshot.
func (c *Client) Drop(ctx context.Context, req Snapshot) error {
	return c.call(ctx, PathDrop, req, &struct{}{})
}

// Restore makes a volume what a snapshot is.
func (c *Client) Restore(ctx context.Context, req Snapshot) (answer State, err error) {
	return answer, c.call(ctx, PathRestore, req, &answer)
}

// Release commits and unmounts a volume that nobody uses.
func (c *Client) Release(ctx context.Context, v Volume) error {
	return c.call(ctx, PathRelease, v, &struct{}{})
}

// Remove removes a volume for good.
func (c *Client) Remove(ctx context.Context, v Volume) error {
	return c.call(ctx, PathRemove, v, &struct{}{})
}

// List is what is known of volumes.
func (c *Client) List(ctx context.Context, ids []string) (answer States, err error) {
	return answer, c.call(ctx, PathList, Some{ids}, &answer)
}

func (c *Client) call(ctx context.Context, path string, body, answer any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://volumed"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDown, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return decode(resp.Body, answer)
	}
	var f failure
	if err := decode(resp.Body, &f); err != nil {
		return fmt.Errorf("volumed answers %s: %w", resp.Status, err)
	}
	return errdefs.WithCode(f.Kind, f.Code, "%s", f.Message)
}

// failure is an error on the wire.
type failure struct {
	Kind    errdefs.Kind `json:"kind"`
	Code    string       `json:"code"`
	Message string       `json:"message"`
}

// decode reads one strict JSON value.
func decode(r io.Reader, into any) error {
	limited := &io.LimitedReader{R: r, N: maxBody + 1}
	dec := json.NewDecoder(limited)
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else {
			err = errors.New("something follows the value")
		}
	}
	if limited.N == 0 {
		err = fmt.Errorf("more than %d bytes", maxBody)
	}
	return err
}
