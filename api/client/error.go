package client

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxErrorBytes bounds what is read of an error's body.
const maxErrorBytes = 64 << 10

// APIError is an answer of the server that says no.
type APIError struct {
	StatusCode int
	Code       string // stable and for programs, such as "not_found"; empty when a proxy answered
	Message    string // for people
	Details    map[string]any
	RequestID  string        // names the request in the server's log
	RetryAfter time.Duration // > 0 when it is worth trying again
}

// Error gives the server's message with what an operator needs to find the request.
func (e *APIError) Error() string {
	code := e.Code
	if code == "" {
		code = strconv.Itoa(e.StatusCode)
	}
	if e.RequestID == "" {
		return fmt.Sprintf("%s (%s)", e.Message, code)
	}
	return fmt.Sprintf("%s (%s, request %s)", e.Message, code, e.RequestID)
}

// apiError reads the error from an answer. Something between us and the server
// may have made the answer, so that a body without an envelope is no surprise.
func apiError(resp *http.Response) *APIError {
	e := &APIError{StatusCode: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id")}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes)) // what can't be read has no envelope
	var envelope ErrorEnvelope
	if err := json.Unmarshal(body, &envelope); err == nil && envelope.Error.Code != "" {
		e.Code, e.Message, e.Details = envelope.Error.Code, envelope.Error.Message, envelope.Error.Details
	} else {
		e.Message = "the server answered " + resp.Status
	}
	return e
}
