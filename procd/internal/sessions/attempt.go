package sessions

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// maxInputIDs is how many of an attempt's newest inputs are known when they come
// again.
const maxInputIDs = 1024

// attempt is one process of a session's. Its owner is the session's.
type attempt struct {
	id         string
	number     int64
	generation uint64
	started    time.Time

	process Process // nil once it has ended: its log is large
	pid     int
	inputs  inputs

	finished time.Time // zero while it is live
	exit     *procapi.Exit
	reason   string // why it ended
}

func (a *attempt) view() procapi.SessionAttempt {
	v := procapi.SessionAttempt{
		ID: a.id, Number: a.number, RuntimeGeneration: a.generation, PID: a.pid, StartedAt: a.started.UTC(), Reason: a.reason,
	}
	if !a.finished.IsZero() {
		v.FinishedAt = a.finished.UTC()
	}
	if a.exit != nil {
		v.ExitCode = &a.exit.ExitCode
	}
	return v
}

// live tells whether there is an attempt that has not ended.
func (s *session) live() bool { return s.attempt != nil && s.attempt.finished.IsZero() }

// launch starts an attempt. One that could not be started counts, too.
func (s *session) launch() error {
	s.attempts++
	a := &attempt{id: newID("att-"), number: s.attempts, generation: s.table.generation.Load(), started: time.Now()}
	s.attempt, s.again, s.due = a, false, due{}
	var err error
	a.process, err = s.table.cfg.Start(command(s.spec, s.size), keepOutput)
	if err != nil {
		a.process, a.finished, a.reason = nil, time.Now(), clip("start_failed: "+errdefs.From(err).Message)
		s.emit(procapi.SessionEvent{Type: procapi.AttemptFailed, AttemptID: a.id, Reason: a.reason})
		return err
	}
	a.pid = a.process.PID()
	if follow := s.table.cfg.Follow; follow != nil {
		s.table.work.Go(follow(s.id, a.pid, a.process.Log()))
	}
	s.touch()
	s.emit(procapi.SessionEvent{Type: procapi.AttemptStarted, AttemptID: a.id})
	s.setPhase(procapi.PhaseStarting, "")
	s.awaitReady()
	s.probe()
	f := &follower{session: s, attempt: a, process: a.process}
	if s.spec.Readiness.Type == procapi.ReadyOutput {
		f.awaited = []byte(s.spec.Readiness.Output)
	}
	s.table.work.Go(f.run)
	return nil
}

func clip(reason string) string {
	return strings.ToValidUTF8(reason[:min(len(reason), procapi.MaxSessionReason)], "")
}

// awaitReady says when the attempt that was just started is ready.
func (s *session) awaitReady() {
	r := s.spec.Readiness
	switch r.Type {
	case procapi.ReadyProcess:
		s.ready()
		return
	case procapi.ReadyDelay:
		s.due.ready = s.attempt.started.Add(time.Duration(r.DelayMS) * time.Millisecond)
	}
	if r.TimeoutMS > 0 {
		s.due.unready = s.attempt.started.Add(time.Duration(r.TimeoutMS) * time.Millisecond)
	}
}

func (s *session) ready() {
	s.due.ready, s.due.unready = time.Time{}, time.Time{}
	if s.phase == procapi.PhaseStarting {
		s.setPhase(procapi.PhaseRunning, "")
	}
}

// follower moves an attempt's output into the session's log, until the attempt has
// ended with all that it started.
type follower struct {
	session *session
	attempt *attempt
	process Process
	awaited []byte               // output that makes the attempt ready; nil: none, or it has come
	tails   [proc.PTY + 1][]byte // ends of the output so far in which it may begin, by source
}

func (f *follower) run() {
	f.copy()
	<-f.process.Done()
	f.process.Close()
	// The owner is there until it has heard of this.
	f.session.calls <- func() { f.session.ended(f.attempt) }
}

func (f *follower) copy() {
	r := f.process.Log().Attach(0)
	defer r.Close()
	for {
		c, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil: // nothing yet
			<-r.Ready()
		default:
			f.output(c)
		}
	}
}

var streams = map[proc.Source]string{proc.Stdout: "stdout", proc.Stderr: "stderr", proc.PTY: "pty"}

func (f *follower) output(c proc.Chunk) {
	ev := procapi.SessionEvent{Type: procapi.SessionOutput, AttemptID: f.attempt.id}
	if c.Lost > 0 {
		ev.Type, ev.Reason = procapi.SessionLost, fmt.Sprintf("%d bytes", c.Lost)
	} else {
		ev.Stream, ev.Data = streams[c.Source], bytes.Clone(c.Data)
	}
	f.session.touch()
	f.session.emit(ev)
	if f.awaited != nil && f.found(c) {
		f.awaited = nil
		f.session.calls <- func() {
			if f.session.attempt == f.attempt {
				f.session.ready()
			}
		}
	}
}

// found tells whether one stream's output so far has what is awaited.
func (f *follower) found(c proc.Chunk) bool {
	if c.Lost > 0 {
		clear(f.tails[:])
		return false
	}
	seen := append(f.tails[c.Source], c.Data...)
	f.tails[c.Source] = bytes.Clone(seen[max(0, len(seen)-len(f.awaited)+1):])
	return bytes.Contains(seen, f.awaited)
}

// inputs knows an attempt's newest inputs by id.
type inputs struct {
	known map[string]*receipt
	order []string // ids, oldest first
}

// receipt is an input that is in the attempt's queue.
type receipt struct {
	digest [sha256.Size]byte
	eof    bool // it is still to be told that no more follows
}

func (in *inputs) add(id string, r *receipt) {
	if in.known == nil {
		in.known = map[string]*receipt{}
	}
	if len(in.order) == maxInputIDs {
		delete(in.known, in.order[0])
		in.order = in.order[1:]
	}
	in.known[id] = r
	in.order = append(in.order, id)
}
