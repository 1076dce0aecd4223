package server

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/noded/internal/channel"
	"s0.run/noded/internal/lifecycle"
)

var connectCodes = map[errdefs.Kind]connect.Code{
	errdefs.InvalidArgument:  connect.CodeInvalidArgument,
	errdefs.Unauthenticated:  connect.CodeUnauthenticated,
	errdefs.PermissionDenied: connect.CodePermissionDenied,
	errdefs.NotFound:         connect.CodeNotFound,
	errdefs.Timeout:          connect.CodeDeadlineExceeded,
	errdefs.Conflict:         connect.CodeFailedPrecondition,
	errdefs.Gone:             connect.CodeNotFound,
	errdefs.TooLarge:         connect.CodeInvalidArgument,
	errdefs.Unprocessable:    connect.CodeInvalidArgument,
	errdefs.Exhausted:        connect.CodeResourceExhausted,
	errdefs.BadGateway:       connect.CodeUnavailable,
	errdefs.Unavailable:      connect.CodeUnavailable,
	errdefs.GatewayTimeout:   connect.CodeDeadlineExceeded,
}

// classify gives the errors that others' code returns their kind.
func classify(err error) *errdefs.Error {
	var typed *errdefs.Error
	switch {
	case errors.As(err, &typed):
		return typed
	case errors.Is(err, channel.ErrDisconnected):
		return errdefs.New(errdefs.Unavailable, "the sandbox does not answer").WithCause(err)
	case errors.Is(err, context.DeadlineExceeded):
		return errdefs.New(errdefs.GatewayTimeout, "the node did not answer in time").WithCause(err)
	case errors.Is(err, context.Canceled):
		return errdefs.New(errdefs.Unavailable, "the call was given up").WithCause(err)
	}
	return errdefs.From(err)
}

// fail turns an error into the wire's. Its cause is logged and stays here.
func (s *Server) fail(call string, err error) error {
	e := wire(classify(err))
	if e.Code() == connect.CodeInternal || e.Code() == connect.CodeUnavailable {
		s.cfg.Log.Error("call failed", "call", call, "error", err)
	}
	return e
}

// wire is an error as the caller sees it.
func wire(e *errdefs.Error) *connect.Error {
	code, ok := connectCodes[e.Kind]
	if !ok {
		code = connect.CodeInternal
	}
	if e.Code == lifecycle.CodeSlotTaken {
		code = connect.CodeAborted
	}
	ce := connect.NewError(code, errors.New(e.Message))
	if e.Code != e.Kind.Code() {
		ce.Meta().Set(nodeapi.CodeHeader, e.Code)
	}
	if e.RetryAfter > 0 {
		ce.Meta().Set("Retry-After", seconds(e.RetryAfter))
	}
	return ce
}

// refuse answers a proxied request by itself, in the shape of procd's errors.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	e := classify(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", seconds(e.RetryAfter))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Kind.HTTPStatus())
	_ = json.NewEncoder(w).Encode(procapi.Error{Code: e.Code, Message: e.Message}) // the caller is gone otherwise
}

func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }
