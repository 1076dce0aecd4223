package httpapi

import (
	"errors"
	"io"
	"net/http"
	"time"

	"s0.run/api/internal/strictjson"
	"s0.run/internal/errdefs"
)

// Bounds of JSON bodies.
const (
	controlBytes = 1 << 20
	// inputBytes leaves room for an input of procapi.MaxInputBytes of which every
	// byte is escaped.
	inputBytes = 8 << 20
)

// decode reads a JSON body into dst. The required keys must be there.
func decode(w http.ResponseWriter, r *http.Request, limit int64, dst any, required ...string) error {
	b, err := body(w, r, limit)
	if err != nil {
		return err
	}
	return decoded(b, dst, required...)
}

func decoded(b []byte, dst any, required ...string) error {
	if err := strictjson.Unmarshal(b, dst, required...); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "%s", err)
	}
	return nil
}

// decodeOptional is decode for a body that may be absent.
func decodeOptional(w http.ResponseWriter, r *http.Request, dst any) error {
	b, err := body(w, r, controlBytes)
	if err != nil || len(b) == 0 {
		return err
	}
	return decoded(b, dst)
}

func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	return bodyWithin(w, r, limit, bodyTimeout)
}

func bodyWithin(w http.ResponseWriter, r *http.Request, limit int64, d time.Duration) ([]byte, error) {
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(d))
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	rc.SetReadDeadline(time.Time{})
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, errdefs.New(errdefs.TooLarge, "the body is larger than %d bytes", limit)
	}
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "the body broke off").WithCause(err)
	}
	return b, nil
}
