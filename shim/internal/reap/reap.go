// Package reap waits for every child of this process, also for the orphans that
// are handed to it because it is a subreaper.
//
// One loop calls wait4 for all: a process that nobody asked about is reaped and
// forgotten, never left a zombie. The package owns the table of awaited pids, is
// the only place that waits, and signals a child with its end locked out, so that
// no signal reaches a process that took over the number of a dead one. Whoever
// kills what is not this process's child, as package clean does, looks it up anew.
package reap

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is the end of one process.
type Exit struct {
	Pid    int
	Status int // the exit code, or 128 + signal
	At     time.Time
}

// Reaper reaps the children of this process. Its methods are safe for
// concurrent use. There must be one per process, and nothing else may wait.
type Reaper struct {
	mu        sync.Mutex
	awaited   map[int]chan Exit
	recorders map[*Recorder]struct{}
}

// New makes a Reaper; nothing is reaped until [Reaper.Run].
func New() *Reaper {
	return &Reaper{awaited: map[int]chan Exit{}, recorders: map[*Recorder]struct{}{}}
}

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	sigs := make(chan os.Signal, 1) // one pending wake-up is enough: each reaps all
	signal.Notify(sigs, unix.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		r.reapAll()
		select {
		case <-ctx.Done():
			return
		case <-sigs:
		}
	}
}

func (r *Reaper) reapAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return // none has ended, or there are no children
		}
		r.deliverLocked(Exit{Pid: pid, Status: status(ws), At: time.Now()})
	}
}

func (r *Reaper) deliverLocked(e Exit) {
	if ch, ok := r.awaited[e.Pid]; ok {
		delete(r.awaited, e.Pid)
		ch <- e // has room for it
	}
	for rec := range r.recorders {
		rec.seen[e.Pid] = e
	}
}

func status(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// Start starts cmd; its exit arrives on the channel. The caller then calls
// cmd.Wait for its pipes and ignores the error about the missing process.
func (r *Reaper) Start(cmd *exec.Cmd) (<-chan Exit, error) {
	r.mu.Lock() // the child can't be reaped before it is awaited
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return r.awaitLocked(cmd.Process.Pid), nil
}

func (r *Reaper) awaitLocked(pid int) <-chan Exit {
	ch := make(chan Exit, 1)
	r.awaited[pid] = ch
	return ch
}

// Signal sends sig to a process that is awaited. It returns os.ErrProcessDone
// for one that has ended or was never awaited.
func (r *Reaper) Signal(pid int, sig unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.awaited[pid]; !ok {
		return os.ErrProcessDone
	}
	return unix.Kill(pid, sig)
}

// Recorder remembers the exits since it was made: a process whose pid is learned
// late may have ended before it could be awaited.
type Recorder struct {
	reaper *Reaper
	seen   map[int]Exit // guarded by reaper.mu
}

// Record makes a Recorder. It must be closed soon, for it keeps what it sees.
func (r *Reaper) Record() *Recorder {
	rec := &Recorder{reaper: r, seen: map[int]Exit{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recorders[rec] = struct{}{}
	return rec
}

// Await gives the exit of an adopted orphan: the one recorded, or the one to come.
func (rec *Recorder) Await(pid int) <-chan Exit {
	rec.reaper.mu.Lock()
	defer rec.reaper.mu.Unlock()
	if e, ok := rec.seen[pid]; ok {
		ch := make(chan Exit, 1)
		ch <- e
		return ch
	}
	return rec.reaper.awaitLocked(pid)
}

// Close ends the recording.
func (rec *Recorder) Close() {
	rec.reaper.mu.Lock()
	defer rec.reaper.mu.Unlock()
	delete(rec.reaper.recorders, rec)
}
