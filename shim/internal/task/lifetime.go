package task

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/errdefs"
)

// When the process ends. It lives while it has containers or expects some. It
// ends at once when containerd asks and it has none, and by itself when it has
// had none for a while: whoever should have asked has died.
const (
	// expectGrace is how long an announced container may take to come: containerd
	// creates it right after, unless it dies.
	expectGrace = 60 * time.Second
	// idleGrace is how long containerd may take for Shutdown after Delete.
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

// admit lets a container be created; it is expected until it is in the table.
func (s *Service) admit(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errClosing
	}
	if _, ok := s.containers[id]; ok {
		return fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	s.expected[id] = time.Now().Add(expectGrace)
	return nil
}

// add puts a created container in the table.
func (s *Service) add(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[c.id] = c
	delete(s.expected, c.id)
}

// forget takes a container out that is gone or never came.
func (s *Service) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, id)
	delete(s.expected, id)
	s.idle.Reset(idleGrace)
}

// closeIfIdle ends the process if it has nothing to do, and otherwise looks again
// when the last expectation has passed.
func (s *Service) closeIfIdle() {
	s.mu.Lock()
	now := time.Now()
	maps.DeleteFunc(s.expected, func(_ string, until time.Time) bool { return now.After(until) })
	idle := len(s.containers) == 0 && len(s.expected) == 0 && !s.closing
	if idle {
		s.closing = true
	} else if len(s.containers) == 0 {
		s.idle.Reset(expectGrace)
	}
	s.mu.Unlock()
	if idle {
		s.cfg.Exit()
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
			s.closeIfIdle()
		case <-ctx.Done():
			s.flush(context.WithoutCancel(ctx))
			return
		}
	}
}
