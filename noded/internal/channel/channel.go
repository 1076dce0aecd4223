// Package channel is the connection between noded and one sandbox's procd.
//
// noded listens on a unix socket in the slot's directory, which the sandbox sees
// at procapi.Dir; procd dials it and is the HTTP/2 server of that connection.
// The path is the identity: whatever dials is this sandbox and speaks for this
// sandbox alone. The other end is hostile. Anything inside may dial, so the
// latest connection wins and dialling is rationed; every answer is bounded in
// size and time and checked before use; nothing that it says becomes a path, an
// id or a permission. Where the sandbox is a virtual machine, to which no socket
// of the host leads, it is the Channel that dials; the rest is the same.
//
// A [Channel] owns its socket, if it has one, and its connection. It never decides what a loss
// means: it reports it.
package channel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
)

const (
	// acceptInterval rations dialling: a sandbox that dials in a loop costs the
	// node next to nothing, and procd's own redial waits no longer than this.
	acceptInterval = 20 * time.Millisecond
	// acceptRetry is the pause after a failed accept, such as for want of descriptors.
	acceptRetry = 200 * time.Millisecond
	// connectWait is how long a request waits for procd to (re)dial.
	connectWait = 2 * time.Second
	// writeTimeout ends a connection whose other end has stopped reading.
	writeTimeout = 10 * time.Second
	// A connection that says nothing for quietTime is asked whether it lives, which
	// costs an idle sandbox next to nothing, and ended when it doesn't answer in
	// answerTime: long, for a busy machine may keep a sandbox waiting.
	quietTime, answerTime = 30 * time.Second, 20 * time.Second

	maxHeaderBytes = 64 << 10
	maxFrameBytes  = 256 << 10 // of an answer, in one piece
	// One unread response holds up to streamWindow. It is what a fast stream needs:
	// each time that a window is used up, the sandbox has to be woken for more. The
	// connection's is beyond what the API server's sessions with one sandbox can
	// hold: slow readers must not stop the others.
	streamWindow = 512 << 10
	connWindow   = 1 << 30
)

// ErrDisconnected is returned when procd does not connect in time.
var ErrDisconnected = errors.New("procd is not connected")

// Config describes one channel.
type Config struct {
	Dir string // the slot's directory, which exists
	// Lost is called when a connection was lost and no new one came within
	// Grace. silent tells that the other end has not closed it, but stopped
	// answering: it may yet come back. Lost must not block.
	Lost  func(silent bool)
	Grace time.Duration
	// Dial connects to a procd that can't dial; nil: it can. It ends within seconds.
	Dial func(context.Context) (net.Conn, error)
}

// Channel is safe for concurrent use.
type Channel struct {
	cfg       Config
	listener  *net.UnixListener // nil: it dials
	transport *http.Transport
	done      chan struct{} // closed by Close, once
	end       sync.Once

	mu      sync.Mutex
	current *link         // nil while procd is not connected
	arrived chan struct{} // closed while current is set
	loss    *time.Timer   // running while a lost connection's Grace does; nil otherwise
	silent  bool          // how the last connection was lost
	closed  bool
}

// link is one connection of procd's; Channel.mu guards dead.
type link struct {
	net.Conn
	client *http.ClientConn
	lost   func(*link) // told when the connection is closed from either side
	dead   bool
	ended  chan struct{} // closed once it is dead
	hungUp atomic.Bool   // by the other end
}

func (l *link) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		l.hungUp.Store(true)
	}
	return n, err
}

// Close is how the HTTP/2 client says that the connection has ended.
func (l *link) Close() error {
	err := l.Conn.Close()
	l.lost(l)
	return err
}

// Listen binds the socket, in place of one that an earlier noded left behind:
// procd, whose connection broke with that process, redials the same path. With
// cfg.Dial there is none to bind.
func Listen(cfg Config) (*Channel, error) {
	c := &Channel{cfg: cfg, transport: transport, done: make(chan struct{}), arrived: make(chan struct{})}
	if cfg.Dial != nil {
		return c, nil
	}
	var err error
	if c.listener, err = listen(cfg.Dir); err != nil {
		return nil, fmt.Errorf("listening for procd in %s: %w", cfg.Dir, err)
	}
	return c, nil
}

func listen(dir string) (*net.UnixListener, error) {
	name := filepath.Base(procapi.Socket)
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// Through the directory's descriptor: a socket's address holds 107 bytes, a path may be longer.
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	short := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(short, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Run accepts connections, or makes them, until ctx ends or the channel is closed.
// It must run exactly once for each Channel.
func (c *Channel) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, c.Close)
	defer stop()
	for {
		pause := acceptInterval
		if conn, err := c.next(ctx); err == nil {
			c.attach(ctx, conn)
		} else {
			pause = acceptRetry
		}
		select {
		case <-c.done:
			return nil
		case <-time.After(pause):
		}
	}
}

// next is the next connection. Who dials needs none before the last one has ended, and none
// after the channel has.
func (c *Channel) next(ctx context.Context) (net.Conn, error) {
	if c.listener != nil {
		return c.listener.Accept()
	}
	c.mu.Lock()
	current := c.current
	c.mu.Unlock()
	if current != nil {
		select {
		case <-current.ended:
		case <-c.done:
			return nil, net.ErrClosed
		}
	}
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	return c.cfg.Dial(ctx)
}

// Close ends the channel, with its connection, for good and reports no loss. The
// socket's file stays, for by then it may be a successor's.
func (c *Channel) Close() {
	c.mu.Lock()
	old := c.current
	c.closed = true
	if c.loss != nil {
		c.loss.Stop()
	}
	c.mu.Unlock()
	c.end.Do(func() { close(c.done) })
	c.stopListening()
	if old != nil {
		old.client.Close()
	}
}

func (c *Channel) stopListening() {
	if c.listener != nil {
		c.listener.Close()
	}
}

// attach makes conn the channel's connection.
func (c *Channel) attach(ctx context.Context, conn net.Conn) {
	l := &link{Conn: conn, lost: c.detach, ended: make(chan struct{})}
	client, err := c.transport.NewClientConn(context.WithValue(ctx, linkKey{}, l), "http", "procd:80")
	if err != nil {
		l.Conn.Close()
		return
	}
	l.client = client
	if old := c.replace(l); old != nil {
		old.client.Close()
	}
}

// replace makes l current and returns what is to be closed: its predecessor, or
// l itself if it came too late.
func (c *Channel) replace(l *link) *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return l
	}
	if l.dead {
		return nil
	}
	old := c.current
	c.current = l
	if old == nil {
		close(c.arrived)
	}
	if c.loss != nil {
		c.loss.Stop()
		c.loss = nil
	}
	return old
}

func (c *Channel) detach(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !l.dead {
		l.dead = true
		close(l.ended)
	}
	if c.current != l {
		return
	}
	c.current = nil
	c.silent = !l.hungUp.Load()
	c.arrived = make(chan struct{})
	if !c.closed {
		c.loss = time.AfterFunc(c.cfg.Grace, c.report)
	}
}

func (c *Channel) report() {
	c.mu.Lock()
	lost, silent := c.current == nil && !c.closed, c.silent
	c.mu.Unlock()
	if lost {
		c.cfg.Lost(silent)
	}
}

// Connected reports whether procd is connected now.
func (c *Channel) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current != nil
}

// connection waits for procd to be connected.
func (c *Channel) connection(ctx context.Context) (*http.ClientConn, error) {
	for {
		c.mu.Lock()
		current, arrived := c.current, c.arrived
		c.mu.Unlock()
		if current != nil {
			return current.client, nil
		}
		select {
		case <-arrived:
		case <-c.done:
			return nil, ErrDisconnected
		case <-ctx.Done():
			return nil, ErrDisconnected
		}
	}
}

// RoundTrip sends a request to procd; the URL's scheme and host do not matter.
// It waits a moment for procd to be connected, else fails with [ErrDisconnected].
func (c *Channel) RoundTrip(req *http.Request) (*http.Response, error) {
	wait, cancel := context.WithTimeout(req.Context(), connectWait)
	client, err := c.connection(wait)
	cancel()
	if err != nil {
		return nil, err
	}
	return client.RoundTrip(req)
}

type linkKey struct{}

// transport makes the HTTP/2 clients; it holds no connection of its own.
var transport = newTransport(quietTime, answerTime)

func newTransport(quiet, answer time.Duration) *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(linkKey{}).(*link), nil
		},
		Protocols:              new(http.Protocols),
		DisableCompression:     true, // bytes pass through as they are
		MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxReadFrameSize:              maxFrameBytes,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			WriteByteTimeout:              writeTimeout,
			SendPingTimeout:               quiet,
			PingTimeout:                   answer,
		},
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}
