package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/tty"
)

// place is where a command runs.
type place struct{ sandbox, context string }

// attach shows a command that has just started, and what it is told, until it ends.
func (a *app) attach(ctx context.Context, c *client.Client, at place, e execution) error {
	// An interrupt is for the command, not for us: see relaySignals.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	restore := func() {}
	if e.terminal && e.interactive {
		var err error
		if restore, err = tty.Raw(os.Stdin); err != nil {
			return err
		}
	}
	defer restore()
	// Never undone: until s0 has tidied up none of them may end it.
	signal.Notify(make(chan os.Signal, 1), slices.Collect(maps.Keys(relayed))...)
	w := a.wire(at, e)
	if err := w.open(ctx, c); err != nil {
		return lost(err, at)
	}
	defer w.close()
	wait := relay(ctx, cancel, restore, w, e)
	exit, err := w.copy(ctx, os.Stdout, os.Stderr)
	interrupted := context.Cause(ctx)
	cancel(nil)
	wait()
	restore()
	if err = verdict(exit, err, interrupted, at); err != nil && e.terminal {
		tty.Reset(os.Stdout) // what drew on the screen has not tidied up
	}
	if _, away := errors.AsType[*lostError](err); !away {
		forget(ctx, c, at)
	}
	if err != nil {
		return err
	}
	return exitCode(exit.Code)
}

// wire makes the connection to a command.
func (a *app) wire(at place, e execution) *wire {
	piped := e.interactive && !tty.Is(os.Stdin)
	return &wire{
		mends: !piped,
		attach: func(ctx context.Context, c *client.Client, offset uint64) (*client.Stream, error) {
			if c == nil {
				var err error
				if c, err = a.session.Client(ctx); err != nil { // with a token that is good today
					return nil, err
				}
			}
			return c.AttachAt(ctx, at.sandbox, at.context, offset)
		},
		greet: func(s *client.Stream) {
			if e.terminal {
				s.Resize(client.PTYSize(tty.GetSize(os.Stdout)))
			}
			if !e.interactive && !e.terminal { // what reads nevertheless shall not wait for us
				s.CloseInput()
			}
		},
		broken: func() {
			if e.terminal && e.interactive {
				fmt.Fprint(os.Stderr, "\r\n[s0: the connection is lost; attaching again, Ctrl-C gives up]\r\n")
			}
		},
	}
}

// verdict is what there is to say about how it ended.
func verdict(exit client.Exit, err, interrupted error, at place) error {
	var missing *client.OutputLostError
	var ours *fs.PathError // a reader behind s0 that has seen enough, a full disk
	switch {
	case errors.Is(interrupted, errBroken):
		return lost(err, at)
	case interrupted != nil:
		return context.Canceled
	case errors.As(err, &missing) && exit.Code != 0:
		note("s0: %v", missing)
		return nil
	case err != nil && missing == nil && !errors.As(err, &ours):
		return lost(err, at)
	}
	return err
}

// lostError is a command that we could not follow to its end.
type lostError struct {
	at  place
	err error
}

func (e *lostError) Error() string { return "following the command: " + e.err.Error() }

func (e *lostError) Unwrap() error { return e.err }

func lost(err error, at place) error { return &lostError{at, err} }

// relay passes on what happens on our side until ctx ends; wait returns when it
// has stopped. Reading stdin can't be stopped: that goroutine ends with the process.
func relay(ctx context.Context, cancel context.CancelCauseFunc, restore func(), w *wire, e execution) (wait func()) {
	var side sync.WaitGroup
	safely := func(f func()) func() { return func() { restoring(restore, f) } }
	side.Go(safely(func() { relaySignals(ctx, cancel, w) }))
	if e.terminal {
		side.Go(safely(func() {
			tty.OnResize(ctx, os.Stdout, func(size tty.Size) {
				w.tell(func(s *client.Stream) error { return s.Resize(client.PTYSize(size)) })
			})
		}))
	}
	if e.interactive {
		go safely(func() { w.readFrom(os.Stdin, cancel) })()
	}
	return side.Wait
}

// restoring gives the terminal back before a panic of f's ends s0 from where it is.
func restoring(restore, f func()) {
	defer func() {
		if p := recover(); p != nil {
			restore()
			panic(p)
		}
	}()
	f()
}

// relayed are the signals that are for the command, by their names there.
var relayed = map[os.Signal]string{os.Interrupt: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT"}

// relaySignals signals the command, and with the second signal, with one that can't
// be passed on, or when the terminal has gone, ends the following.
func relaySignals(ctx context.Context, cancel context.CancelCauseFunc, w *wire) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, slices.Collect(maps.Keys(relayed))...)
	defer signal.Stop(signals)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case sig := <-signals:
			err := w.tell(func(s *client.Stream) error { return s.Signal(relayed[sig]) })
			if n > 0 || err != nil || sig == syscall.SIGHUP {
				cancel(err)
				return
			}
		}
	}
}
