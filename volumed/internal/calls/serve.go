package calls

import (
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/store"
)

// copyBuffer is the piece in which bodies pass.
const copyBuffer = 64 << 10

// buffers are a [httputil.BufferPool].
type buffers struct{ sync.Pool }

func (b *buffers) Get() []byte  { return b.Pool.Get().(*[copyBuffer]byte)[:] }
func (b *buffers) Put(p []byte) { b.Pool.Put((*[copyBuffer]byte)(p)) }

// silent: who breaks off is no news.
var silent = log.New(io.Discard, "", 0)

var pool = &buffers{sync.Pool{New: func() any { return new([copyBuffer]byte) }}}

// ServeHTTP answers a call below volumeapi.PathCalls, whose header names the volume.
func (c *Calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, volumeapi.PathCalls)
	v, err := volumeapi.ParseVolume(r.Header.Get(volumeapi.VolumeHeader))
	if err == nil && path != procapi.PathFiles && !strings.HasPrefix(path, procapi.PathFiles+"/") {
		err = errdefs.New(errdefs.NotFound, "no such call: %s %.100q", r.Method, path)
	}
	if err != nil {
		answer.Refuse(w, err)
		return
	}
	watch := path == procapi.PathFiles+"/watch"
	s, err := c.enter(r.Context(), v, watch)
	if err != nil {
		c.refuse(w, r, v.ID, err)
		return
	}
	defer c.leave(s, watch)
	body := &body{ReadCloser: r.Body}
	in := *r // net/http looks at r's own body to close the connection in a way that loses no answer
	in.Body = body
	proxy := httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.URL.Path, p.Out.URL.RawPath = "http", "volume", path, ""
			p.Out.Host = "volume"
			p.Out.Header.Del(volumeapi.VolumeHeader)
		},
		Transport: s.process, FlushInterval: -1, BufferPool: pool, ErrorLog: silent,
		ModifyResponse: func(*http.Response) error {
			body.mayEndLate(w, r)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			body.mayEndLate(w, r)
			c.refuse(w, r, v.ID, errdefs.New(errdefs.Unavailable, "what serves the volume's files does not answer").WithRetryAfter(again).WithCause(err))
		},
	}
	proxy.ServeHTTP(w, &in)
}

// body is a request's, of which it is known whether it has come to its end.
type body struct {
	io.ReadCloser
	ended atomic.Bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
	}
	return n, err
}

// mayEndLate has an answer that is ready before the request has ended leave at once, and the
// connection end with it: else net/http reads the rest first, which may never come. (To
// enable full duplex instead breaks connections whose bodies nobody has read.)
func (b *body) mayEndLate(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 && !b.ended.Load() {
		w.Header().Set("Connection", "close")
	}
}

// refuse answers an error that is not the process's own: the volume is not at hand.
func (c *Calls) refuse(w http.ResponseWriter, r *http.Request, volume string, err error) {
	if r.Context().Err() != nil {
		return // the caller has gone
	}
	e := errdefs.From(err)
	switch {
	case e.Code == store.CodeFenced:
		err = errdefs.WithCode(errdefs.Conflict, volumeapi.CodeStale, "%s", e.Message)
	case e.Code == codeWatches: // as a process says it
	case e.Kind != errdefs.Unavailable:
		err = errdefs.New(errdefs.Unavailable, "the volume is not at hand").WithCause(err)
	}
	c.cfg.Log.Warn("a file call failed", "volume", volume, "method", r.Method, "path", r.URL.Path, "error", err)
	answer.Refuse(w, err)
}
