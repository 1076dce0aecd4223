package jail

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/files/mirror"
	"s0.run/internal/files/serve"
	"s0.run/internal/files/watch"
	"s0.run/internal/procapi/answer"
	"s0.run/volumed/internal/cage"
)

const (
	// gcPercent keeps a process small that holds next to nothing.
	gcPercent = 50
	// unwind is what calls get when the connection has ended.
	unwind = closeGrace - time.Second

	maxStreams = 128 // calls at the same time, watches included

	// One kernel watches for all volumes and for the host.
	maxWatches, maxWatchedDirs = 16, 8192

	newFiles = 0o022 // what mode bits new files do not have
)

// Main is what a process does. It returns its exit code when its connection has ended.
func Main(args []string) int {
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("daemon", "volume-files")
	if err := run(args, logger); err != nil {
		logger.Error("ended", "error", err)
		return 1
	}
	return 0
}

func run(args []string, logger *slog.Logger) error {
	if len(args) != 1 {
		return errors.New("volumed starts this by itself")
	}
	debug.SetGCPercent(gcPercent)
	if err := cage.Enter(treeFD, kept...); err != nil {
		return fmt.Errorf("entering the volume: %w", err)
	}
	unix.Umask(newFiles)
	f := os.NewFile(connFD, "connection")
	conn, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	var calls sync.WaitGroup
	serveOn(conn, handler(args[0], logger, &calls), logger)
	wait(&calls)
	return nil
}

// handler has the calls, and counts those that run.
func handler(full string, logger *slog.Logger, calls *sync.WaitGroup) http.Handler {
	mux := http.NewServeMux()
	tree := files.Tree{Base: "/", Durable: true, Copy: true}
	failed := func(r *http.Request, err error) {
		logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	routes := serve.Routes(tree, watch.NewShared(maxWatches, maxWatchedDirs))
	maps.Copy(routes, mirror.Routes(tree))
	for pattern, h := range routes {
		mux.Handle(pattern, answer.Serve(func(w http.ResponseWriter, r *http.Request) error {
			return noRoom(h(w, r), full)
		}, failed))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		defer calls.Done()
		mux.ServeHTTP(w, r)
	})
}

// noRoom gives an error for want of room its code, if it has one here.
func noRoom(err error, code string) error {
	if code != "" && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return errdefs.WithCode(errdefs.Exhausted, code, "the volume is full").WithCause(err)
	}
	return err
}

func serveOn(conn net.Conn, h http.Handler, logger *slog.Logger) {
	srv := &http.Server{
		Handler: h, Protocols: new(http.Protocols), MaxHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrameBytes,
			MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow,
		},
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	srv.ErrorLog.SetFlags(log.Lmsgprefix)
	srv.Protocols.SetUnencryptedHTTP2(true)
	ended := make(chan struct{})
	one := &oneConn{ended: ended}
	one.conn = &watchedConn{Conn: conn, ended: sync.OnceFunc(func() { close(ended) })}
	_ = srv.Serve(one) // ends with the connection
}

// wait lets calls take back what is half done: their connection has ended.
func wait(calls *sync.WaitGroup) {
	done, cancel := context.WithTimeout(context.Background(), unwind)
	go func() {
		calls.Wait()
		cancel()
	}()
	<-done.Done()
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
