package contexts

import (
	"context"
	"errors"
	"os"
	"syscall"

	"s0.run/internal/errdefs"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/repl"
)

func invalid(format string, args ...any) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", format, args...)
}

func notFound(id string) error {
	return errdefs.WithCode(errdefs.NotFound, "context_not_found", "context %.64q not found", id)
}

func finished(id string) error {
	return errdefs.WithCode(errdefs.Gone, "process_finished", "the process of context %s has ended", id)
}

func paused(id string) error {
	return errdefs.WithCode(errdefs.Conflict, "process_not_running", "the process of context %s is paused", id)
}

// failed translates the error of an operation on a context; code is the
// contract's for one that nobody expected.
func failed(id, code string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*errdefs.Error)):
		return err
	case errors.Is(err, proc.ErrDone), errors.Is(err, repl.ErrExited):
		return finished(id)
	case errors.Is(err, proc.ErrInputFull):
		return errdefs.WithCode(errdefs.Conflict, "input_buffer_full", "context %s does not read its input as fast as it comes", id)
	case errors.Is(err, repl.ErrBusy):
		return errdefs.WithCode(errdefs.Conflict, "input_buffer_full", "too many execs wait for context %s", id)
	case errors.Is(err, proc.ErrNoInput):
		return errdefs.WithCode(errdefs.Conflict, "process_not_running", "the process of context %s takes no input", id)
	case errors.Is(err, proc.ErrNoTerminal):
		return errdefs.WithCode(errdefs.Conflict, "pty_unavailable", "context %s has no terminal", id)
	case errors.Is(err, context.DeadlineExceeded):
		return errdefs.WithCode(errdefs.Timeout, "exec_timeout", "context %s is not done in time; it goes on", id)
	case errors.Is(err, context.Canceled): // nobody waits for this answer
		return errdefs.New(errdefs.Unavailable, "request was cancelled").WithCause(err)
	}
	return errdefs.WithCode(errdefs.Internal, code, "context %s: operation failed", id).WithCause(err)
}

// startError says why a process can't start. What the request or the image has
// wrong is the caller's to repair.
func startError(cfg proc.Config, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return errdefs.WithCode(errdefs.Internal, "create_failed", "starting %.100q failed", cfg.Argv[0]).WithCause(err)
	}
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.EACCES, syscall.ENAMETOOLONG, syscall.ELOOP:
		if st, err := os.Stat(cfg.Dir); err != nil || !st.IsDir() {
			return invalid("working directory %.200q does not exist", cfg.Dir)
		}
		if errno == syscall.ENOENT && cfg.Path != "" {
			return invalid("starting %.100q: its interpreter does not exist", cfg.Argv[0])
		}
		return invalid("starting %.100q: %s", cfg.Argv[0], errno.Error())
	case syscall.ENOEXEC, syscall.E2BIG, syscall.EINVAL, syscall.EISDIR, syscall.ELIBBAD, syscall.ETXTBSY, syscall.EPERM:
		return invalid("starting %.100q: %s", cfg.Argv[0], errno.Error())
	}
	return errdefs.WithCode(errdefs.Internal, "create_failed", "starting %.100q: %s", cfg.Argv[0], errno.Error()).WithCause(err)
}
