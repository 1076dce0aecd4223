package noop

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
)

// Pauses between dials of a socket that nobody answers.
const minRedial, maxRedial = 2 * time.Millisecond, 200 * time.Millisecond

// process is a goroutine in a sandbox's place.
type process struct {
	env    atomic.Pointer[map[string]string]
	mounts atomic.Pointer[[]procapi.Mount] // that it was told of
	init   atomic.Pointer[procapi.Init]    // nil until it was told who it is
	busy   atomic.Bool                     // what is mounted is in use
	keeps  atomic.Pointer[procapi.EventsConfig]
	warm   *warmth
	kept   atomic.Pointer[[]procapi.KeptContext]
	begun  string      // the image that it was started from; empty: none
	frozen atomic.Bool // dials nobody
	deaf   atomic.Bool // takes no environment, and keeps no events

	taskless atomic.Bool // its shim has died
	other    http.Handler
	end      context.CancelFunc
	done     chan struct{}
}

func startProcess(slotDir string, other http.Handler, warm *warmth) *process {
	if other == nil {
		other = http.HandlerFunc(unknown)
	}
	ctx, cancel := context.WithCancel(context.Background()) // ends with kill, as a process does
	p := &process{other: other, warm: warm, end: cancel, done: make(chan struct{})}
	go p.run(ctx, slotDir)
	return p
}

func (p *process) kill() {
	p.end()
	<-p.done
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// run serves one connection after the other, like procd.
func (p *process) run(ctx context.Context, slotDir string) {
	defer close(p.done)
	for pause := minRedial; ctx.Err() == nil; pause = min(2*pause, maxRedial) {
		if p.frozen.Load() {
			pause = minRedial
		} else if conn, err := dial(ctx, slotDir); err == nil {
			p.serve(ctx, conn)
			pause = minRedial
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// dial goes through the directory's descriptor: a socket's address is short, as
// its path is inside a real sandbox.
func dial(ctx context.Context, slotDir string) (net.Conn, error) {
	fd, err := unix.Open(slotDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(procapi.Socket)))
}

func (p *process) serve(ctx context.Context, conn net.Conn) {
	l := &oneConn{conn: conn, closed: make(chan struct{})}
	srv := &http.Server{Handler: p.handler(conn), Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	stop := context.AfterFunc(ctx, func() {
		srv.Close()
		conn.Close()
	})
	defer stop()
	_ = srv.Serve(l) // until the connection ends, from either side
}

func (p *process) handler(conn net.Conn) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+procapi.PathHangUp, func(http.ResponseWriter, *http.Request) { conn.Close() })
	mux.HandleFunc("GET "+procapi.PathHello, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"version":"noop","boot_id":"noop","ready":true}`)
	})
	mux.HandleFunc("GET "+procapi.PathKept, p.tellKept)
	mux.HandleFunc("POST "+procapi.PathInit, p.introduce)
	mux.HandleFunc("PUT "+procapi.PathEnv, p.unlessDeaf(p.setEnv))
	mux.Handle("GET "+procapi.PathWarm, p.warm)
	mux.HandleFunc("PUT "+procapi.PathEventsConfig, p.unlessDeaf(p.keepEvents))
	mux.HandleFunc("GET "+procapi.PathEvents, tellNothing)
	mux.HandleFunc("POST "+procapi.PathMounts, p.mount)
	mux.HandleFunc("DELETE "+procapi.PathMounts, p.unmount)
	mux.Handle("/", p.other)
	return mux
}

// introduce heeds the first Init of a generation alone, as procd does.
func (p *process) introduce(w http.ResponseWriter, r *http.Request) {
	var in procapi.Init
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if old := p.init.Load(); (old == nil || old.Generation < in.Generation) && p.init.CompareAndSwap(old, &in) {
		p.env.Store(&in.Env)
		p.mounts.Store(&in.Mounts)
	}
	io.WriteString(w, "{}")
}

func (p *process) tellKept(w http.ResponseWriter, _ *http.Request) {
	var all procapi.KeptContexts
	if kept := p.kept.Load(); kept != nil {
		all.Contexts = *kept
	}
	_ = json.NewEncoder(w).Encode(all)
}

func (p *process) unlessDeaf(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if p.deaf.Load() {
			http.Error(w, "deaf", http.StatusServiceUnavailable)
			return
		}
		f(w, r)
	}
}

func (p *process) setEnv(w http.ResponseWriter, r *http.Request) {
	var in procapi.Env
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.env.Store(&in.Env)
	p.mounts.Store(&in.Mounts)
	if in.RestartWarm {
		p.warm.restarts.Add(1)
	}
	io.WriteString(w, "{}")
}

func (p *process) mount(w http.ResponseWriter, r *http.Request) {
	p.remount(w, r, func(all []procapi.Mount, m procapi.Mount) []procapi.Mount { return append(all, m) })
}

func (p *process) unmount(w http.ResponseWriter, r *http.Request) {
	p.remount(w, r, func(all []procapi.Mount, _ procapi.Mount) []procapi.Mount { return all })
}

// remount changes what is mounted: what is in the request is taken out, then put back or not.
func (p *process) remount(w http.ResponseWriter, r *http.Request, put func([]procapi.Mount, procapi.Mount) []procapi.Mount) {
	var in procapi.Mount
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if p.busy.Load() {
		http.Error(w, `{"code":"conflict","message":"in use"}`, http.StatusConflict)
		return
	}
	var all []procapi.Mount
	if old := p.mounts.Load(); old != nil {
		all = slices.DeleteFunc(slices.Clone(*old), func(m procapi.Mount) bool { return m == in })
	}
	all = put(all, in)
	p.mounts.Store(&all)
	io.WriteString(w, "{}")
}

func (p *process) keepEvents(w http.ResponseWriter, r *http.Request) {
	var in procapi.EventsConfig
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.keeps.Store(&in)
	io.WriteString(w, "{}")
}

// tellNothing is the events of a sandbox in which nothing happens.
func tellNothing(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func unknown(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	io.WriteString(w, `{"code":"not_found","message":"a no-op sandbox has no such thing"}`)
}

// oneConn is a listener of one connection; Accept then waits for its end.
type oneConn struct {
	conn   net.Conn
	given  bool
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return &watched{Conn: l.conn, end: l}, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// watched ends its listener when it is closed.
type watched struct {
	net.Conn
	end *oneConn
}

func (c *watched) Close() error {
	err := c.Conn.Close()
	_ = c.end.Close()
	return err
}
