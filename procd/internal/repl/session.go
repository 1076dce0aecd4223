package repl

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	// quietTime is the contract's: a prompt that ends the output for this long is
	// one that waits, where prompts can't be counted.
	quietTime = 50 * time.Millisecond

	// doubtTime is the same where they are counted, but a line that was typed ahead
	// may have been read by the program and not by the REPL.
	doubtTime = time.Second

	// takeTime is how soon a program that waits for input has taken a line, and
	// settledTime how long it has been waiting if it has answered nothing meanwhile.
	takeTime    = 2 * time.Millisecond
	settledTime = 20 * time.Millisecond

	// lateTime is how late a prompt may be seen on a busy machine.
	lateTime = 250 * time.Millisecond

	// maxStartup is how long input is held back from a REPL that shows no prompt.
	maxStartup = 10 * time.Second

	// maxWaiting bounds the execs that queue up behind the one that runs.
	maxWaiting = 64
)

// Errors of a session.
var (
	ErrExited = errors.New("REPL has ended")
	ErrBusy   = errors.New("too many execs wait for this REPL")
)

// Process is the running interpreter of a session.
type Process interface {
	// Write queues bytes for its terminal, all of them or none, and never blocks.
	Write(data []byte) error
	// Unread is how much of the input nobody has read yet.
	Unread() (int, error)
	// Done is closed when it has ended and all its output was observed.
	Done() <-chan struct{}
}

// Session runs code in one interpreter. Its methods are safe for concurrent use.
type Session struct {
	def  Definition
	proc Process
	slot chan struct{} // holds a token while an exec runs

	mu      sync.Mutex
	out     tracker
	due     uint64    // prompts that were shown once everything submitted is answered
	exact   bool      // due can be trusted
	doubt   bool      // but for a line that may not be answered
	last    time.Time // of output, or of input
	settles uint64    // times that the REPL was found waiting by the contract's rule
	up      bool      // the definition's ReadyToken was seen, if it has one
	ready   bool
	waiting int // execs in the queue
	waiters []*waiter
}

// NewSession returns a session for a process that is about to start. Its output
// must go to [Session.Observe] from its first byte on.
func NewSession(def Definition) *Session {
	return &Session{
		def: def, slot: make(chan struct{}, 1), exact: def.Exact, due: 1, up: def.ReadyToken == "",
		out: tracker{prompt: def.Prompt, continuation: def.Continuation},
	}
}

// Start makes the session usable, once its process runs. It is called before any
// other method but Observe.
func (s *Session) Start(p Process) error {
	s.proc = p
	if s.def.StartupDelay > 0 {
		time.AfterFunc(s.def.StartupDelay, s.startupOver)
	}
	if s.def.Setup != "" {
		return p.Write([]byte(s.def.Setup))
	}
	return nil
}

func (s *Session) startupOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out.prompt == "" {
		s.out.learn()
	}
	s.setReadyLocked()
}

func (s *Session) setReadyLocked() {
	s.ready = true
	s.due = s.out.prompts
	s.wakeLocked()
}

// Observe takes output of the process, in order. It never blocks.
func (s *Session) Observe(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up = s.up || s.out.count(data, s.def.ReadyToken) > 0
	s.out.observe(data)
	s.last = time.Now()
	if s.ready {
		s.due = max(s.due, s.out.prompts) // one that nobody asked for, after an interrupt
		s.doubt = s.doubt && s.due > s.out.prompts
	} else if s.up && s.def.StartupDelay == 0 && s.out.atPrompt() && !s.out.atContinuation() {
		s.setReadyLocked()
	}
	s.wakeLocked()
}

// wakeLocked wakes who waits for what is now. Who waits for something else sleeps on:
// most output, and every echo, is not what a turn waits for.
func (s *Session) wakeLocked() {
	for _, w := range s.waiters {
		if w.cond == nil || !w.cond(s) {
			continue
		}
		select {
		case w.wake <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// waiter is woken by output.
type waiter struct {
	s    *Session
	wake chan struct{}
	cond func(*Session) bool // what it waits for; nil while it doesn't; guarded by s.mu
}

func (s *Session) newWaiter() *waiter {
	w := &waiter{s: s, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiters = append(s.waiters, w)
	return w
}

func (w *waiter) close() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.waiters = slices.DeleteFunc(w.s.waiters, func(o *waiter) bool { return o == w })
}

// errPatience tells that a wait took as long as it may.
var errPatience = errors.New("waited long enough")

// until waits until cond, which is called with s.mu held, is true. patience, if
// positive, bounds the wait.
func (w *waiter) until(ctx context.Context, patience time.Duration, cond func(*Session) bool) error {
	if w.expect(cond) {
		return nil
	}
	defer w.expect(nil)
	var timeout <-chan time.Time
	if patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		timeout = timer.C
	}
	for {
		select {
		case <-w.wake:
			if w.s.check(cond) {
				return nil
			}
		case <-timeout:
			return errPatience
		case <-ctx.Done():
			return ctx.Err()
		case <-w.s.proc.Done():
			if w.s.check(cond) {
				return nil
			}
			return ErrExited
		}
	}
}

// expect tells whether cond is true already; if not, output that makes it so wakes w.
func (w *waiter) expect(cond func(*Session) bool) (already bool) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.cond = nil
	if cond != nil && cond(w.s) {
		return true
	}
	w.cond = cond
	return false
}

func (s *Session) check(cond func(*Session) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cond(s)
}

// WaitReady returns when the REPL takes input for the first time.
func (s *Session) WaitReady(ctx context.Context) error {
	w := s.newWaiter()
	defer w.close()
	return w.until(ctx, 0, isReady)
}

// Turn is some input, and what tells that the REPL has dealt with it.
type Turn struct {
	from    uint64 // output before it
	target  uint64 // prompts after it, if counted
	exact   bool
	settles uint64
}

// Input writes data as it is, at once when the REPL is ready, and returns what
// [Session.Await] waits for.
func (s *Session) Input(ctx context.Context, data []byte) (Turn, error) {
	w := s.newWaiter()
	defer w.close()
	if err := w.until(ctx, maxStartup, isReady); err != nil && !errors.Is(err, errPatience) {
		return Turn{}, err
	}
	lines := uint64(bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")))
	t, before, err := s.submit(data, lines)
	if err != nil || !t.exact || lines == 0 || t.target-lines <= before.prompts {
		return t, err
	}
	// The REPL was busy: what runs in it may be what reads this.
	taken, err := w.taken(ctx, before)
	if taken {
		s.forgive(lines)
		t.target -= lines
	} else {
		s.setDoubt()
	}
	return t, err
}

// forgive takes lines off the account that something else than the REPL has read.
func (s *Session) forgive(lines uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due -= min(lines, s.due-s.out.prompts)
}

// setDoubt notes that a line may not be answered.
func (s *Session) setDoubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubt = s.due > s.out.prompts
}

func isReady(s *Session) bool { return s.ready }

// moment is what a session knew when input was written.
type moment struct {
	prompts uint64
	settled bool // nothing had happened for a while
}

// submit writes data and accounts for its lines.
func (s *Session) submit(data []byte, lines uint64) (Turn, moment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.proc.Write(data); err != nil {
		return Turn{}, moment{}, err
	}
	before := moment{s.out.prompts, time.Since(s.last) >= settledTime}
	s.exact = s.exact && countable(data, s.def.Prompt)
	s.due += lines
	s.last = time.Now()
	return Turn{from: s.out.seen, target: max(s.due, s.out.prompts+1), exact: s.exact, settles: s.settles}, before, nil
}

// taken tells whether a program that runs in the REPL has read what was just
// written: it is gone, and no prompt has asked for it. If nothing had happened for
// a while, a prompt in the same moment answers what ran before; else it may be on
// the way still.
func (w *waiter) taken(ctx context.Context, before moment) (bool, error) {
	asked, err := w.pause(ctx, takeTime, before.prompts)
	if err != nil || asked && !before.settled {
		return false, err
	}
	if unread, err := w.s.proc.Unread(); err != nil || unread > 0 {
		return false, nil
	}
	if !before.settled {
		asked, err = w.pause(ctx, lateTime, before.prompts)
	}
	return before.settled || !asked, err
}

// pause lets time pass, but not beyond a prompt: it tells whether there are more
// than n.
func (w *waiter) pause(ctx context.Context, d time.Duration, n uint64) (asked bool, err error) {
	err = w.until(ctx, d, func(s *Session) bool { return s.out.prompts != n })
	if errors.Is(err, errPatience) {
		return false, nil
	}
	return err == nil, err
}

// countable tells whether prompts can be counted while data is processed: it must
// not be echoed as a prompt nor contain keys that make a prompt come or go.
func countable(data []byte, prompt string) bool {
	if prompt != "" && bytes.Contains(data, []byte(prompt)) {
		return false
	}
	for _, b := range data {
		if b < ' ' && b != '\n' && b != '\t' && b != '\r' {
			return false
		}
	}
	return true
}

// Await returns when the REPL has dealt with a turn and waits again.
func (s *Session) Await(ctx context.Context, t Turn) error {
	w := s.newWaiter()
	defer w.close()
	return w.await(ctx, t)
}

func (w *waiter) await(ctx context.Context, t Turn) error {
	for {
		var seen uint64
		quiet, counted := quietTime, false
		err := w.until(ctx, 0, func(s *Session) bool {
			seen = s.out.seen
			if !t.exact || !s.exact {
				return s.out.atPrompt() && seen > t.from
			}
			quiet = doubtTime
			counted = s.out.prompts >= t.target || s.settles != t.settles
			return counted || s.doubt && s.out.atPrompt()
		})
		if err != nil || counted {
			return err
		}
		// The contract's rule: nothing may follow for a while.
		err = w.until(ctx, quiet, func(s *Session) bool { return s.out.seen != seen })
		if errors.Is(err, errPatience) {
			w.s.settle(seen)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// settle trusts the count again: the REPL waits and owes nothing.
func (s *Session) settle(seen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out.seen == seen {
		s.due, s.exact, s.doubt = s.out.prompts, s.def.Exact, false
		s.settles++
		s.wakeLocked()
	}
}
