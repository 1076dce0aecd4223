package sessions

import (
	"slices"
	"syscall"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// Reasons for an attempt's end, and for a phase.
const (
	reasonExited    = "exited"  // by itself
	reasonKilled    = "killed"  // by a signal of somebody's
	reasonStopped   = "stopped" // because that is the desired state
	reasonUpdated   = "updated"
	reasonReplaced  = "replaced"
	reasonDeleted   = "deleted"
	reasonIdle      = "idle_timeout"
	reasonLifetime  = "max_lifetime"
	reasonUnready   = "readiness_timeout"
	reasonExhausted = "too_many_restarts"
	reasonStartup   = procapi.EndedByStartup
	reasonLiveness  = procapi.EndedByLiveness
)

// failing are reasons that make an attempt's end a failure, whatever its exit code.
var failing = []string{reasonUnready, reasonStartup, reasonLiveness}

// nextDue is the earliest deadline; zero when there is none.
func (s *session) nextDue() time.Time {
	var first time.Time
	for _, at := range []time.Time{s.due.ready, s.due.unready, s.due.kill, s.due.retry, s.idleEnd(), s.lifetimeEnd()} {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// wanted tells whether the session's time is running: it has a process, or will.
func (s *session) wanted() bool {
	return (s.live() && s.ending == "") || !s.due.retry.IsZero()
}

func (s *session) idleEnd() time.Time {
	if s.spec.Lifecycle.IdleSeconds == 0 || !s.live() || s.ending != "" {
		return time.Time{}
	}
	return s.lastActive().Add(time.Duration(s.spec.Lifecycle.IdleSeconds) * time.Second)
}

func (s *session) lifetimeEnd() time.Time {
	if s.spec.Lifecycle.LifetimeSeconds == 0 || !s.wanted() {
		return time.Time{}
	}
	return s.asked.Add(time.Duration(s.spec.Lifecycle.LifetimeSeconds) * time.Second)
}

func reached(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// tick does what is due.
func (s *session) tick(now time.Time) {
	if reached(s.due.ready, now) {
		s.ready()
	}
	if reached(s.due.unready, now) {
		s.end(reasonUnready)
	}
	if reached(s.due.kill, now) {
		s.due.kill = time.Time{}
		_ = s.attempt.process.Kill()
	}
	if reached(s.lifetimeEnd(), now) {
		s.halt(reasonLifetime)
	}
	if reached(s.idleEnd(), now) {
		s.halt(reasonIdle)
	}
	if reached(s.due.retry, now) {
		s.retry(now)
	}
}

// ask notes that the session was told to run.
func (s *session) ask() {
	s.spec.Lifecycle.DesiredState = procapi.DesiredRunning
	s.asked, s.recent, s.backoff = time.Now(), nil, 0
}

// resume makes the session run.
func (s *session) resume() {
	s.ask()
	switch {
	case !s.live():
		s.start()
	case s.ending != "":
		s.again = true
	}
}

// halt makes the session stop, and stay so.
func (s *session) halt(reason string) {
	s.spec.Lifecycle.DesiredState = procapi.DesiredStopped
	s.again, s.due.retry = false, time.Time{}
	switch {
	case s.live():
		s.end(reason)
	case s.phase != procapi.PhaseStopped:
		s.setPhase(procapi.PhaseStopped, reason)
	}
}

// replace has the next attempt follow as soon as the live one, if there is one, has
// ended in peace.
func (s *session) replace(reason string) {
	if !s.live() {
		s.start()
		return
	}
	s.again = true
	s.end(reason)
}

// end asks the live attempt to end; after a grace it is killed.
func (s *session) end(reason string) {
	s.due.ready, s.due.unready = time.Time{}, time.Time{}
	if s.ending != "" {
		return
	}
	s.unprobe()
	s.ending = reason
	_ = s.attempt.process.Signal(syscall.SIGTERM) // it may have ended already
	_ = s.attempt.process.Signal(syscall.SIGCONT) // a stopped one could not obey
	s.due.kill = time.Now().Add(time.Duration(*s.spec.Lifecycle.GraceSeconds) * time.Second)
	s.setPhase(procapi.PhaseStopping, reason)
}

// kill ends the live attempt at once.
func (s *session) kill(reason string) {
	s.due = due{}
	s.unprobe()
	if s.ending == "" {
		s.ending = reason
		s.setPhase(procapi.PhaseStopping, reason)
	}
	_ = s.attempt.process.Kill()
}

// remove makes the session end for good.
func (s *session) remove() {
	s.deleted, s.again, s.due = true, false, due{}
	if s.live() {
		s.kill(reasonDeleted)
	}
}

// start starts an attempt; what follows one that can't be started is the policy's
// matter.
func (s *session) start() {
	if err := s.launch(); err != nil {
		s.settle(s.attempt.reason, true)
	}
}

// ended is called when an attempt is over and all its output is in the log.
func (s *session) ended(a *attempt) {
	s.unprobe()
	exit := a.process.Exit()
	a.exit, a.finished, a.reason = &exit, time.Now(), s.ending
	if a.reason == "" {
		a.reason = reasonExited
		if exit.State == proc.StateKilled {
			a.reason = reasonKilled
		}
	}
	a.process, s.ending, s.due = nil, "", due{}
	s.emit(procapi.SessionEvent{Type: procapi.AttemptExited, AttemptID: a.id, ExitCode: &exit.ExitCode, Reason: a.reason})
	if a.finished.Sub(a.started) >= time.Duration(s.spec.Lifecycle.Restart.MaxBackoffMS)*time.Millisecond {
		s.backoff = 0 // it was well for a while
	}
	s.settle(a.reason, exit.ExitCode != 0 || slices.Contains(failing, a.reason))
}

// settle decides what follows an attempt that is over.
func (s *session) settle(reason string, failed bool) {
	policy := s.spec.Lifecycle.Restart.Policy
	switch {
	case s.deleted:
	case s.again:
		s.start()
	case s.spec.Lifecycle.DesiredState == procapi.DesiredStopped:
		s.setPhase(procapi.PhaseStopped, reason)
	case policy == procapi.RestartAlways, policy == procapi.RestartOnFailure && failed:
		s.retryLater(reason)
	case failed:
		s.setPhase(procapi.PhaseFailed, reason)
	default:
		s.setPhase(procapi.PhaseExited, reason)
	}
	if s.settled != nil {
		close(s.settled)
		s.settled = nil
	}
}

// retryLater has another attempt follow, unless there were too many already.
func (s *session) retryLater(reason string) {
	r, now := s.spec.Lifecycle.Restart, time.Now()
	if r.WindowSeconds > 0 {
		window := time.Duration(r.WindowSeconds) * time.Second
		s.recent = slices.DeleteFunc(s.recent, func(at time.Time) bool { return now.Sub(at) >= window })
	}
	if r.MaxRestarts > 0 && int64(len(s.recent)) >= r.MaxRestarts {
		s.setPhase(procapi.PhaseFailed, reasonExhausted)
		return
	}
	initial, most := time.Duration(r.InitialBackoffMS)*time.Millisecond, time.Duration(r.MaxBackoffMS)*time.Millisecond
	s.backoff = min(max(2*s.backoff, initial), most)
	s.due.retry = now.Add(s.backoff)
	s.setPhase(procapi.PhaseBackoff, reason)
}

// retry starts the attempt that was put off.
func (s *session) retry(now time.Time) {
	s.restarts++
	if s.spec.Lifecycle.Restart.MaxRestarts > 0 {
		s.recent = append(s.recent, now)
	}
	s.start()
}
