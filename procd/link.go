package procd

import (
	"bufio"
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"s0.run/procd/internal/rawio"
)

const (
	// Pauses between dials: none after a connection that lived, for noded may have
	// just restarted, then longer, for it may be away for hours.
	minRedial = time.Millisecond
	maxRedial = 200 * time.Millisecond

	// After a hang-up the sandbox is about to be saved. In its next life every
	// millisecond until it has dialled is one that somebody waits for; if it has none,
	// the haste ends by itself.
	hastyRedial = 5 * time.Millisecond
	hastyDials  = 6000

	// livedTime tells a connection that worked from one that was refused.
	livedTime = time.Second

	// One connection carries everything of a sandbox: many readers that stay, and
	// uploads whose window is not the bottleneck.
	maxStreams     = 4096
	maxFrameBytes  = 64 << 10 // noded keeps that much for each request whose body goes on
	streamWindow   = 1 << 20
	connWindow     = 1 << 30 // of all uploads: input that a process doesn't read must not stop the others
	maxHeaderBytes = 32 << 10

	// readBuffer takes the frames of a small request at once: the server reads each in
	// two pieces, and a system call of ours is one of the sandbox's kernel.
	readBuffer = 4 << 10
)

// link has a connection to noded and serves on it. Its server's handler is set
// before it runs.
type link struct {
	socket string
	server *http.Server
	moved  func(n int)  // told of every piece that is read or written
	hasty  atomic.Int64 // dials that still are made in haste

	mu      sync.Mutex
	current net.Conn // nil between connections
}

func newLink(socket string, moved func(n int), logger *slog.Logger) *link {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &link{socket: socket, moved: moved, server: &http.Server{
		Protocols: protocols, MaxHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrameBytes,
			MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow,
		},
		ErrorLog: log.New(logWriter{logger}, "", 0),
	}}
}

// logWriter takes the server's lines.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Warn("server", "msg", string(b))
	return len(b), nil
}

// run serves one connection after the other until ctx ends: those that come through
// the door, or without one those that it dials.
func (l *link) run(ctx context.Context, d *door) {
	stop := context.AfterFunc(ctx, func() { _ = l.server.Close() })
	defer stop()
	if d != nil {
		d.serve(ctx, l)
		return
	}
	l.call(ctx)
}

// call dials, serves until the connection ends, and dials again, until ctx ends.
func (l *link) call(ctx context.Context) {
	for pause := time.Duration(0); ctx.Err() == nil; pause = min(max(2*pause, minRedial), maxRedial) {
		if l.hasty.Load() > 0 {
			l.hasty.Add(-1)
			pause = hastyRedial
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		conn, err := l.dial(ctx)
		if err != nil {
			continue
		}
		l.hasty.Store(0)
		began := time.Now()
		l.serve(conn)
		if time.Since(began) >= livedTime {
			pause = 0
		}
	}
}

// dial connects to noded. Small calls are spared the scheduler's watcher.
func (l *link) dial(ctx context.Context) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", l.socket)
	if err != nil {
		return nil, err
	}
	return rawio.NewConn(conn.(*net.UnixConn))
}

// serve returns when the connection has ended. Contexts don't notice.
func (l *link) serve(conn net.Conn) {
	l.hold(conn)
	l.attend(conn)
}

// attend is serve for a connection that is held.
func (l *link) attend(conn net.Conn) {
	defer l.release(conn)
	one := &oneConn{ended: make(chan struct{})}
	one.conn = &watchedConn{Conn: &joiner{Conn: conn}, reader: bufio.NewReaderSize(conn, readBuffer), moved: l.moved, ended: sync.OnceFunc(func() { close(one.ended) })}
	_ = l.server.Serve(one)
	conn.Close()
}

// hold makes conn the connection. Who is there already is not any more.
func (l *link) hold(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		l.current.Close()
	}
	l.current = conn
}

func (l *link) release(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == conn {
		l.current = nil
	}
}

// hangUp closes the connection and has the next one dialled in haste. First it gives back
// what memory nobody uses: the sandbox is about to be saved with all of it.
func (l *link) hangUp() {
	debug.FreeOSMemory()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hasty.Store(hastyDials)
	if l.current != nil {
		l.current.Close()
	}
}

// oneConn is a listener that accepts one connection and ends with it.
type oneConn struct {
	conn  net.Conn
	ended chan struct{}
	given bool
}

func (o *oneConn) Accept() (net.Conn, error) {
	if !o.given {
		o.given = true
		return o.conn, nil
	}
	<-o.ended
	return nil, net.ErrClosed
}

func (o *oneConn) Close() error   { return o.conn.Close() }
func (o *oneConn) Addr() net.Addr { return o.conn.LocalAddr() }

// watchedConn tells what passes, and when it is closed.
type watchedConn struct {
	net.Conn
	reader *bufio.Reader
	moved  func(n int) // told of every piece
	ended  func()
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.reader.Read(b)
	c.moved(n)
	return n, err
}

func (c *watchedConn) Write(b []byte) (int, error) {
	c.moved(len(b))
	return c.Conn.Write(b)
}

func (c *watchedConn) Close() error {
	err := c.Conn.Close()
	c.ended()
	return err
}
