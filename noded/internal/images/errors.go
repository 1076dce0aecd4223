package images

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	cerrdefs "github.com/containerd/errdefs"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/publicnet"
)

// refusal is an error whose message the template's owner may see.
func refusal(kind errdefs.Kind, format string, args ...any) *errdefs.Error {
	return errdefs.WithCode(kind, nodeapi.CodeImage, format, args...)
}

// hostile is an image that no honest tool makes, or that is too much for the node.
// Its text is for the tenant.
type hostile string

func (h hostile) Error() string { return string(h) }

func hostilef(format string, args ...any) error { return hostile(fmt.Sprintf(format, args...)) }

// classify says what a caller may do about a failed pull. Only the reference,
// which the tenant chose, is in the message.
func classify(ref string, err error) error {
	var known *errdefs.Error
	var why hostile
	var status remoteerrors.ErrUnexpectedStatus
	denied := errors.Is(err, docker.ErrInvalidAuthorization) ||
		errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden)
	switch {
	case errors.As(err, &why):
		return refusal(errdefs.Unprocessable, "image %s: %s", ref, why).WithCause(err)
	case errors.As(err, &known):
		return known
	case cerrdefs.IsFailedPrecondition(err): // of containerd's content store
		return refusal(errdefs.Unprocessable, "image %s: what its registry sends does not match its digest or size", ref).WithCause(err)
	case cerrdefs.IsNotFound(err):
		return refusal(errdefs.Unprocessable, "image %s does not exist or does not fit this node", ref).WithCause(err)
	case denied:
		return refusal(errdefs.Unprocessable, "image %s: the registry denies access", ref).WithCause(err)
	case errors.Is(err, errStalled):
		return refusal(errdefs.Timeout, "image %s: its registry sends nothing, or next to nothing", ref).WithCause(err)
	case errors.Is(err, publicnet.ErrNotPublic):
		return refusal(errdefs.Unprocessable, "image %s: its registry is, or points to, an address of a private network", ref).WithCause(err)
	case errors.Is(err, context.DeadlineExceeded):
		return refusal(errdefs.Timeout, "image %s: pulling took longer than %v", ref, pullTimeout).WithCause(err)
	}
	return refusal(errdefs.Unavailable, "image %s can't be pulled now", ref).WithCause(err)
}
