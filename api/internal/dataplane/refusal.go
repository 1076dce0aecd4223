package dataplane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

const (
	maxRefusalBytes = 64 << 10
	maxMessageBytes = 1 << 10
)

// procdCodes are the contract's codes of contexts, sessions and files, each with its
// status. procd may say these and nothing else.
var procdCodes = map[string]errdefs.Kind{
	"invalid_request":     errdefs.InvalidArgument,
	"invalid_paths":       errdefs.InvalidArgument,
	"permission_denied":   errdefs.PermissionDenied,
	"context_not_found":   errdefs.NotFound,
	"file_not_found":      errdefs.NotFound,
	"directory_not_found": errdefs.NotFound,
	"exec_timeout":        errdefs.Timeout,
	"process_not_running": errdefs.Conflict,
	"input_buffer_full":   errdefs.Conflict,
	"pty_unavailable":     errdefs.Conflict,
	"path_exists":         errdefs.Conflict,
	"path_not_directory":  errdefs.Conflict,
	"path_not_file":       errdefs.Conflict,
	"process_finished":    errdefs.Gone,
	"file_too_large":      errdefs.TooLarge,
	"too_many_contexts":   errdefs.Exhausted,
	"too_many_watches":    errdefs.Exhausted,

	procapi.CodeSessionNotFound: errdefs.NotFound,
	procapi.CodeAttemptRunning:  errdefs.Conflict,
	procapi.CodeAttemptMismatch: errdefs.Conflict,
	procapi.CodeInputConflict:   errdefs.Conflict,
	procapi.CodeKeyReused:       errdefs.Unprocessable,
	procapi.CodeTooManySessions: errdefs.Exhausted,

	procapi.CodePortRefused:    errdefs.Unavailable,
	procapi.CodeTooManyTunnels: errdefs.Exhausted,

	"create_failed":    errdefs.Internal,
	"restart_failed":   errdefs.Internal,
	"write_failed":     errdefs.Internal,
	"resize_failed":    errdefs.Internal,
	"signal_failed":    errdefs.Internal,
	"exec_failed":      errdefs.Internal,
	"operation_failed": errdefs.Internal,
}

// ContextNotFound is procd's code for a context that it does not have.
const ContextNotFound = "context_not_found"

// refusal turns an answer that is no success into an error. What is not one of
// procd's codes is the node's own word, or nonsense: then the row decides.
func (p *Plane) refusal(ctx context.Context, to Target, resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusalBytes))
	if err != nil {
		return unanswered(ctx, err)
	}
	var said procapi.Error
	if err := json.Unmarshal(b, &said); err != nil {
		return errNonsense.WithCause(fmt.Errorf("status %d: %w", resp.StatusCode, err))
	}
	if kind, ok := procdCodes[said.Code]; ok && kind.HTTPStatus() == resp.StatusCode {
		return errdefs.WithCode(kind, said.Code, "%s", clean(said.Message))
	}
	if resp.StatusCode == http.StatusConflict && (said.Code == nodeapi.CodePaused || said.Code == nodeapi.CodeStaleGeneration) {
		return &elsewhere{asleep: said.Code == nodeapi.CodePaused}
	}
	cause := fmt.Errorf("status %d, code %.40q: %s", resp.StatusCode, said.Code, clean(said.Message))
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone, http.StatusConflict, http.StatusServiceUnavailable:
		return p.notServing(ctx, to, cause)
	case http.StatusGatewayTimeout:
		return errdefs.New(errdefs.GatewayTimeout, "the sandbox did not answer in time").WithCause(cause)
	}
	return errNonsense.WithCause(cause)
}

// notServing says why a sandbox does not serve, by what its row says.
func (p *Plane) notServing(ctx context.Context, to Target, cause error) error {
	row, err := p.cfg.Store.Sandbox(ctx, to.Team, to.ID)
	if err != nil {
		return err
	}
	if row.Status != sandbox.Running {
		return notRunning(row)
	}
	return errdefs.New(errdefs.Unavailable, "the sandbox does not answer at the moment").WithRetryAfter(time.Second).WithCause(cause)
}

// clean makes a message of procd's fit to be shown.
func clean(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxMessageBytes)], "")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
