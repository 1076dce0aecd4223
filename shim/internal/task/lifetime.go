package task

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// When the process ends. It lives while it has containers or expects some. It
// ends at once when containerd asks and it has none, and by itself when it has
// had none for a while: whoever should have asked has died.
const (
	// expectGrace is how long an announced container may take to come: containerd
	// creates it right after, unless it dies.
	expectGrace = 30 * time.Second
	// idleGrace is how long containerd may take for Shutdown after Delete, and
	// the first container for announcing itself.
	idleGrace = 10 * time.Second
)

// expect keeps the process alive for a container to come.
func (s *Service) expect(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errClosing
	}
	s.expected[id] = time.Now().Add(expectGrace)
	s.idle.Reset(expectGrace)
	return nil
}

// pid is a container's; 0: it is expected or on its way.
func (s *Service) pid(id string) (pid int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c.pid, true
	}
	_, expected := s.expected[id]
	return 0, expected || s.creating[id] != nil
}

// creation is a container on its way.
type creation struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it is in the table, or nothing of it is left
}

// admit lets a container be created, under a context that interrupt can end.
func (s *Service) admit(ctx context.Context, id string) (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, errClosing
	}
	if s.containers[id] != nil || s.creating[id] != nil {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	ctx, cancel := context.WithCancel(ctx)
	s.creating[id] = &creation{cancel: cancel, done: make(chan struct{})}
	delete(s.expected, id)
	return ctx, nil
}

// settle ends a creation; c is nil when it has failed.
func (s *Service) settle(id string, c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c != nil {
		s.containers[id] = c
	} else {
		s.idle.Reset(idleGrace)
	}
	s.creating[id].cancel()
	close(s.creating[id].done)
	delete(s.creating, id)
}

// interrupt ends a creation that nobody waits for any more, and waits until it
// has undone itself or succeeded nonetheless.
func (s *Service) interrupt(ctx context.Context, id string) error {
	s.mu.Lock()
	x := s.creating[id]
	s.mu.Unlock()
	if x == nil {
		return nil
	}
	x.cancel()
	select {
	case <-x.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// forget takes a container out of which nothing is left.
func (s *Service) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, id)
	s.idle.Reset(idleGrace)
}

// closeIfIdle ends the process if it has nothing to do, and otherwise looks again
// when the last expectation has passed.
func (s *Service) closeIfIdle() {
	s.mu.Lock()
	now := time.Now()
	maps.DeleteFunc(s.expected, func(_ string, until time.Time) bool { return now.After(until) })
	idle := len(s.containers)+len(s.creating)+len(s.expected) == 0 && !s.closing
	if idle {
		s.closing = true
	} else {
		s.idle.Reset(expectGrace)
	}
	s.mu.Unlock()
	if idle {
		s.cfg.Exit()
	}
}

// dropAbandoned removes the ended containers whose bundle is gone: containerd has
// given them up, with a `shim delete`, and will never ask for them again.
func (s *Service) dropAbandoned(ctx context.Context) {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	for _, c := range all {
		if _, err := os.Stat(c.bundle.Dir); !c.end.over() || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if _, err := c.delete(ctx); err != nil {
			s.cfg.Log.Warn("removing an abandoned container", "sandbox", c.id, "error", err)
			continue
		}
		s.forget(c.id)
	}
}

// Run publishes events and ends the process when it is idle, until ctx ends; the
// events that are queued then still go out.
func (s *Service) Run(ctx context.Context) {
	defer s.idle.Stop()
	for {
		select {
		case e := <-s.events:
			s.send(ctx, e)
		case <-s.idle.C:
			s.dropAbandoned(ctx)
			s.closeIfIdle()
		case <-ctx.Done():
			s.flush(context.WithoutCancel(ctx))
			return
		}
	}
}
