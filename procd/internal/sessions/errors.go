package sessions

import (
	"errors"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

func invalid(format string, args ...any) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", format, args...)
}

func notFound(id string) error {
	return errdefs.WithCode(errdefs.NotFound, procapi.CodeSessionNotFound, "session %.64q not found", id)
}

func tooMany() error {
	return errdefs.WithCode(errdefs.Exhausted, procapi.CodeTooManySessions, "the sandbox has %d sessions, the most it may; delete one", procapi.MaxSessions).WithRetryAfter(time.Second)
}

func keyReused() error {
	return errdefs.WithCode(errdefs.Unprocessable, procapi.CodeKeyReused, "another session was made with this %s", procapi.IdempotencyHeader)
}

func closing() error { return errdefs.New(errdefs.Unavailable, "the sandbox is stopping") }

func notRunning(id string) error {
	return errdefs.WithCode(errdefs.Conflict, "process_not_running", "session %s has no process that runs", id)
}

func conflict(code, format string, args ...any) error {
	return errdefs.WithCode(errdefs.Conflict, code, format, args...)
}

// failed translates the error of an operation on a session's process; code is the
// contract's for one that nobody expected.
func failed(id, code string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*errdefs.Error)):
		return err
	case errors.Is(err, proc.ErrDone):
		return notRunning(id)
	case errors.Is(err, proc.ErrInputFull):
		return conflict("input_buffer_full", "session %s does not read its input as fast as it comes", id)
	case errors.Is(err, proc.ErrNoInput):
		return conflict("process_not_running", "the process of session %s takes no more input", id)
	case errors.Is(err, proc.ErrNoTerminal):
		return conflict("pty_unavailable", "session %s has no terminal", id)
	}
	return errdefs.WithCode(errdefs.Internal, code, "session %s: operation failed", id).WithCause(err)
}
