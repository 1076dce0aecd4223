package daemon

import (
	"context"
	"fmt"
	"sync"
)

// Stack runs parts that build on each other: the last started is the first
// stopped, and each is gone before the one below it is told to go.
type Stack struct {
	failed chan error // the first part that ended by itself
	stops  []func()
}

// NewStack makes one that runs nothing.
func NewStack() *Stack { return &Stack{failed: make(chan error, 1)} }

// Start runs a part until the stack is stopped.
func (s *Stack) Start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background()) // not the caller's: it ends all at once
	var wg sync.WaitGroup
	wg.Go(func() {
		err := run(ctx)
		if ctx.Err() == nil && err == nil {
			err = fmt.Errorf("%s has ended", name)
		}
		if err != nil {
			select {
			case s.failed <- fmt.Errorf("%s: %w", name, err):
			default: // a first failure is known
			}
		}
	})
	s.Push(func() {
		cancel()
		wg.Wait()
	})
}

// Push registers what Stop does when it comes to this level.
func (s *Stack) Push(stop func()) { s.stops = append(s.stops, stop) }

// Stop stops everything, the last part first.
func (s *Stack) Stop() {
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
}

// Wait returns when ctx ends or a part has failed.
func (s *Stack) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}
