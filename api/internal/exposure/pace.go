package exposure

import (
	"io"
	"net/http"
	"sync"
	"time"
)

// paceTimeout bounds the wait for a client's next bytes, in either direction: one
// that stalls for longer has gone, or wants to hold something (A09).
const paceTimeout = time.Minute

// pacedWriter gives each piece of an answer its time. Flush and Hijack find their
// way through Unwrap.
type pacedWriter struct {
	http.ResponseWriter
	rc   *http.ResponseController
	pace time.Duration
}

// Write implements io.Writer.
func (w *pacedWriter) Write(b []byte) (int, error) {
	w.rc.SetWriteDeadline(time.Now().Add(w.pace))
	return w.ResponseWriter.Write(b)
}

// Unwrap gives http.ResponseController its way to the connection.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// paced is a client's body on its way to a service.
type paced struct {
	body io.ReadCloser
	rc   *http.ResponseController
	pace time.Duration

	mu      sync.Mutex
	stopped bool
	ended   bool
}

// pacedBody wraps a request's body, nil when it has none. That of a function is
// bounded.
func (w *pacedWriter) pacedBody(r *http.Request, function bool) io.ReadCloser {
	if r.ContentLength == 0 {
		return nil
	}
	body := r.Body
	if function {
		body = http.MaxBytesReader(nil, body, maxFunctionBody)
	}
	return &paced{body: body, rc: w.rc, pace: w.pace}
}

// Read implements io.Reader.
func (p *paced) Read(b []byte) (int, error) {
	if !p.extend() {
		return 0, errStopped
	}
	n, err := p.body.Read(b)
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = true
		if !p.stopped {
			p.rc.SetReadDeadline(time.Time{}) // the service may take its time to answer
		}
	}
	return n, err
}

// extend gives the next bytes their time, unless nobody may read any more.
func (p *paced) extend() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped && !p.ended {
		p.rc.SetReadDeadline(time.Now().Add(p.pace))
	}
	return !p.stopped
}

// Close ends the reading: whoever reads may outlive the request, whose
// connection then is the next one's.
func (p *paced) Close() error {
	p.mu.Lock()
	first := !p.stopped
	p.stopped = true
	if first && !p.ended {
		p.rc.SetReadDeadline(time.Now())
	}
	p.mu.Unlock()
	if !first {
		return nil
	}
	return p.body.Close()
}
