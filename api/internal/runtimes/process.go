package runtimes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// process is a context that serves a service, as the sandbox says.
type process struct {
	context  string
	service  string
	revision string
	running  bool
	created  time.Time
}

// before orders processes the same way for everybody.
func (p process) before(other process) bool {
	return p.created.Before(other.created) || p.created.Equal(other.created) && p.context < other.context
}

// keep finds the service's process, "" when there is none, and removes what is
// in its place: ended ones, those of another revision, and all but the oldest.
func (s *Starter) keep(ctx context.Context, to dataplane.Target, p *plan) (id string, err error) {
	all, err := s.processes(ctx, to)
	if err != nil {
		return "", err
	}
	var kept *process
	for i, other := range all {
		if other.service == p.service.ID && other.running && other.revision == p.revision && (kept == nil || other.before(*kept)) {
			kept = &all[i]
		}
	}
	if kept != nil {
		id = kept.context
	}
	for _, other := range all {
		if other.service == p.service.ID && other.context != id {
			err = errors.Join(err, s.remove(ctx, to, other.context))
		}
	}
	return id, err
}

// processes lists the contexts that are marked as ours.
func (s *Starter) processes(ctx context.Context, to dataplane.Target) ([]process, error) {
	var list procapi.ContextList
	req := dataplane.Request{Method: http.MethodGet, Path: procapi.PathContexts, Timeout: dataplane.CallTimeout}
	if err := s.cfg.Plane.Call(ctx, to, req, nil, &list, nil); err != nil {
		return nil, err
	}
	var ours []process
	for _, c := range list.Contexts {
		if c.Type == "cmd" && c.EnvVars[envService] != "" && c.EnvVars[envRevision] != "" && contextID.MatchString(c.ID) {
			ours = append(ours, process{c.ID, c.EnvVars[envService], c.EnvVars[envRevision], c.Running, c.CreatedAt})
		}
	}
	return ours, nil
}

// contextID is what an id must look like before it becomes part of a path.
var contextID = regexp.MustCompile(`^ctx-[0-9a-f]{8,16}$`)

func (s *Starter) newContext(ctx context.Context, to dataplane.Target, in procapi.CreateContext) (c procapi.Context, err error) {
	req := dataplane.Request{Method: http.MethodPost, Path: procapi.PathContexts, Timeout: dataplane.CallTimeout}
	err = s.cfg.Plane.Call(ctx, to, req, in, &c, func() error { return checkID(c.ID) })
	return c, err
}

func (s *Starter) getContext(ctx context.Context, to dataplane.Target, id string) (c procapi.Context, err error) {
	req := dataplane.Request{Method: http.MethodGet, Path: procapi.PathContexts + "/" + id, Timeout: dataplane.CallTimeout}
	err = s.cfg.Plane.Call(ctx, to, req, nil, &c, nil)
	return c, err
}

func (s *Starter) input(ctx context.Context, to dataplane.Target, id, data string) error {
	req := dataplane.Request{Method: http.MethodPost, Path: procapi.PathContexts + "/" + id + "/input", Timeout: dataplane.CallTimeout}
	return s.cfg.Plane.Call(ctx, to, req, procapi.ExecRequest{Data: data}, nil, nil)
}

func (s *Starter) remove(ctx context.Context, to dataplane.Target, id string) error {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	req := dataplane.Request{Method: http.MethodDelete, Path: procapi.PathContexts + "/" + id, Timeout: pruneTimeout}
	err := s.cfg.Plane.Call(ctx, to, req, nil, nil, nil)
	if err != nil && errdefs.From(err).Code == dataplane.ContextNotFound {
		return nil
	}
	return err
}

func checkID(id string) error {
	if !contextID.MatchString(id) {
		return fmt.Errorf("context id %.40q", id)
	}
	return nil
}

// probe looks once whether the service is ready: it accepts a connection and,
// where it has a health check, answers that with 2xx or 3xx.
func (s *Starter) probe(ctx context.Context, to dataplane.Target, p *plan) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := s.cfg.Tunnels.Dial(ctx, to, Listener(p.service))
	if err != nil {
		return err
	}
	defer conn.Close()
	check := p.service.HealthCheck
	if check == nil || check.Path == nil || p.input != "" {
		return nil
	}
	return probeHTTP(ctx, conn, *check.Path)
}

// maxHealthHeader bounds what an answer to a health check may cost.
const maxHealthHeader = 16 << 10

func probeHTTP(ctx context.Context, conn net.Conn, path string) error {
	u, err := url.ParseRequestURI(path)
	if err != nil {
		return err
	}
	u.Scheme, u.Host = "http", "localhost"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	t := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHealthHeader,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("health check: status %d", resp.StatusCode)
	}
	return nil
}
