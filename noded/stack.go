package noded

import (
	"context"
	"fmt"
	"sync"
)

// stack runs parts that build on each other: the last started is the first
// stopped, and each is gone before the one below it is told to go.
type stack struct {
	failed chan error // the first part that ended by itself
	stops  []func()
}

func newStack() *stack { return &stack{failed: make(chan error, 1)} }

// start runs a part until the stack is stopped.
func (s *stack) start(name string, run func(context.Context) error) {
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
	s.push(func() {
		cancel()
		wg.Wait()
	})
}

// push registers what stop does when it comes to this level.
func (s *stack) push(stop func()) { s.stops = append(s.stops, stop) }

func (s *stack) stop() {
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
}

// wait returns when ctx ends or a part has failed.
func (s *stack) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}
