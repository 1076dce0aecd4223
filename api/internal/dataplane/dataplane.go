// Package dataplane carries requests to a sandbox's procd and its answers back.
//
// It finds the sandbox's node in memory, asks through the node's proxy, and
// treats every answer as what a hostile place said: bounded in size, checked for
// shape, its error codes let through from a list, its headers dropped. Only the
// database says that a sandbox does not exist; a node that can't be asked never
// does. The package keeps no state.
package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

const (
	// CallTimeout is enough for everything that does not wait for a process.
	CallTimeout = 15 * time.Second
	// WaitTimeout is for calls that wait for a process: procd gives up after 30 s.
	WaitTimeout = 40 * time.Second
)

// Resumer wakes paused sandboxes.
type Resumer interface {
	// Resume returns when the sandbox runs. Many may ask for one at a time.
	Resume(ctx context.Context, team uuid.UUID, id sandbox.ID) (store.Sandbox, error)
}

// Config names where sandboxes are found.
type Config struct {
	Store   *store.Store
	Table   *placement.Table
	Nodes   *nodes.Set
	Resumer Resumer
	Volumes Volumes
}

// Plane is safe for concurrent use.
type Plane struct {
	cfg    Config
	budget budget
}

// New makes a Plane.
func New(cfg Config) *Plane { return &Plane{cfg: cfg, budget: budget{teams: map[uuid.UUID]int64{}}} }

// Target is a sandbox of a team, as a request names it, or a volume: that answers the
// calls of procd's files alone.
type Target struct {
	Team   uuid.UUID
	ID     sandbox.ID
	Volume uuid.UUID // instead of ID
}

// Name is the id of what is asked.
func (t Target) Name() string {
	if t.Volume != uuid.Nil {
		return t.Volume.String()
	}
	return string(t.ID)
}

// Request is one request to procd. Path starts with one of procapi's; its
// variable segments are the caller's to check and escape.
type Request struct {
	Method string
	Path   string
	Query  url.Values
	Header http.Header
	Body   io.Reader // nil: none
	Length int64     // of Body; -1: unknown

	// Timeout bounds the wait for the answer's header; 0: as long as ctx.
	Timeout time.Duration
}

// Call sends in, unless nil, as JSON and decodes the answer into out, unless nil.
// check, unless nil, looks at what was decoded.
func (p *Plane) Call(ctx context.Context, to Target, req Request, in, out any, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, req.Timeout)
	defer cancel()
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		req.Body, req.Length = bytes.NewReader(b), int64(len(b))
		header := http.Header{"Content-Type": {"application/json"}}
		maps.Copy(header, req.Header)
		req.Header = header
	}
	resp, err := p.Stream(ctx, to, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	return p.decode(ctx, to.Team, resp.Body, out, check)
}

var errNonsense = errdefs.New(errdefs.BadGateway, "the sandbox's answer makes no sense")

// decode reads a success's JSON. What a lying procd makes up is its tenant's
// problem alone, and must not become ours (B13).
func (p *Plane) decode(ctx context.Context, team uuid.UUID, body io.Reader, out any, check func() error) error {
	b, err := io.ReadAll(io.LimitReader(body, freeBytes))
	if err == nil && len(b) == freeBytes {
		if err := p.budget.take(team, procapi.MaxJSONBytes); err != nil {
			return err
		}
		defer p.budget.give(team, procapi.MaxJSONBytes)
		b, err = readRest(b, body)
	}
	switch {
	case err != nil:
		return unanswered(ctx, err)
	case len(b) > procapi.MaxJSONBytes:
		return errNonsense.WithCause(fmt.Errorf("more than %d bytes", procapi.MaxJSONBytes))
	}
	n := cost(b)
	if n > teamBudget-procapi.MaxJSONBytes {
		return errNonsense.WithCause(fmt.Errorf("%d bytes that would take %d to decode", len(b), n))
	}
	if err := p.budget.take(team, n); err != nil {
		return err
	}
	defer p.budget.give(team, n)
	if err := json.Unmarshal(b, out); err != nil {
		return errNonsense.WithCause(err)
	}
	if check == nil {
		return nil
	}
	if err := check(); err != nil {
		return errNonsense.WithCause(err)
	}
	return nil
}

// readRest reads on after begin, to one byte more than is allowed at most.
func readRest(begin []byte, body io.Reader) ([]byte, error) {
	buf := bytes.NewBuffer(begin)
	_, err := buf.ReadFrom(io.LimitReader(body, procapi.MaxJSONBytes+1-int64(len(begin))))
	return buf.Bytes(), err
}

// Stream sends a request and answers a success's response, whose body the caller
// reads and closes. Everything else becomes an error. A paused sandbox is woken
// first, if it may be.
func (p *Plane) Stream(ctx context.Context, to Target, req Request) (*http.Response, error) {
	if to.Volume != uuid.Nil {
		return p.streamVolume(ctx, to, req)
	}
	at, err := p.find(ctx, to)
	if err != nil {
		return nil, err
	}
	resp, err := p.ask(ctx, to, at, req)
	var moved *elsewhere
	if !errors.As(err, &moved) {
		return resp, err
	}
	if at, err = p.findAgain(ctx, to, moved.asleep); err != nil {
		return nil, err
	}
	if req.Body != nil {
		s, ok := req.Body.(io.Seeker)
		if !ok {
			return nil, errWakingUp // and awake when it is asked again
		}
		if _, err := s.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
	if resp, err = p.ask(ctx, to, at, req); errors.As(err, &moved) {
		return nil, errWakingUp.WithCause(err)
	}
	return resp, err
}

// ask sends a request to where the sandbox is.
func (p *Plane) ask(ctx context.Context, to Target, at place, req Request) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "node", Path: nodeapi.ProcPrefix + string(to.ID) + req.Path, RawQuery: req.Query.Encode()}
	resp, err := p.exchange(ctx, at.node, req, u, http.Header{nodeapi.GenerationHeader: {strconv.FormatUint(uint64(at.gen), 10)}})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, p.refusal(ctx, to, resp)
}

// exchange sends a request to a node, with headers of ours, and answers the answer, of
// whatever status.
func (p *Plane) exchange(ctx context.Context, node string, req Request, u url.URL, own http.Header) (*http.Response, error) {
	client, err := p.cfg.Nodes.Data(node)
	if err != nil {
		return nil, err
	}
	ctx, answered := headerDeadline(ctx, req.Timeout)
	out, err := http.NewRequestWithContext(ctx, req.Method, u.String(), req.Body)
	if err != nil {
		return nil, err
	}
	if req.Header != nil {
		out.Header = req.Header.Clone()
	}
	if req.Body != nil {
		out.ContentLength = req.Length
	}
	if req.Length == 0 {
		out.Body = http.NoBody
	}
	maps.Copy(out.Header, own)
	resp, err := client.Do(out)
	if !answered() && err == nil {
		resp.Body.Close() // too late: the context has ended under it
		err = context.DeadlineExceeded
	}
	if err != nil {
		return nil, unanswered(ctx, err)
	}
	return resp, nil
}

// Check reports why a sandbox can't be asked anything; nil when it can.
func (p *Plane) Check(ctx context.Context, to Target) error {
	if to.Volume != uuid.Nil {
		_, _, err := p.cfg.Volumes.Reach(ctx, to.Team, to.Volume)
		return err
	}
	_, err := p.find(ctx, to)
	return err
}

// headerDeadline ends ctx with DeadlineExceeded as its cause when answered is not
// called in time; answered reports whether it was.
func headerDeadline(ctx context.Context, d time.Duration) (_ context.Context, answered func() bool) {
	if d == 0 {
		return ctx, func() bool { return true }
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(d, func() { cancel(context.DeadlineExceeded) })
	return ctx, timer.Stop
}

// place is where a sandbox is.
type place struct {
	node string
	gen  sandbox.Generation
}

// find looks in memory first: running sandboxes stay usable while the database
// is away (X34).
func (p *Plane) find(ctx context.Context, to Target) (place, error) {
	sb, _, ok := p.cfg.Table.Lookup(to.ID)
	if ok && !sb.Contested && sb.Team == to.Team.String() && sb.State == sandbox.Running {
		return place{sb.Node, sb.Generation}, nil
	}
	row, err := p.cfg.Store.Sandbox(ctx, to.Team, to.ID)
	if err != nil {
		return place{}, err
	}
	switch row.Status {
	case sandbox.Running:
		return place{row.Node, row.Generation}, nil
	case sandbox.Paused, sandbox.Starting:
		return p.wake(ctx, row)
	}
	return place{}, notRunning(row)
}

var (
	errStaysPaused = errdefs.New(errdefs.Unavailable, "sandbox is not running and auto_resume is disabled")
	errWakingUp    = errdefs.New(errdefs.Unavailable, "sandbox is waking up").WithRetryAfter(time.Second)
)

// elsewhere is a node's refusal: since we looked, the sandbox was paused or has become
// another generation.
type elsewhere struct{ asleep bool }

func (e *elsewhere) Error() string {
	return fmt.Sprintf("the sandbox is another generation, or asleep (%v)", e.asleep)
}

// findAgain asks the database, which is not behind, and wakes the sandbox if its node
// says that it sleeps, whatever the row says yet.
func (p *Plane) findAgain(ctx context.Context, to Target, asleep bool) (place, error) {
	row, err := p.cfg.Store.Sandbox(ctx, to.Team, to.ID)
	switch {
	case err != nil:
		return place{}, err
	case row.Status == sandbox.Running && !asleep:
		return place{row.Node, row.Generation}, nil
	case row.Status == sandbox.Running, row.Status == sandbox.Paused, row.Status == sandbox.Starting:
		return p.wake(ctx, row)
	}
	return place{}, notRunning(row)
}

// wake resumes a sandbox for the request at hand, unless its owner does not want that.
// A quota's refusal is the caller's to know.
func (p *Plane) wake(ctx context.Context, row store.Sandbox) (place, error) {
	if !autoResume(row.Config) {
		return place{}, errStaysPaused
	}
	awake, err := p.cfg.Resumer.Resume(ctx, row.TeamID, row.ID)
	switch {
	case errdefs.Is(err, errdefs.Exhausted), errdefs.Is(err, errdefs.NotFound):
		return place{}, err
	case err != nil:
		return place{}, errWakingUp.WithCause(err)
	case awake.Status != sandbox.Running:
		return place{}, notRunning(awake)
	}
	return place{awake.Node, awake.Generation}, nil
}

// autoResume reads the stored config; it is on unless it was turned off.
func autoResume(config json.RawMessage) bool {
	var c struct {
		AutoResume *bool `json:"auto_resume"`
	}
	return json.Unmarshal(config, &c) != nil || c.AutoResume == nil || *c.AutoResume
}

func notRunning(row store.Sandbox) error {
	why := ""
	if row.Status == sandbox.Failed && row.Reason != "" {
		why = " (" + clean(row.Reason) + ")"
	}
	return errdefs.New(errdefs.Unavailable, "the sandbox is not running: it is %s%s", row.Status, why)
}

// unanswered is an exchange that broke off.
func unanswered(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return errdefs.New(errdefs.GatewayTimeout, "the sandbox did not answer in time").WithCause(err)
	}
	return nodes.ErrUnreachable.WithCause(err)
}
