package inproc

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
)

// call is one request and its answer.
type call struct {
	req    *http.Request // the caller's
	ctx    context.Context
	cancel context.CancelCauseFunc
	stop   func() bool // undoes that the caller's context ends this one
	input  *pipe       // between the caller's body and the handler; nil: it reads the body itself
	answer *answer
}

func newCall(base context.Context, req *http.Request) *call {
	c := &call{req: req, answer: newAnswer(req.Method == http.MethodHead)}
	c.ctx, c.cancel = context.WithCancelCause(base)
	c.stop = context.AfterFunc(req.Context(), func() { c.cancel(context.Cause(req.Context())) })
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		c.input = newPipe()
	}
	return c
}

// serve runs the handler. An end of the context from either side ends both bodies.
func (c *call) serve(h http.Handler, log *slog.Logger, calls *sync.WaitGroup) {
	defer calls.Done()
	unhook := context.AfterFunc(c.ctx, func() {
		err := context.Cause(c.ctx)
		c.answer.body.breakOff(err)
		if c.input != nil {
			c.input.breakOff(err)
		}
	})
	defer c.cancel(nil)
	defer unhook() // before: what the answer's reader has not read yet stays
	defer c.stop()
	body := c.body()
	defer body.Close()
	err := c.handle(h, body, log)
	if err == nil {
		err = context.Cause(c.ctx) // a handler that was told to end has not said all
	}
	c.answer.finish(err)
}

// handle is net/http's way with a handler that panics: the answer breaks off.
func (c *call) handle(h http.Handler, body io.ReadCloser, log *slog.Logger) (err error) {
	defer func() {
		said := recover()
		if said == nil {
			return
		}
		err = errBrokeOff
		if said != http.ErrAbortHandler {
			log.Error("a handler panics", "path", c.req.URL.Path, "panic", said, "stack", string(debug.Stack()))
		}
	}()
	h.ServeHTTP(c.answer, c.request(body))
	return nil
}

// request is what the handler sees, its context without the caller's values.
func (c *call) request(body io.ReadCloser) *http.Request {
	u := *c.req.URL
	r := &http.Request{
		Method: c.req.Method, URL: &u, RequestURI: u.RequestURI(), Host: c.req.Host,
		Proto: "HTTP/2.0", ProtoMajor: 2, RemoteAddr: "@",
		Header: c.req.Header.Clone(), Body: body, ContentLength: c.req.ContentLength,
	}
	if r.Host == "" {
		r.Host = u.Host
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	return r.WithContext(c.ctx)
}

// body is what the handler reads. One that is in memory it reads itself; a read of any
// other may wait for whoever sends, long after the handler has no more use for it.
func (c *call) body() io.ReadCloser {
	switch {
	case c.input != nil:
		go c.feed(c.req.Body)
		return c.input
	case c.req.Body != nil:
		return c.req.Body
	}
	return http.NoBody
}

// feed ends, at the latest, with the caller's body, as a transport's goroutine does.
func (c *call) feed(body io.ReadCloser) {
	_, err := io.Copy(struct{ io.Writer }{c.input}, body)
	body.Close()
	if err == nil {
		err = io.EOF
	}
	c.input.end(err)
}

// response is the answer, once it was sent.
func (c *call) response() (*http.Response, error) {
	a := c.answer
	if a.failed != nil {
		return nil, a.failed
	}
	resp := &http.Response{
		Status: strconv.Itoa(a.status) + " " + http.StatusText(a.status), StatusCode: a.status,
		Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: a.given, ContentLength: a.length, Body: &responseBody{c}, Request: c.req,
	}
	return resp, nil
}

// responseBody tells the handler when nobody reads any more.
type responseBody struct{ c *call }

func (b *responseBody) Read(p []byte) (int, error) { return b.c.answer.body.Read(p) }

func (b *responseBody) Close() error {
	err := b.c.answer.body.Close()
	b.c.cancel(http.ErrBodyReadAfterClose)
	return err
}
