package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"s0.run/internal/errdefs"
)

// retryAfter is when a client may try again after the database was away.
const retryAfter = time.Second

// SQLSTATEs that callers tell apart.
const (
	stateUniqueViolation = "23505"
	stateQueryCanceled   = "57014" // statement_timeout
	stateLockNotAvail    = "55P03" // lock_timeout
	stateReadOnly        = "25006" // a standby, or a server out of disk space
)

// passingClasses are the SQLSTATE classes of errors that pass by themselves:
// connection, rollback (deadlock, serialisation), resources, operator, system.
var passingClasses = []string{"08", "40", "53", "57", "58"}

// classify gives an error from pgx its kind. Absence is the caller's to name:
// [pgx.ErrNoRows] passes through.
func classify(err error, doing string) error {
	var known *errdefs.Error
	switch {
	case err == nil, errors.Is(err, pgx.ErrNoRows), errors.As(err, &known):
		return err
	case is(err, stateQuotaExceeded):
		return quotaExceeded(err)
	case unknownSource(err):
		return errdefs.New(errdefs.InvalidArgument, "network.credentialBindings: a sourceRef names no credential source").WithCause(err)
	case passes(err):
		return errdefs.New(errdefs.Unavailable, "the database is not available").
			WithRetryAfter(retryAfter).WithCause(fmt.Errorf("%s: %w", doing, err))
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func passes(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		for _, class := range passingClasses {
			if strings.HasPrefix(pg.Code, class) {
				return true
			}
		}
		return pg.Code == stateLockNotAvail || pg.Code == stateReadOnly
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err)
}

// Unknown reports whether err leaves open if a write took place: the
// connection was lost after it was sent and before its answer came.
func Unknown(err error) bool {
	if err == nil {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// The server ended the session in the middle; everything else it answers is final.
		return strings.HasPrefix(pg.Code, "57P")
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return false
	}
	return passes(err) && !pgconn.SafeToRetry(err) || errors.Is(err, context.Canceled)
}

// is reports whether the server's answer is of this SQLSTATE.
func is(err error, state string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == state
}

// violates reports whether err says that a row with the same key exists.
func violates(err error, constraint string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == stateUniqueViolation && pg.ConstraintName == constraint
}

func notFound(what string) error {
	return errdefs.New(errdefs.NotFound, "%s not found", what)
}

// found classifies err and names what is missing when there was no row.
func found(err error, doing, what string) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return notFound(what)
	}
	return classify(err, doing)
}
