// Package probe attempts the probes of what runs inside the sandbox: that it runs, a
// command beside it, a request or a connection to a port of the sandbox's own.
//
// [Attempt] does one attempt and keeps nothing. How often it is made and what follows
// from its results is for packages warm and sessions to say.
package probe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/warm"
	"s0.run/procd/internal/proc"
)

// Subject is what is probed.
type Subject struct {
	Running func() error                         // nil: it runs
	Start   func(argv []string) (Command, error) // starts a command beside it
}

// Command is a command that was started, as [proc.Process] is one.
type Command interface {
	Done() <-chan struct{}
	Exit() procapi.Exit // valid after Done
	Log() *proc.Log
	Close() // kills what is left and waits for it
}

// Attempt runs a probe's action once. Its error says which action failed how, in words
// for who wrote the probe; one that ctx ended says nothing of the subject.
func Attempt(ctx context.Context, p *warm.Probe, limit time.Duration, s Subject) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := act(ctx, p, s)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s: nothing within %s", what(p), limit)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what(p), err)
	}
	return nil
}

func act(ctx context.Context, p *warm.Probe, s Subject) error {
	switch {
	case len(p.Exec) > 0:
		return exec(ctx, p.Exec, s)
	case p.HTTP != nil:
		return httpGet(ctx, p.HTTP)
	case p.TCPPort != 0:
		return tcpConnect(ctx, p.TCPPort)
	case p.GRPC != nil:
		return grpcCheck(ctx, p.GRPC)
	}
	return s.Running()
}
