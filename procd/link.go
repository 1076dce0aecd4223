package procd

import (
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// Pauses between dials: none after a connection that lived, for noded may have
	// just restarted, then longer, for it may be away for hours.
	minRedial = time.Millisecond
	maxRedial = 200 * time.Millisecond

	// livedTime tells a connection that worked from one that was refused.
	livedTime = time.Second

	// One connection carries everything of a sandbox: many readers that stay, and
	// uploads whose window is not the bottleneck.
	maxStreams     = 4096
	maxFrameBytes  = 64 << 10 // noded keeps that much for each request whose body goes on
	streamWindow   = 1 << 20
	connWindow     = 1 << 30 // of all uploads: input that a process doesn't read must not stop the others
	maxHeaderBytes = 32 << 10
)

// link keeps a connection to noded and serves on it.
type link struct {
	socket string
	server *http.Server
}

func newLink(socket string, handler http.Handler, logger *slog.Logger) *link {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &link{socket: socket, server: &http.Server{
		Handler: handler, Protocols: protocols, MaxHeaderBytes: maxHeaderBytes,
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

// run dials, serves until the connection ends, and dials again, until ctx ends.
func (l *link) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = l.server.Close() })
	defer stop()
	var dialer net.Dialer
	for pause := time.Duration(0); ctx.Err() == nil; pause = min(max(2*pause, minRedial), maxRedial) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		conn, err := dialer.DialContext(ctx, "unix", l.socket)
		if err != nil {
			continue
		}
		began := time.Now()
		l.serve(conn)
		if time.Since(began) >= livedTime {
			pause = 0
		}
	}
}

// serve returns when the connection has ended. Contexts don't notice.
func (l *link) serve(conn net.Conn) {
	one := &oneConn{ended: make(chan struct{})}
	one.conn = &watchedConn{Conn: conn, ended: sync.OnceFunc(func() { close(one.ended) })}
	_ = l.server.Serve(one)
	conn.Close()
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

// watchedConn tells when it is closed.
type watchedConn struct {
	net.Conn
	ended func()
}

func (c *watchedConn) Close() error {
	err := c.Conn.Close()
	c.ended()
	return err
}
