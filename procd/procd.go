// Package procd is PID 1 of a sandbox.
//
// It dials the unix socket on which noded answers, and serves procapi's HTTP API
// on that connection and on every one that follows it: contexts, which outlive
// connections, and files. In a virtual machine, into which no socket leads, it
// listens for noded instead. Beside that it does what a PID 1 must: reap, and not die
// of a stray signal. It trusts nobody inside the sandbox and is trusted by nobody
// outside; it holds no secret. Its parts are under internal/: reap owns the
// children, proc a process and its output, repl what an interpreter says, warm the
// processes that a template wants to run before there is a tenant, contexts the
// table, sessions the commands that outlive their readers, logbook the lines that
// processes print, files, watch, archive and search the file calls, walk the way
// through a tree, rpc the wire, events what noded shall hear of, local what the
// sandbox's own processes may ask. This package wires them, owns the connection, and
// gives the sandbox its name.
package procd

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/contexts"
	"s0.run/procd/internal/events"
	"s0.run/procd/internal/local"
	"s0.run/procd/internal/logbook"
	"s0.run/procd/internal/reap"
	"s0.run/procd/internal/rpc"
	"s0.run/procd/internal/sessions"
	"s0.run/procd/internal/warm"
)

const (
	// gcPercent keeps the heap of an idle procd, one in every warm sandbox, small:
	// it holds next to nothing, so collecting often costs next to nothing.
	gcPercent = 50

	workspaceMode = 0o755
)

// Config says where procd is. Only its tests set more than Version, Log and Guest.
type Config struct {
	Version   string
	Log       *slog.Logger
	Guest     bool   // it is in a virtual machine: noded dials
	Socket    string // defaults to procapi.Socket
	Workspace string // defaults to procapi.Workspace
	Local     string // address for the sandbox's own processes; defaults to 127.0.0.1:procapi.EventPort
}

func (c Config) withDefaults() Config {
	c.Socket = cmp.Or(c.Socket, procapi.Socket)
	c.Workspace = cmp.Or(c.Workspace, procapi.Workspace)
	c.Local = cmp.Or(c.Local, net.JoinHostPort("127.0.0.1", strconv.Itoa(procapi.EventPort)))
	return c
}

// Run serves until ctx ends, the sandbox's host sends SIGTERM, or a warm process
// fails, which it returns. Then it kills everything that it started.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	door, err := doorOf(cfg)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Workspace, workspaceMode); err != nil {
		cfg.Log.Warn("making the workspace", "err", err) // a process that needs it will say so
	}
	debug.SetGCPercent(gcPercent)

	var stop context.CancelFunc
	ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	moved, unshield := becomeInit()
	defer unshield()

	reaper := reap.New()
	reaping, reaped := context.WithCancel(context.WithoutCancel(ctx)) // ends after the last child
	queue := events.NewQueue(time.Now)
	book := logbook.New(procapi.LogJournalBytes)
	table := contexts.New(contexts.Config{Reaper: reaper, Workspace: cfg.Workspace, Env: os.Environ(), Now: time.Now, Observe: queue.Add, Follow: book.Follow})
	dir := events.NewDir(queue, cfg.Log)
	supervised := sessions.New(sessions.Config{
		Start:  func(req procapi.CreateContext, keep int) (sessions.Process, error) { return table.Launch(req, keep) },
		Follow: book.Follow,
	})
	inside := local.New(local.Config{Address: cfg.Local, Log: cfg.Log})
	inside.Handle("POST "+events.PublishPath, http.HandlerFunc(queue.ServePublish))
	names := &names{etc: "/etc", log: cfg.Log}
	kept := warm.New(warm.Config{Contexts: table, Reaper: reaper})
	link := newLink(cfg.Socket, moved, cfg.Log)
	link.server.Handler = rpc.New(rpc.Config{
		Version: cfg.Version, BootID: bootID(), Contexts: table, Sessions: supervised, Warm: kept, Identify: names.set, HangUp: link.hangUp,
		Events: queue, Logs: book, WatchDir: dir.Set, Log: cfg.Log,
	})

	var children, work sync.WaitGroup
	children.Go(func() { reaper.Run(reaping) })
	work.Go(func() { link.run(ctx, door) })
	work.Go(func() { inside.Run(ctx) })
	work.Go(func() { supervised.Run(ctx) })
	work.Go(func() { dir.Run(ctx) })
	var failure error // of a warm process, without which the sandbox is not what it was to be
	work.Go(func() {
		if failure = kept.Run(ctx); failure != nil {
			stop()
		}
	})
	work.Go(func() {
		<-ctx.Done()
		killAll()
	})
	table.Run(ctx)
	work.Wait()
	names.wait()
	reaped()
	children.Wait()
	return failure
}

// doorOf is where noded comes in; nil: procd dials.
func doorOf(cfg Config) (*door, error) {
	if !cfg.Guest {
		return nil, nil
	}
	return openDoor()
}

// becomeInit does what only PID 1 has to. moved is to be told of bytes that move.
func becomeInit() (moved func(n int), undo func()) {
	if os.Getpid() != 1 {
		return func(int) {}, func() {}
	}
	undo = shield()
	// Whatever it was started with is not for the processes that it starts.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	return newProcessors().moved, undo
}

func bootID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// shielded are the signals that would end procd and that anybody in the sandbox
// who may signal PID 1 can send: ignored while procd runs. They are caught, not
// set to be ignored, for that would be inherited by every process.
var shielded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGBUS,
	syscall.SIGFPE, syscall.SIGUSR1, syscall.SIGSEGV, syscall.SIGUSR2, syscall.SIGPIPE, syscall.SIGALRM, syscall.SIGSTKFLT,
	syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGXCPU, syscall.SIGXFSZ, syscall.SIGVTALRM, syscall.SIGIO,
	syscall.SIGPWR, syscall.SIGSYS,
}

func shield() (drop func()) {
	c := make(chan os.Signal, 1) // never read: what doesn't fit is dropped
	signal.Notify(c, shielded...)
	return func() { signal.Stop(c) }
}

// killAll kills every process of the sandbox but procd; elsewhere, which only
// tests are, contexts are all there is to kill.
func killAll() {
	if os.Getpid() == 1 {
		_ = syscall.Kill(-1, syscall.SIGKILL)
	}
}
