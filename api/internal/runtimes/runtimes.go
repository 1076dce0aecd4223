// Package runtimes connects to the services of a sandbox, and starts those that
// the platform can start when nothing listens yet.
//
// A service of type cmd is its command, a function is our runner (runner.py)
// with the tenant's code; both are ordinary CMD contexts of the sandbox, marked
// by their environment. The sandbox is asked what runs: nothing is remembered
// here but the starts that are under way and those that failed a moment ago, so
// that a restart of this server, or another replica, finds what it needs. What
// runs in a sandbox is its tenant's, and what it says is data.
//
// The package owns its starts until [Starter.Close].
package runtimes

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/services"
	"s0.run/api/internal/tunnel"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

const (
	startTimeout = time.Minute     // from the first look to a service that answers
	pruneTimeout = 5 * time.Second // to stop what is not wanted any more
	firstPoll    = 25 * time.Millisecond
	lastPoll     = 200 * time.Millisecond
	probeTimeout = 2 * time.Second // of one look at a service's health

	// failedPause is how long a failed start is answered for without another one:
	// a service that can't run must not cost its sandbox a start for each request.
	failedPause = 2 * time.Second
)

// ErrNotListening answers for a port on which nothing listens and nothing is to
// be started.
var ErrNotListening = errdefs.New(errdefs.Unavailable, "the service is not running").WithRetryAfter(time.Second)

var (
	errNotStarted = errdefs.New(errdefs.Unavailable, "the service could not be started").WithRetryAfter(failedPause)
	errStarting   = errdefs.New(errdefs.Unavailable, "the service is starting").WithRetryAfter(time.Second)
)

// Plane asks procd.
type Plane interface {
	Call(ctx context.Context, to dataplane.Target, req dataplane.Request, in, out any, check func() error) error
}

// Dialer connects to listeners inside sandboxes. It fails with procapi's codes.
type Dialer interface {
	Dial(ctx context.Context, to dataplane.Target, l tunnel.Listener) (net.Conn, error)
}

// Config names what a Starter works with.
type Config struct {
	Plane   Plane
	Tunnels Dialer
	Log     *slog.Logger
}

// Starter is safe for concurrent use.
type Starter struct {
	cfg  Config
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	starts map[key]*start
}

// key names one form of one service of one sandbox.
type key struct {
	sandbox  sandbox.ID
	service  string
	revision string
}

// start is one attempt, shared by all who wait for it.
type start struct {
	done  chan struct{}
	err   error     // set before done is closed
	until time.Time // when a failed one is forgotten; set with err
}

// New makes a Starter.
func New(cfg Config) *Starter {
	s := &Starter{cfg: cfg, starts: map[key]*start{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// Close ends the starts that are under way and waits for them.
func (s *Starter) Close() {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	s.wg.Wait()
}

// Listener is where a service listens.
func Listener(svc openapi.SandboxAppService) tunnel.Listener {
	if services.Kind(svc) == openapi.ServiceRuntimeTypeFunction {
		return tunnel.Listener{Function: svc.ID}
	}
	return tunnel.Listener{Port: strconv.Itoa(int(*svc.Port))}
}

// Dial connects to a service, which is started if it is not running and can be.
func (s *Starter) Dial(ctx context.Context, to dataplane.Target, svc openapi.SandboxAppService) (net.Conn, error) {
	if !services.Startable(svc) {
		conn, err := s.cfg.Tunnels.Dial(ctx, to, Listener(svc))
		if refused(err) {
			err = ErrNotListening.WithCause(err)
		}
		return conn, err
	}
	p := newPlan(svc)
	k := key{to.ID, svc.ID, p.revision}
	st := s.underWay(k) // one that listens already may not be healthy yet
	if st == nil {
		conn, err := s.cfg.Tunnels.Dial(ctx, to, Listener(svc))
		if !refused(err) {
			return conn, err
		}
		st = s.begin(k, func(ctx context.Context) error { return s.start(ctx, to, p) })
	}
	select {
	case <-st.done:
	case <-ctx.Done():
		return nil, errStarting.WithCause(context.Cause(ctx))
	}
	if st.err != nil {
		return nil, st.err
	}
	conn, err := s.cfg.Tunnels.Dial(ctx, to, Listener(svc))
	if refused(err) {
		err = errNotStarted.WithCause(err)
	}
	return conn, err
}

func refused(err error) bool {
	return err != nil && errdefs.From(err).Code == procapi.CodePortRefused
}

// underWay is the start that requests have to wait for, if there is one.
func (s *Starter) underWay(k key) *start {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.currentLocked(k)
}

// currentLocked is a start that goes on, or has failed a moment ago.
func (s *Starter) currentLocked(k key) *start {
	st := s.starts[k]
	if st == nil {
		return nil
	}
	select {
	case <-st.done:
		if time.Now().After(st.until) {
			delete(s.starts, k)
			return nil
		}
	default:
	}
	return st
}

// begin joins the start that is under way, or begins one.
func (s *Starter) begin(k key, run func(ctx context.Context) error) *start {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.starts {
		s.currentLocked(other) // forgets what is over
	}
	if st := s.starts[k]; st != nil {
		return st
	}
	st := &start{done: make(chan struct{})}
	s.starts[k] = st
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(s.life, startTimeout)
		defer cancel()
		err := run(ctx)
		if err != nil {
			s.cfg.Log.Info("a service did not start", "sandbox", k.sandbox, "service", k.service, "err", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if st.err = public(err); err == nil {
			delete(s.starts, k)
		} else {
			st.until = time.Now().Add(failedPause)
		}
		close(st.done)
	})
	return st
}

// public is what a caller, whom nobody knows, may learn of a failed start.
func public(err error) error {
	if err == nil {
		return nil
	}
	if e := errdefs.From(err); e.Code == errdefs.Unavailable.Code() || e.Code == errdefs.NotFound.Code() {
		return err // of the sandbox itself
	}
	return errNotStarted.WithCause(err)
}

// startAttempts: a process that was found running may be on its way out.
const startAttempts = 2

// start makes one process of the service run and waits until it serves.
func (s *Starter) start(ctx context.Context, to dataplane.Target, p *plan) error {
	var err error
	for range startAttempts {
		var id string
		if id, err = s.process(ctx, to, p); err != nil {
			return err
		}
		if err = s.await(ctx, to, p, id); !errors.Is(err, errEnded) {
			return err
		}
	}
	return err
}

// process finds the service's process or makes it. Should another replica do the
// same at this moment, both come to keep the same one.
func (s *Starter) process(ctx context.Context, to dataplane.Target, p *plan) (id string, err error) {
	if id, err = s.keep(ctx, to, p); err != nil || id != "" {
		return id, err
	}
	made, err := s.create(ctx, to, p)
	if err != nil {
		return "", err
	}
	if id, err = s.keep(ctx, to, p); id == "" {
		return made, err // it has ended already: whoever waits for it finds out
	}
	return id, err
}

// create makes the service's process and gives a runner its program.
func (s *Starter) create(ctx context.Context, to dataplane.Target, p *plan) (id string, err error) {
	c, err := s.newContext(ctx, to, p.create)
	if err != nil || p.input == "" {
		return c.ID, err
	}
	if err := s.input(ctx, to, c.ID, p.input); err != nil {
		return "", errors.Join(err, s.remove(context.WithoutCancel(ctx), to, c.ID))
	}
	return c.ID, nil
}

var errEnded = errors.New("the process has ended before the service was ready")

// await polls until the service is ready or its process is not there any more.
func (s *Starter) await(ctx context.Context, to dataplane.Target, p *plan, id string) error {
	pause := firstPoll
	for {
		notReady := s.probe(ctx, to, p)
		if notReady == nil {
			return nil
		}
		c, err := s.getContext(ctx, to, id)
		if errdefs.From(err) != nil && errdefs.From(err).Code == dataplane.ContextNotFound || err == nil && !c.Running {
			return errEnded
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), notReady)
		}
		pause = min(2*pause, lastPoll)
	}
}

// Prune stops the processes of services that the sandbox does not have any more,
// or not in this form.
func (s *Starter) Prune(ctx context.Context, to dataplane.Target, list []openapi.SandboxAppService) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pruneTimeout)
	defer cancel()
	wanted := map[string]string{}
	for _, svc := range list {
		if services.Startable(svc) {
			wanted[svc.ID] = newPlan(svc).revision
		}
	}
	running, err := s.processes(ctx, to)
	for _, p := range running {
		if wanted[p.service] != p.revision {
			err = errors.Join(err, s.remove(ctx, to, p.context))
		}
	}
	return err
}
