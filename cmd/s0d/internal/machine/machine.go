package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"s0.run/cmd/s0d/internal/child"
	"s0.run/cmd/s0d/internal/inproc"
	"s0.run/cmd/s0d/internal/prereq"
	"s0.run/internal/daemon"
	"s0.run/registry"
)

// progress tells a person one thing that happened.
type progress func(format string, args ...any)

// A server is one run of the machine's s0.
type server struct {
	cfg     Config
	say     progress
	log     *slog.Logger
	lock    *lock
	logFile *os.File
	control *control
	node    *inproc.Link            // the node API for the API server, which is the same process
	fail    context.CancelCauseFunc // ends the run
	parts   []*part                 // in the order of their start

	mu        sync.Mutex
	status    Status
	registry  *registry.Registry // nil until it serves
	children  map[string]*child.Child
	firstUser *credentials // of the first start, until they were shown
}

type credentials struct{ email, password string }

// A part is one thing that runs beside the others.
type part struct {
	name string
	stop context.CancelFunc
	done chan struct{}
}

// Run starts everything, calls ready when it serves, and runs until ctx ends (the
// sandboxes live on) or somebody asks for a stop on the control socket. What a
// person wants to see goes to out.
func Run(ctx context.Context, cfg Config, out io.Writer, ready func()) error {
	s, err := open(cfg, out)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, s.fail = context.WithCancelCause(ctx)
	defer s.fail(nil)
	s.control = newControl(s.snapshot, func() { s.fail(errStopAsked) })

	err = s.start(ctx)
	if err == nil {
		s.setState(Ready)
		s.announce()
		ready()
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		err = s.whyEnded(ctx)
	}
	s.setState(Stopping)
	return errors.Join(err, s.shutdown(context.WithoutCancel(ctx)))
}

// errStopAsked ends a run whose end was asked for on the control socket.
var errStopAsked = errors.New("a stop was asked for")

// whyEnded is nil when somebody asked for the end.
func (s *server) whyEnded(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, errStopAsked) || errors.Is(cause, context.Canceled) { // a signal cancels
		return nil
	}
	return fmt.Errorf("%w; the log is %s", cause, s.cfg.LogFile())
}

// open takes the instance for this process and checks that it can run.
func open(cfg Config, out io.Writer) (*server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := prereq.Check(cfg.Prerequisites(true)); err != nil { // before a directory is made
		return nil, err
	}
	if err := cfg.makeDirs(); err != nil {
		return nil, err
	}
	lock, err := cfg.tryLock()
	if err != nil {
		return nil, err
	}
	// With the lock held, whoever has the addresses is not ours.
	if err := prereq.Check(cfg.Prerequisites(false)); err != nil {
		lock.release()
		return nil, err
	}
	logFile, err := child.OpenLog(cfg.LogFile())
	if err != nil {
		lock.release()
		return nil, err
	}
	log, err := daemon.NewLogger(logFile, cfg.LogLevel)
	if err != nil {
		logFile.Close()
		lock.release()
		return nil, err
	}
	s := &server{
		node: inproc.New(log),
		cfg:  cfg, log: log, lock: lock, logFile: logFile, say: printer(out), children: map[string]*child.Child{},
		status: Status{PID: os.Getpid(), Version: cfg.Version, State: Starting, StartedAt: time.Now()},
	}
	s.firstUser = s.unshown()
	return s, nil
}

func (s *server) close() {
	s.logFile.Close()
	s.lock.release()
}

func printer(out io.Writer) progress {
	var mu sync.Mutex
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(out, format+"\n", args...)
	}
}

func (s *server) snapshot() Status {
	s.mu.Lock()
	reg := s.registry
	s.mu.Unlock()
	var usage *registry.Usage
	if reg != nil {
		if u, err := reg.Usage(); err == nil { // it ends with us
			usage = &u
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.status
	now.Registry = usage
	now.Children = map[string]int{}
	for name, c := range s.children {
		now.Children[name] = c.PID()
	}
	return now
}

func (s *server) setState(state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.State = state
}

// launch runs a part beside the others. It has a context of its own, for parts
// stop one after the other; one that ends before it was asked to ends the run.
func (s *server) launch(ctx context.Context, name string, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	p := &part{name: name, stop: stop, done: make(chan struct{})}
	s.parts = append(s.parts, p)
	go func() {
		defer close(p.done)
		err := run(ctx)
		switch {
		case ctx.Err() == nil && err != nil:
			s.fail(fmt.Errorf("%s: %w", name, err))
		case ctx.Err() == nil:
			s.fail(fmt.Errorf("%s ended by itself", name))
		case err != nil && !errors.Is(err, context.Canceled):
			s.log.Error("part did not stop cleanly", "part", name, "error", err)
		}
	}()
}

// shutdown stops the parts in the reverse order of their start, after the
// sandboxes when the stop asks for that. The control socket is the first part:
// whoever asked hears everything.
func (s *server) shutdown(ctx context.Context) error {
	s.log.Info("stopping")
	stop := s.control.requested()
	if stop == nil {
		stop = &stopRequest{keep: true, tell: s.say}
	}
	var err error
	if !stop.keep {
		err = s.endSandboxes(ctx, stop.tell)
	}
	for i := len(s.parts) - 1; i > 0; i-- {
		s.stopPart(i)
	}
	if err != nil {
		stop.tell("not all sandboxes ended: %v", err)
	} else if !stop.keep {
		s.unmountVolumes()
	}
	stop.tell("s0 is down")
	close(s.control.ended)
	s.stopPart(0)
	return err
}

// part finds a part by name, -1 when there is none.
func (s *server) part(name string) int {
	return slices.IndexFunc(s.parts, func(p *part) bool { return p.name == name })
}

// stopPart stops a part and waits for it; one that was stopped before stays so.
func (s *server) stopPart(i int) {
	if i < 0 || i >= len(s.parts) {
		return
	}
	p := s.parts[i]
	p.stop()
	<-p.done
	s.log.Info("part stopped", "part", p.name)
}
