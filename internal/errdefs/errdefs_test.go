package errdefs

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestFromFindsTheErrorOrHidesIt(t *testing.T) {
	t.Parallel()
	inner := WithCode(NotFound, "context_not_found", "context ctx-1 does not exist").WithCause(io.EOF)
	wrapped := fmt.Errorf("reading: %w", inner)
	if got := From(wrapped); got != inner || !errors.Is(wrapped, io.EOF) {
		t.Errorf("From(%v) = %v", wrapped, got)
	}
	opaque := From(errors.New("pq: relation users does not exist"))
	if opaque.Kind != Internal || opaque.Message != "internal error" || opaque.Code != "internal_error" {
		t.Errorf("an unclassified error became %+v", opaque)
	}
	if From(nil) != nil || Is(nil, Internal) {
		t.Error("nil must stay nil and be of no kind")
	}
}

func TestEveryKindHasItsOwnStatus(t *testing.T) {
	t.Parallel()
	seen := map[int]Kind{}
	for k := range kinds {
		kind := Kind(k)
		if kind.HTTPStatus() == 0 || kind.Code() == "" {
			t.Errorf("kind %d has no status or code", k)
		}
		if other, taken := seen[kind.HTTPStatus()]; taken {
			t.Errorf("kinds %d and %d have the status %d", other, kind, kind.HTTPStatus())
		}
		seen[kind.HTTPStatus()] = kind
	}
	if Kind(200).HTTPStatus() != 500 {
		t.Error("what is unknown must be internal")
	}
}

func TestWithMakesCopies(t *testing.T) {
	t.Parallel()
	base := New(Unavailable, "wait")
	if e := base.WithRetryAfter(1).WithCause(io.EOF); e == base || base.RetryAfter != 0 || base.Unwrap() != nil {
		t.Error("With… changed the original")
	}
}
