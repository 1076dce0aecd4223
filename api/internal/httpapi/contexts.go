package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/wsapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// invalidRequest is procd's word, which operations inside a sandbox use.
const invalidRequest = "invalid_request"

var contextIDPattern = regexp.MustCompile(`^ctx-[0-9a-f]{8}$`)

// target is the sandbox of the caller's team that a path names.
func target(r *http.Request, id string) (dataplane.Target, error) {
	parsed, err := sandboxID(id)
	return dataplane.Target{Team: principalOf(r).TeamID, ID: parsed}, err
}

// contextPath is where procd has a context; "" for an id that no context has.
func contextPath(contextID string) string {
	if !contextIDPattern.MatchString(contextID) {
		return ""
	}
	return procapi.PathContexts + "/" + contextID
}

// callContext calls procd about one context. op is "" or a path below the
// context's; in and out may be nil.
func (a *API) callContext(r *http.Request, id, contextID string, c call) error {
	to, err := target(r, id)
	if err != nil {
		return err
	}
	base := contextPath(contextID)
	if base == "" { // of an id that can't be, only whether the sandbox is there can be told
		if err := a.cfg.Plane.Check(r.Context(), to); err != nil {
			return err
		}
		return errdefs.WithCode(errdefs.NotFound, dataplane.ContextNotFound, "context not found")
	}
	req := dataplane.Request{Method: c.method, Path: base + c.op, Header: c.header, Timeout: c.timeout}
	if req.Timeout == 0 {
		req.Timeout = dataplane.CallTimeout
	}
	return a.cfg.Plane.Call(r.Context(), to, req, c.in, c.out, c.check)
}

// call is one call about a context.
type call struct {
	method  string
	op      string
	header  http.Header
	timeout time.Duration // 0: CallTimeout
	in, out any
	check   func() error
}

const (
	// waitsPerTeam bounds the requests that wait for a process, each of which holds
	// a connection and may be patient for a day (A23).
	waitsPerTeam = 512

	// answerTime is what an answer takes beside the wait.
	answerTime = dataplane.WaitTimeout - procapi.DefaultTimeout
)

// wait is a request that waits for a process.
type wait struct {
	timeout time.Duration // for procd's answer
	header  http.Header   // tells procd
	done    func()
}

// wait lets a request wait for as long as its client says.
func (a *API) wait(w http.ResponseWriter, r *http.Request, seconds *float64) (*wait, error) {
	patience := procapi.DefaultTimeout
	if seconds != nil {
		if !(*seconds > 0 && *seconds <= procapi.MaxTimeout.Seconds()) { // NaN is neither
			return nil, errdefs.New(errdefs.InvalidArgument, "Request-Timeout: want seconds, above 0 and at most %.0f", procapi.MaxTimeout.Seconds())
		}
		patience = max(time.Millisecond, time.Duration(*seconds*float64(time.Second)))
	}
	done, ok := a.waits.Enter(principalOf(r).TeamID)
	if !ok {
		return nil, errdefs.New(errdefs.Exhausted, "%d requests of the team wait for processes, the most that may", waitsPerTeam).WithRetryAfter(time.Second)
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience + replyTimeout))
	ms := strconv.FormatInt(patience.Milliseconds(), 10)
	return &wait{timeout: patience + answerTime, header: http.Header{procapi.TimeoutHeader: {ms}}, done: done}, nil
}

// ListContexts implements GET /api/v1/sandboxes/{id}/contexts.
func (a *API) ListContexts(w http.ResponseWriter, r *http.Request, id string) {
	var out openapi.ContextList
	to, err := target(r, id)
	if err == nil {
		err = a.cfg.Plane.Call(r.Context(), to, dataplane.Request{
			Method: http.MethodGet, Path: procapi.PathContexts, Timeout: dataplane.CallTimeout,
		}, nil, &out, func() error {
			for i := range out.Contexts {
				if err := checkContext(&out.Contexts[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if out.Contexts == nil {
		out.Contexts = []openapi.ContextResponse{}
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// checkContext lets through what the contract says, and nothing that a decoder of
// it would refuse.
func checkContext(c *openapi.ContextResponse) error {
	if !contextIDPattern.MatchString(c.ID) || !c.Type.Valid() {
		return fmt.Errorf("context %.20q of type %.20q", c.ID, c.Type)
	}
	if c.EnvVars == nil {
		c.EnvVars = map[string]string{}
	}
	return checkState(c.State)
}

func checkState(s *openapi.ContextState) error {
	if s != nil && !s.Valid() {
		return fmt.Errorf("context state %.20q", *s)
	}
	return nil
}

// CreateContext implements POST /api/v1/sandboxes/{id}/contexts.
func (a *API) CreateContext(w http.ResponseWriter, r *http.Request, id string, params openapi.CreateContextParams) {
	var req openapi.CreateContextRequest
	err := decode(w, r, inputBytes, &req)
	if err == nil && !req.Type.Valid() {
		err = errdefs.New(errdefs.InvalidArgument, "unsupported process type")
	}
	var to dataplane.Target
	if err == nil {
		to, err = target(r, id)
	}
	call := dataplane.Request{Method: http.MethodPost, Path: procapi.PathContexts, Timeout: dataplane.WaitTimeout}
	if err == nil && req.WaitUntilDone != nil && *req.WaitUntilDone {
		var wait *wait
		if wait, err = a.wait(w, r, params.RequestTimeout); err == nil {
			defer wait.done()
			call.Header, call.Timeout = wait.header, wait.timeout
		}
	}
	var out openapi.ContextResponse
	if err == nil {
		err = a.cfg.Plane.Call(r.Context(), to, call, req, &out, func() error { return checkContext(&out) })
	}
	a.answer(w, r, http.StatusCreated, out, err)
}

// GetContext implements GET /api/v1/sandboxes/{id}/contexts/{context_id}.
func (a *API) GetContext(w http.ResponseWriter, r *http.Request, id, contextID string) {
	var out openapi.ContextResponse
	err := a.callContext(r, id, contextID, call{method: http.MethodGet, out: &out, check: func() error { return checkContext(&out) }})
	a.answer(w, r, http.StatusOK, out, err)
}

// DeleteContext implements DELETE /api/v1/sandboxes/{id}/contexts/{context_id}.
func (a *API) DeleteContext(w http.ResponseWriter, r *http.Request, id, contextID string) {
	err := a.callContext(r, id, contextID, call{method: http.MethodDelete})
	a.answer(w, r, http.StatusOK, openapi.Deleted{Deleted: true}, err)
}

// RestartContext implements POST …/contexts/{context_id}/restart.
func (a *API) RestartContext(w http.ResponseWriter, r *http.Request, id, contextID string) {
	var out openapi.ContextResponse
	err := a.callContext(r, id, contextID, call{
		method: http.MethodPost, op: "/restart", timeout: dataplane.WaitTimeout, out: &out, check: func() error { return checkContext(&out) },
	})
	a.answer(w, r, http.StatusOK, out, err)
}

// ExecContext implements POST …/contexts/{context_id}/exec.
func (a *API) ExecContext(w http.ResponseWriter, r *http.Request, id, contextID string, params openapi.ExecContextParams) {
	var req openapi.ContextExecRequest
	err := decode(w, r, inputBytes, &req, "data")
	var wait *wait
	if err == nil {
		wait, err = a.wait(w, r, params.RequestTimeout)
	}
	var out openapi.ContextExecResponse
	if err == nil {
		defer wait.done()
		err = a.callContext(r, id, contextID, call{
			method: http.MethodPost, op: "/exec", header: wait.header, timeout: wait.timeout,
			in: req, out: &out, check: func() error { return checkState(out.State) },
		})
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// WriteContextInput implements POST …/contexts/{context_id}/input.
func (a *API) WriteContextInput(w http.ResponseWriter, r *http.Request, id, contextID string) {
	var req openapi.ContextInputRequest
	err := decode(w, r, inputBytes, &req, "data")
	if err == nil {
		err = a.callContext(r, id, contextID, call{method: http.MethodPost, op: "/input", in: req})
	}
	a.answer(w, r, http.StatusOK, openapi.Written{Written: true}, err)
}

// ResizeContext implements POST …/contexts/{context_id}/resize.
func (a *API) ResizeContext(w http.ResponseWriter, r *http.Request, id, contextID string) {
	var req openapi.PTYSize
	err := decode(w, r, controlBytes, &req, "rows", "cols")
	if err == nil && (req.Rows == 0 || req.Cols == 0) {
		err = errdefs.New(errdefs.InvalidArgument, "rows and cols must be greater than 0")
	}
	if err == nil {
		err = a.callContext(r, id, contextID, call{method: http.MethodPost, op: "/resize", in: req})
	}
	a.answer(w, r, http.StatusOK, openapi.Resized{Resized: true}, err)
}

// SignalContext implements POST …/contexts/{context_id}/signal.
func (a *API) SignalContext(w http.ResponseWriter, r *http.Request, id, contextID string) {
	var req openapi.ContextSignalRequest
	err := decode(w, r, controlBytes, &req, "signal")
	if err == nil {
		err = a.callContext(r, id, contextID, call{method: http.MethodPost, op: "/signal", in: req})
	}
	a.answer(w, r, http.StatusOK, openapi.Signaled{Signaled: true}, err)
}

// GetContextStats implements GET …/contexts/{context_id}/stats.
func (a *API) GetContextStats(w http.ResponseWriter, r *http.Request, id, contextID string) {
	var said procapi.ContextStats
	err := a.callContext(r, id, contextID, call{method: http.MethodGet, op: "/stats", out: &said, check: func() error { return checkStats(&said) }})
	kind := openapi.ContextType(said.Type)
	out := openapi.ContextStats{
		ContextID: &contextID, Type: &kind, Running: &said.Running, Paused: &said.Paused,
		Usage: &openapi.ResourceUsage{
			CPUNanos: &said.CPUNanos, Processes: &said.Processes, ThreadCount: &said.Threads,
			MemoryRss: &said.RSSBytes, MemoryBytes: &said.RSSBytes, MemoryVms: &said.VMSBytes,
		},
	}
	if said.Alias != "" {
		out.Alias = &said.Alias
	}
	a.answer(w, r, http.StatusOK, out, err)
}

func checkStats(s *procapi.ContextStats) error {
	if !openapi.ContextType(s.Type).Valid() {
		return fmt.Errorf("context of type %.20q", s.Type)
	}
	if s.Processes < 0 || s.Threads < 0 || s.CPUNanos < 0 || s.RSSBytes < 0 || s.VMSBytes < 0 {
		return errors.New("negative usage")
	}
	return nil
}

// AttachContext implements GET …/contexts/{context_id}/ws.
func (a *API) AttachContext(w http.ResponseWriter, r *http.Request, id, contextID string, params openapi.AttachContextParams) {
	want := wsapi.Session{ContextPath: contextPath(contextID)}
	if params.Offset != nil {
		want.Offset = *params.Offset
	}
	var err error
	if want.To, err = target(r, id); err == nil {
		err = a.cfg.Sockets.Attach(w, r, want)
	}
	if err != nil {
		a.fail(w, r, err)
	}
}
