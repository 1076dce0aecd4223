package inproc

import (
	"net/http"
	"strconv"
	"sync"
)

// together is how much of a body is awaited before its header is sent: an answer that is
// complete by then wakes its reader once.
const together = 4 << 10

// answer is a handler's http.ResponseWriter, of one goroutine, as net/http has it.
type answer struct {
	header   http.Header // the handler's
	headers  bool        // WriteHeader was called
	bodiless bool
	written  int64
	body     *pipe

	// What the caller sees, which does not change once sent is closed.
	sent   chan struct{}
	once   sync.Once
	status int
	given  http.Header
	length int64 // of the body; -1: unknown
	failed error // there is no answer
}

func newAnswer(head bool) *answer {
	return &answer{header: http.Header{}, bodiless: head, body: newPipe(), sent: make(chan struct{}), length: -1}
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter. Informational answers are not passed on.
func (a *answer) WriteHeader(status int) {
	if a.headers || status < 200 {
		return
	}
	a.headers, a.status, a.given = true, status, a.header.Clone()
	if n, err := strconv.ParseInt(a.given.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		a.length = n
	}
	a.bodiless = a.bodiless || status == http.StatusNoContent || status == http.StatusNotModified
}

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.bodiless {
		if a.status == http.StatusNoContent || a.status == http.StatusNotModified {
			return 0, http.ErrBodyNotAllowed
		}
		return len(b), nil
	}
	if a.length >= 0 && a.written+int64(len(b)) > a.length {
		return 0, http.ErrContentLength
	}
	if a.written += int64(len(b)); a.written >= together {
		a.send()
	}
	return a.body.Write(b)
}

// FlushError is what http.ResponseController calls.
func (a *answer) FlushError() error {
	a.WriteHeader(http.StatusOK)
	a.send()
	return a.body.broken()
}

// Flush implements http.Flusher.
func (a *answer) Flush() { _ = a.FlushError() }

// EnableFullDuplex is what http.ResponseController calls.
func (a *answer) EnableFullDuplex() error { return nil }

func (a *answer) send() { a.once.Do(func() { close(a.sent) }) }

// finish ends the answer when the handler has returned; err: it has not answered whole.
func (a *answer) finish(err error) {
	switch {
	case err == nil:
		a.WriteHeader(http.StatusOK)
		if a.length < 0 && !a.bodiless {
			a.once.Do(func() { a.length = a.written; close(a.sent) }) // as long as nobody was told otherwise
		}
		if !a.bodiless && a.written < a.length {
			err = errBrokeOff
		}
	case !a.headers:
		a.failed = err
	}
	a.body.end(err)
	a.send()
}
