package repl

import (
	"bytes"
	"context"
	"errors"
	"time"
)

const (
	// offerDelay is how long a line may go unanswered before the next one is
	// offered to whoever reads the terminal then. Long, so that a line which merely
	// takes its time rarely ends in the very moment of the offer.
	offerDelay = 500 * time.Millisecond

	// recheck is the pause between looks at a line that nobody has taken.
	recheck = 50 * time.Millisecond
)

// Span is the stretch of the process's output that an exec gave.
type Span struct{ From, To uint64 }

// Exec runs code and waits until the REPL has dealt with all of it. Execs of a
// session run one after the other. The span is valid on errors, too.
func (s *Session) Exec(ctx context.Context, code string) (Span, error) {
	if err := s.acquire(ctx); err != nil {
		return Span{}, err
	}
	defer func() { <-s.slot }()
	w := s.newWaiter()
	defer w.close()
	if err := w.until(ctx, 0, isReady); err != nil {
		return Span{}, err
	}
	data := terminated(code)
	from, counted := s.begin(data)
	var err error
	if counted {
		err = (&feeder{waiter: w, lines: bytes.SplitAfter(data, []byte("\n"))}).run(ctx)
	} else {
		err = s.writeAll(ctx, w, data)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return Span{From: from, To: s.out.seen}, err
}

// terminated is code as it is typed: its last line ended, and CRLF, which a
// terminal takes for two line ends, made one.
func terminated(code string) []byte {
	data := bytes.ReplaceAll([]byte(code), []byte("\r\n"), []byte("\n"))
	if n := len(data); n > 0 && data[n-1] != '\n' && data[n-1] != '\r' {
		data = append(data, '\n')
	}
	return data
}

func (s *Session) acquire(ctx context.Context) error {
	s.mu.Lock()
	if s.waiting >= maxWaiting {
		s.mu.Unlock()
		return ErrBusy
	}
	s.waiting++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting--
	}()
	select {
	case s.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.proc.Done():
		return ErrExited
	}
}

// begin decides how to run data. A carriage return alone would be a line that is
// not counted as one.
func (s *Session) begin(data []byte) (from uint64, counted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counted = s.exact && countable(data, s.def.Prompt) && !bytes.ContainsRune(data, '\r') && len(data) > 0
	return s.out.seen, counted
}

func (s *Session) writeAll(ctx context.Context, w *waiter, data []byte) error {
	turn, err := s.Input(ctx, data)
	if err != nil {
		return err
	}
	turn.exact = false
	return w.await(ctx, turn)
}

// Trim takes the prompts off both ends of an exec's output.
func (s *Session) Trim(out []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.trim(out)
}

// feeder writes lines as they are asked for.
type feeder struct {
	*waiter
	lines [][]byte // to be written; the last may be empty
	extra bool     // an unfinished statement was closed
}

func (f *feeder) run(ctx context.Context) error {
	for len(f.lines) > 0 && len(f.lines[0]) > 0 {
		err := f.until(ctx, offerDelay, isAsking)
		switch {
		case errors.Is(err, errPatience):
			err = f.offer(ctx)
		case err == nil:
			err = f.feed()
		}
		if err != nil {
			return err
		}
	}
	return f.finish(ctx)
}

func isAsking(s *Session) bool { return s.out.prompts >= s.due || !s.exact }

// feed writes the next line.
func (f *feeder) feed() error {
	line := f.lines[0]
	f.lines = f.lines[1:]
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if err := f.s.proc.Write(line); err != nil {
		return err
	}
	f.s.due++
	return nil
}

// offer writes the next line although the REPL has not asked for it: what runs in
// it may wait for input. If that takes the line, no prompt will answer it.
func (f *feeder) offer(ctx context.Context) error {
	before := moment{settled: true}
	f.s.check(func(s *Session) bool { before.prompts = s.out.prompts; return true })
	if err := f.feed(); err != nil {
		return err
	}
	taken, err := f.taken(ctx, before)
	if err != nil || taken {
		return f.account(taken, err)
	}
	asked, err := f.pause(ctx, settledTime, before.prompts)
	if err == nil && asked { // so soon that the line may have been taken after all
		f.s.setDoubt()
	}
	for err == nil && !asked && !taken {
		taken, asked, err = f.takenLate(ctx, before)
	}
	return f.account(taken, err)
}

// account takes a line that a program has read off the account.
func (f *feeder) account(taken bool, err error) error {
	if taken {
		f.s.forgive(1)
	}
	return err
}

// takenLate looks again at a line that nobody took at first. When it is gone, the
// REPL may have read it, and its prompt for it be on the way.
func (f *feeder) takenLate(ctx context.Context, before moment) (taken, asked bool, err error) {
	asked, err = f.pause(ctx, recheck, before.prompts)
	if err != nil || asked {
		return false, asked, err
	}
	if unread, err := f.s.proc.Unread(); err != nil || unread > 0 {
		return false, false, nil
	}
	asked, err = f.pause(ctx, lateTime, before.prompts)
	return !asked, asked, err
}

// finish waits for the answer to the last line. A statement that lacks its end is
// closed where an empty line does that; elsewhere the REPL waits for the rest in
// the next exec, and the output's end shows it.
func (f *feeder) finish(ctx context.Context) error {
	var t Turn
	f.s.check(func(s *Session) bool {
		t = Turn{target: s.due, exact: true, settles: s.settles}
		return true
	})
	if err := f.await(ctx, t); err != nil {
		return err
	}
	if f.extra || !f.s.def.CloseBlock || !f.s.check(func(s *Session) bool { return s.exact && s.out.atContinuation() }) {
		return nil
	}
	f.extra = true
	f.lines = [][]byte{{'\n'}}
	return f.run(ctx)
}
