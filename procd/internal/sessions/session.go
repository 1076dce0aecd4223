package sessions

import (
	"crypto/sha256"
	"sync/atomic"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// session is one session. What follows active is its owner's alone, which is the
// goroutine of run, or whoever has just made it.
type session struct {
	table   *Table
	id      string
	number  uint64 // in order of creation
	key     string // that it was made with; "" if with none
	origin  [sha256.Size]byte
	created time.Time
	log     eventLog
	calls   chan func()   // for the owner to run
	gone    chan struct{} // closed at the owner's end
	active  atomic.Int64  // nanoseconds from created to the last activity

	spec     procapi.SessionSpec
	version  int64
	phase    string
	updated  time.Time
	size     procapi.PTYSize // of the terminal, of this attempt and the next
	attempt  *attempt        // the latest; nil before the first
	attempts int64
	deleted  bool

	asked    time.Time     // when it was told to run
	restarts int64         // attempts that nobody asked for
	recent   []time.Time   // of these, since asked, if they are bounded
	backoff  time.Duration // before the last of them
	ending   string        // why the live attempt is about to end; "" if it is not
	again    bool          // another attempt follows the live one
	settled  chan struct{} // closed when it is clear what follows the live one; nil while nobody waits
	due      due

	probed      procapi.SessionProbed // what the live attempt's probes say
	stopProbing func()                // ends them; nil while there are none
}

// due is when something is to be done; zero: not at all.
type due struct {
	ready   time.Time // the attempt counts as ready
	unready time.Time // the attempt should have been ready
	kill    time.Time // its grace is over
	retry   time.Time // the next one starts
}

func newSession(t *Table, id string, spec procapi.SessionSpec) *session {
	s := &session{
		table: t, id: id, created: time.Now(), calls: make(chan func()), gone: make(chan struct{}),
		spec: spec, version: 1, phase: procapi.PhasePending,
	}
	s.size = sizeOf(spec)
	s.log.keep(spec.Retention)
	s.touch()
	s.emit(procapi.SessionEvent{Type: procapi.SessionCreated})
	return s
}

func sizeOf(spec procapi.SessionSpec) procapi.PTYSize {
	if spec.IO.Terminal == nil {
		return procapi.PTYSize{}
	}
	return procapi.PTYSize{Rows: spec.IO.Terminal.Rows, Cols: spec.IO.Terminal.Cols}
}

// begin does what the spec says first.
func (s *session) begin() error {
	if s.spec.Lifecycle.DesiredState == procapi.DesiredStopped {
		s.setPhase(procapi.PhaseStopped, "")
		return nil
	}
	s.asked = time.Now()
	return s.launch()
}

// run is the owner. It ends when the session was deleted and its process is gone.
func (s *session) run() {
	defer close(s.gone)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !s.deleted || s.live() {
		var wake <-chan time.Time
		if at := s.nextDue(); !at.IsZero() {
			timer.Reset(time.Until(at))
			wake = timer.C
		}
		select {
		case call := <-s.calls:
			call()
		case <-wake:
			s.tick(time.Now())
		}
	}
	s.emit(procapi.SessionEvent{Type: procapi.SessionDeleted})
	s.log.close()
}

// do has the owner run a function and waits for that.
func (s *session) do(f func()) error {
	done := make(chan struct{})
	select {
	case s.calls <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-s.gone:
		return notFound(s.id)
	}
}

// touch notes activity.
func (s *session) touch() { s.active.Store(int64(time.Since(s.created))) }

func (s *session) lastActive() time.Time { return s.created.Add(time.Duration(s.active.Load())) }

// emit adds an event about the session.
func (s *session) emit(ev procapi.SessionEvent) {
	ev.SessionID, ev.RuntimeGeneration = s.id, s.table.generation.Load()
	s.log.add(ev)
}

// setPhase is the only way to a new phase.
func (s *session) setPhase(phase, reason string) {
	s.phase, s.updated = phase, time.Now()
	ev := procapi.SessionEvent{Type: "session." + phase, Reason: reason}
	if s.attempt != nil {
		ev.AttemptID = s.attempt.id
	}
	s.emit(ev)
}

// describe is the session as it is now.
func (s *session) describe() (d procapi.Session, err error) {
	err = s.do(func() { d = s.view() })
	return d, err
}

func (s *session) view() procapi.Session {
	d := procapi.Session{
		ID: s.id, Spec: s.spec, SpecVersion: s.version, Phase: s.phase, RuntimeGeneration: s.table.generation.Load(),
		RestartCount: s.restarts, Cursor: s.log.cursor(), CreatedAt: s.created.UTC(), UpdatedAt: s.updated.UTC(), LastActivityAt: s.lastActive().UTC(),
	}
	if s.attempt != nil {
		a := s.attempt.view()
		d.Attempt = &a
	}
	if s.spec.Probes != (procapi.SessionProbes{}) {
		probed := s.probed
		d.Probed = &probed
	}
	if s.phase == procapi.PhaseRunning && s.attempt.process.State() == proc.StatePaused {
		d.Phase = procapi.PhasePaused
	}
	return d
}
