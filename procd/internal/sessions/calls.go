package sessions

import (
	"context"
	"crypto/sha256"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// ask has the session's owner run f, which says what is wrong.
func (t *Table) ask(id string, f func(*session) error) (*session, error) {
	s, err := t.get(id)
	if err != nil {
		return nil, err
	}
	var refused error
	if err := s.do(func() { refused = f(s) }); err != nil {
		return nil, err
	}
	return s, refused
}

// Update replaces a session's spec. What runs is replaced too, if the new spec
// would have it run differently.
func (t *Table) Update(id string, spec procapi.SessionSpec) (d procapi.Session, err error) {
	spec, err = normalize(spec)
	if err != nil {
		return d, err
	}
	_, err = t.ask(id, func(s *session) error {
		s.update(spec)
		d = s.view()
		return nil
	})
	return d, err
}

func (s *session) update(spec procapi.SessionSpec) {
	old := s.spec
	s.spec, s.updated = spec, time.Now()
	s.version++
	if sizeOf(old) != sizeOf(spec) {
		s.size = sizeOf(spec)
	}
	s.log.keep(spec.Retention)
	s.emit(procapi.SessionEvent{Type: procapi.SessionUpdated})
	switch {
	case spec.Lifecycle.DesiredState == procapi.DesiredStopped:
		s.halt(reasonStopped)
	case old.Lifecycle.DesiredState == procapi.DesiredStopped:
		s.resume()
	case !sameProcess(old, spec):
		s.ask()
		s.replace(reasonUpdated)
	case spec.Lifecycle.Restart.Policy == procapi.RestartNever && !s.due.retry.IsZero():
		s.due.retry = time.Time{}
		s.setPhase(procapi.PhaseFailed, reasonUpdated)
	}
}

// SetDesiredState makes a session run or stop. The answer doesn't wait for a
// process to end.
func (t *Table) SetDesiredState(id, state string) (d procapi.Session, err error) {
	if state != procapi.DesiredRunning && state != procapi.DesiredStopped {
		return d, invalid("state: want %s or %s", procapi.DesiredRunning, procapi.DesiredStopped)
	}
	_, err = t.ask(id, func(s *session) error {
		if state == procapi.DesiredStopped {
			s.halt(reasonStopped)
		} else {
			s.resume()
		}
		s.updated = time.Now()
		d = s.view()
		return nil
	})
	return d, err
}

// Attempt starts another attempt. With replace, a live one is killed for it, and
// the answer comes when it is gone.
func (t *Table) Attempt(ctx context.Context, id string, replace bool) (procapi.Session, error) {
	var settled <-chan struct{}
	s, err := t.ask(id, func(s *session) (err error) {
		settled, err = s.another(replace)
		return err
	})
	if err != nil {
		return procapi.Session{}, err
	}
	select {
	case <-settled:
	case <-s.gone:
	case <-ctx.Done():
	}
	return s.describe()
}

// another returns a channel that is closed when it is clear what became of it.
func (s *session) another(replace bool) (settled <-chan struct{}, err error) {
	if s.live() && !replace {
		return nil, conflict(procapi.CodeAttemptRunning, "attempt %s of session %s has not ended", s.attempt.id, s.id)
	}
	s.ask()
	done := make(chan struct{})
	if !s.live() {
		s.start()
		close(done)
		return done, nil
	}
	if s.settled == nil {
		s.settled = done
	}
	s.again = true
	s.kill(reasonReplaced)
	return s.settled, nil
}

// current is the live attempt, which must be the expected one if one is named.
func (s *session) current(expected string) (*attempt, error) {
	if expected != "" && (s.attempt == nil || s.attempt.id != expected) {
		return nil, conflict(procapi.CodeAttemptMismatch, "attempt %.64q is not the latest of session %s", expected, s.id)
	}
	if !s.live() {
		return nil, notRunning(s.id)
	}
	return s.attempt, nil
}

// Input gives the live attempt input, once for each id.
func (t *Table) Input(id string, in procapi.SessionInput) (out procapi.SessionInputReceipt, err error) {
	switch {
	case in.InputID == "" || len(in.InputID) > procapi.MaxInputID:
		return out, invalid("input_id: want 1 to %d bytes", procapi.MaxInputID)
	case len(in.Data) > procapi.MaxInputBytes:
		return out, invalid("data_base64: more than %d bytes", procapi.MaxInputBytes)
	case len(in.Data) == 0 && !in.EOF:
		return out, invalid("data_base64 or eof is required")
	}
	_, err = t.ask(id, func(s *session) (err error) {
		out, err = s.input(in)
		return failed(id, "write_failed", err)
	})
	return out, err
}

func (s *session) input(in procapi.SessionInput) (out procapi.SessionInputReceipt, err error) {
	sum := inputDigest(in)
	a, err := s.current(in.ExpectedAttempt)
	if s.attempt != nil && (in.ExpectedAttempt == "" || in.ExpectedAttempt == s.attempt.id) {
		if known := s.attempt.inputs.known[in.InputID]; known != nil {
			if known.digest != sum {
				return out, conflict(procapi.CodeInputConflict, "another input came as %.64q", in.InputID)
			}
			out = procapi.SessionInputReceipt{InputID: in.InputID, AttemptID: s.attempt.id, Accepted: true, Duplicate: true}
			return out, s.attempt.finish(known)
		}
	}
	if err != nil {
		return out, err
	}
	if err := a.process.Write(in.Data); err != nil {
		return out, err
	}
	s.touch()
	r := &receipt{digest: sum, eof: in.EOF}
	a.inputs.add(in.InputID, r)
	return procapi.SessionInputReceipt{InputID: in.InputID, AttemptID: a.id, Accepted: true}, a.finish(r)
}

func inputDigest(in procapi.SessionInput) [sha256.Size]byte {
	end := byte(0)
	if in.EOF {
		end = 1
	}
	return sha256.Sum256(append(in.Data[:len(in.Data):len(in.Data)], end))
}

// finish tells the process that no more input follows, if that is due. It is tried
// again when the input is repeated.
func (a *attempt) finish(r *receipt) error {
	if !r.eof || a.process == nil {
		return nil
	}
	err := a.process.CloseInput()
	r.eof = err != nil
	return err
}

// Signal signals the live attempt.
func (t *Table) Signal(id string, in procapi.SessionSignal) error {
	sig, err := proc.ParseSignal(in.Signal)
	if err != nil {
		return invalid("unknown signal %.32q", in.Signal)
	}
	_, err = t.ask(id, func(s *session) error {
		a, err := s.current(in.ExpectedAttempt)
		if err != nil {
			return err
		}
		s.touch()
		return failed(id, "signal_failed", a.process.Signal(sig))
	})
	return err
}

// Resize sets the size of the live attempt's terminal, and of those that follow.
func (t *Table) Resize(id string, in procapi.SessionResize) error {
	if in.Rows == 0 || in.Cols == 0 {
		return invalid("rows and cols must be above 0")
	}
	_, err := t.ask(id, func(s *session) error {
		a, err := s.current(in.ExpectedAttempt)
		if err != nil {
			return err
		}
		size := procapi.PTYSize{Rows: in.Rows, Cols: in.Cols}
		if err := a.process.Resize(size); err != nil {
			return failed(id, "resize_failed", err)
		}
		s.touch()
		s.size = size
		return nil
	})
	return err
}

// Events returns the oldest events behind a number, at most limit of them.
func (t *Table) Events(id string, after uint64, limit int) (procapi.SessionEventPage, error) {
	s, err := t.get(id)
	if err != nil {
		return procapi.SessionEventPage{}, err
	}
	return s.log.after(after, limit), nil
}

// Reader reads a session's events.
type Reader struct {
	log   *eventLog
	after uint64
}

// Follow returns a reader of the events behind a number.
func (t *Table) Follow(id string, after uint64) (*Reader, error) {
	s, err := t.get(id)
	if err != nil {
		return nil, err
	}
	return &Reader{log: &s.log, after: after}, nil
}

// Run sends the events, and those that happen, until ctx ends or send fails. It
// returns nil behind the last event of a session that was deleted. What a reader
// is too slow for is gone, which the events' numbers show.
func (r *Reader) Run(ctx context.Context, send func([]procapi.SessionEvent) error) error {
	for {
		page := r.log.after(r.after, procapi.MaxSessionEvents)
		if n := len(page.Events); n > 0 {
			r.after = page.Events[n-1].Seq
			if err := send(page.Events); err != nil {
				return err
			}
			continue
		}
		r.after = max(r.after, page.Cursor.Latest)
		changed := r.log.wait(r.after)
		if changed == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
