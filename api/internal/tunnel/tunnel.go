// Package tunnel makes connections to services inside sandboxes: a net.Conn of
// each full-duplex request to procd, for whoever speaks a protocol over it.
//
// It owns the open connections' count, by sandbox and by team, and closes one
// over which nothing has passed for a while. Nothing reaches a sandbox over IP.
package tunnel

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/dataplane"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

const (
	openTimeout = 10 * time.Second // procd's own dial takes up to 5
	idleTimeout = 10 * time.Minute // a stream that says nothing for so long has been forgotten

	// Bounds of what is open at once; a pooled connection that waits counts too.
	perSandbox = 512
	perTeam    = 4096
)

// streamer is the part of dataplane.Plane that is needed.
type streamer interface {
	// Stream answers a success's response, whose body lives as long as ctx.
	Stream(ctx context.Context, to dataplane.Target, req dataplane.Request) (*http.Response, error)
}

// Dialer opens connections. It is safe for concurrent use.
type Dialer struct {
	plane streamer
	idle  time.Duration

	mu        sync.Mutex
	bySandbox map[sandbox.ID]int
	byTeam    map[uuid.UUID]int
}

// New makes a Dialer.
func New(plane streamer) *Dialer {
	return &Dialer{plane: plane, idle: idleTimeout, bySandbox: map[sandbox.ID]int{}, byTeam: map[uuid.UUID]int{}}
}

// Listener names what listens inside a sandbox, in procapi's words.
type Listener struct {
	Port     string // of TCP
	Function string // a function service's id, when Port is empty
}

func (l Listener) query() url.Values {
	if l.Port != "" {
		return url.Values{procapi.TunnelPort: {l.Port}}
	}
	return url.Values{procapi.TunnelFunction: {l.Function}}
}

// Dial connects. The connection outlives ctx, which bounds the dialling alone.
// It fails with procapi's codes where the sandbox says so.
func (d *Dialer) Dial(ctx context.Context, to dataplane.Target, l Listener) (net.Conn, error) {
	leave, err := d.enter(to)
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, end)
	input, output := io.Pipe()
	resp, err := d.plane.Stream(life, to, dataplane.Request{
		Method: http.MethodPost, Path: procapi.PathTunnel, Query: l.query(), Body: input, Length: -1, Timeout: openTimeout,
	})
	if !stop() && err == nil {
		resp.Body.Close()
		err = ctx.Err()
	}
	if err != nil {
		end()
		input.CloseWithError(net.ErrClosed)
		leave()
		return nil, err
	}
	c := &conn{output: output, answer: resp.Body, idle: d.idle}
	c.close = sync.OnceFunc(func() {
		input.CloseWithError(net.ErrClosed)
		end()
		// The HTTP/2 client looks at its context again only when the request's body is done.
		resp.Body.Close()
		leave()
	})
	c.timer = time.AfterFunc(d.idle, c.close)
	return c, nil
}

// enter counts a connection in.
func (d *Dialer) enter(to dataplane.Target) (leave func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bySandbox[to.ID] >= perSandbox || d.byTeam[to.Team] >= perTeam {
		return nil, errdefs.WithCode(errdefs.Exhausted, "unavailable", "too many open connections to services").WithRetryAfter(time.Second)
	}
	d.bySandbox[to.ID]++
	d.byTeam[to.Team]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.bySandbox[to.ID]--; d.bySandbox[to.ID] == 0 {
			delete(d.bySandbox, to.ID)
		}
		if d.byTeam[to.Team]--; d.byTeam[to.Team] == 0 {
			delete(d.byTeam, to.Team)
		}
	}, nil
}

// conn is one connection. It has no deadlines: its users end it by closing it.
type conn struct {
	output *io.PipeWriter
	answer io.ReadCloser
	idle   time.Duration
	timer  *time.Timer
	close  func()
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.answer.Read(b)
	if n > 0 {
		c.timer.Reset(c.idle)
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	c.timer.Reset(c.idle)
	return c.output.Write(b)
}

// CloseWrite ends what is said to the service, which may go on answering.
func (c *conn) CloseWrite() error { return c.output.Close() }

// Close implements net.Conn.
func (c *conn) Close() error {
	c.timer.Stop()
	c.close()
	return nil
}

// address is the same for both ends: there is none.
type address struct{}

func (address) Network() string { return "s0" }
func (address) String() string  { return "sandbox" }

func (*conn) LocalAddr() net.Addr              { return address{} }
func (*conn) RemoteAddr() net.Addr             { return address{} }
func (*conn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (*conn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (*conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
