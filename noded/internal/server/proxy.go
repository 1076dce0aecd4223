package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

// What passes the proxy. The paths are the tenant's part of procd's API, the
// headers those that both sides have a use for: a sandbox sets nothing else on
// our connections.
var (
	proxiedPaths    = []string{procapi.PathContexts, procapi.PathFiles, procapi.PathSessions, procapi.PathTunnel, procapi.PathLogs}
	requestHeaders  = []string{"Accept", "Content-Type", "If-None-Match", "Range", procapi.IdempotencyHeader, procapi.TimeoutHeader}
	responseHeaders = []string{"Accept-Ranges", "Content-Range", "Content-Type", "Etag", "Last-Modified"}
)

// What the proxy copies through: a large buffer while an answer comes in bulk. The
// many answers that are followed for hours and say little hold a small one each.
const (
	smallBuffer = 4 << 10
	largeBuffer = 256 << 10
)

var buffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// proxy passes one request to a claimed sandbox's procd and its answer back, both
// bodies at the same time.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request) {
	proc, out, err := s.route(r)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.exchange(w, r, proc, out)
}

// exchange passes a request on and its answer back.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request, proc http.RoundTripper, out *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // HTTP/1 must be told; HTTP/2 is anyway
	// The answer may be complete while the request's body still arrives; its
	// reader inside the client must not outlive this handler.
	defer r.Body.Close()
	resp, err := proc.RoundTrip(out)
	if err != nil {
		if r.Context().Err() == nil {
			s.refuse(w, unanswered(out.Host, err))
		}
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 599 { // a sandbox may say anything
		s.refuse(w, errdefs.New(errdefs.BadGateway, "the answer makes no sense"))
		return
	}
	for _, h := range responseHeaders {
		if v := resp.Header.Get(h); v != "" {
			w.Header().Set(h, v)
		}
	}
	if resp.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	if isSmall(resp.ContentLength) {
		whole(w, resp)
		return
	}
	w.WriteHeader(resp.StatusCode)
	stream(w, rc, resp.Body)
}

// isSmall tells a body that is awaited before it is passed on: one that comes in one piece
// wakes whoever it is for once, and a sandbox is slow to wake.
func isSmall(length int64) bool { return 0 <= length && length <= smallBuffer }

// whole passes a small answer on.
func whole(w http.ResponseWriter, resp *http.Response) {
	b, err := io.ReadAll(resp.Body) // the client holds it to its length
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(b) // the caller is gone otherwise
}

// route finds the sandbox and builds the request for its procd, anew: nothing
// reaches the sandbox that is not named here.
func (s *Server) route(r *http.Request) (http.RoundTripper, *http.Request, error) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, nodeapi.ProcPrefix), "/")
	rest = "/" + rest
	id, err := sandbox.ParseID(name)
	if err != nil || !proxied(rest) {
		return nil, nil, errdefs.New(errdefs.NotFound, "not found")
	}
	gen, err := generation(r.Header.Get(nodeapi.GenerationHeader))
	if err != nil {
		return nil, nil, err
	}
	proc, err := s.cfg.Lifecycle.Proc(id, gen)
	if err != nil {
		return nil, nil, err
	}
	out, err := outgoing(r, "procd", rest)
	return proc, out, err
}

// outgoing is a request as it is passed on.
func outgoing(r *http.Request, host, path string) (*http.Request, error) {
	out := (&http.Request{
		Method: r.Method, Host: host, Body: r.Body, ContentLength: r.ContentLength, Header: http.Header{},
		URL: &url.URL{Scheme: "http", Host: host, Path: path, RawQuery: r.URL.RawQuery},
	}).WithContext(r.Context())
	switch {
	case r.ContentLength == 0:
		out.Body = http.NoBody
	case isSmall(r.ContentLength):
		b := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, b); err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, "the request broke off").WithCause(err)
		}
		out.Body = io.NopCloser(bytes.NewReader(b))
	}
	for _, h := range requestHeaders {
		if v := r.Header.Get(h); v != "" {
			out.Header.Set(h, v)
		}
	}
	return out, nil
}

// proxied reports whether the path is part of what tenants may ask procd. Only
// paths in their one plain form are.
func proxied(p string) bool {
	return isPlain(p) && slices.ContainsFunc(proxiedPaths, func(prefix string) bool { return below(p, prefix) })
}

func isPlain(p string) bool { return path.Clean(p) == p && !strings.ContainsAny(p, "\\\x00") }

func below(p, prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }

func generation(header string) (sandbox.Generation, error) {
	if header == "" {
		return 0, nil
	}
	gen, err := strconv.ParseUint(header, 10, 64)
	if err != nil || gen == 0 {
		return 0, errdefs.New(errdefs.InvalidArgument, "%s: want a number above 0", nodeapi.GenerationHeader)
	}
	return sandbox.Generation(gen), nil
}

// unanswered is what a caller learns when procd, or volumed, gave no answer at all.
func unanswered(who string, err error) error {
	what := "sandbox"
	if who == volumedHost {
		what = "volume"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errdefs.New(errdefs.GatewayTimeout, "the %s did not answer in time", what).WithCause(err)
	}
	return errdefs.New(errdefs.Unavailable, "the %s does not answer", what).WithCause(err)
}

// stream copies the answer as it comes. One that breaks off breaks off here, too:
// a clean end would look complete.
func stream(w http.ResponseWriter, rc *http.ResponseController, body io.Reader) {
	if rc.Flush() != nil { // the status, before a first byte that may be long in coming
		return
	}
	small := make([]byte, smallBuffer)
	for {
		n, err := forward(w, rc, body, small)
		if n == len(small) && err == nil {
			err = streamBulk(w, rc, body)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, errCallerGone):
			return
		case err != nil:
			panic(http.ErrAbortHandler)
		}
	}
}

// streamBulk copies while more comes at once than a small buffer holds.
func streamBulk(w http.ResponseWriter, rc *http.ResponseController, body io.Reader) error {
	buf := buffers.Get().(*[largeBuffer]byte)
	defer buffers.Put(buf)
	for {
		n, err := forward(w, rc, body, buf[:])
		if err != nil || n < smallBuffer {
			return err
		}
	}
}

var errCallerGone = errors.New("the caller is gone")

// forward passes on what one read gives.
func forward(w http.ResponseWriter, rc *http.ResponseController, body io.Reader, buf []byte) (int, error) {
	n, err := body.Read(buf)
	if n == 0 {
		return 0, err
	}
	if _, err := w.Write(buf[:n]); err != nil {
		return n, errCallerGone
	}
	if rc.Flush() != nil {
		return n, errCallerGone
	}
	return n, err
}
