package runtimes

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/services"
	"s0.run/api/internal/tunnel"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

var to = dataplane.Target{Team: uuid.New(), ID: "local-abcdefghijklmnopqrstuvwxyz"}

// inside is a sandbox: its contexts, and what listens.
type inside struct {
	t *testing.T

	mu       sync.Mutex
	contexts map[string]*procapi.Context
	made     int
	inputs   []string
	listens  func(l tunnel.Listener) bool
	health   int                      // status of every health check
	created  func(c *procapi.Context) // called for each new context
	fail     error                    // of every call
}

func newInside(t *testing.T) (*inside, *Starter) {
	in := &inside{t: t, contexts: map[string]*procapi.Context{}, listens: func(tunnel.Listener) bool { return false }, health: 200, created: func(*procapi.Context) {}}
	s := New(Config{Plane: in, Tunnels: in, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	return in, s
}

func (in *inside) Call(_ context.Context, at dataplane.Target, req dataplane.Request, body, out any, check func() error) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.fail != nil {
		return in.fail
	}
	if at != to {
		in.t.Errorf("asked %+v", at)
	}
	answer := func(v any) error {
		b, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(b, out)
		}
		if err == nil && check != nil {
			err = check()
		}
		return err
	}
	name, call, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(req.Path, procapi.PathContexts), "/"), "/")
	switch c := in.contexts[name]; {
	case req.Method == http.MethodPost && name == "":
		return answer(in.create(body.(procapi.CreateContext)))
	case name == "":
		list := procapi.ContextList{}
		for _, c := range in.contexts {
			list.Contexts = append(list.Contexts, *c)
		}
		return answer(list)
	case c == nil:
		return errdefs.WithCode(errdefs.NotFound, dataplane.ContextNotFound, "no such context")
	case req.Method == http.MethodDelete:
		delete(in.contexts, name)
		return nil
	case call == "input":
		in.inputs = append(in.inputs, body.(procapi.ExecRequest).Data)
		return nil
	default:
		return answer(c)
	}
}

func (in *inside) create(req procapi.CreateContext) procapi.Context {
	in.made++
	c := &procapi.Context{
		ID: fmt.Sprintf("ctx-%08x", in.made), Type: req.Type, Command: req.CMD.Command, Cwd: req.Cwd, EnvVars: req.EnvVars, Running: true, CreatedAt: time.Now(),
	}
	in.contexts[c.ID] = c
	in.created(c)
	return *c
}

func (in *inside) Dial(_ context.Context, _ dataplane.Target, l tunnel.Listener) (net.Conn, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.listens(l) {
		return nil, errdefs.WithCode(errdefs.Unavailable, procapi.CodePortRefused, "nothing listens there")
	}
	ours, theirs := net.Pipe()
	status := in.health
	go func() {
		defer theirs.Close()
		if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
			fmt.Fprintf(theirs, "HTTP/1.1 %d x\r\nContent-Length: 0\r\nLocation: /elsewhere\r\n\r\n", status)
		}
	}()
	return ours, nil
}

func command(change ...func(*openapi.SandboxAppService)) openapi.SandboxAppService {
	s := openapi.SandboxAppService{ID: "web", Port: new(int32(8080)), Runtime: &openapi.ServiceRuntime{
		Type: openapi.ServiceRuntimeTypeCMD, Command: []string{"serve"}, Cwd: new("/srv"), EnvVars: map[string]string{"A": "1"},
	}}
	for _, c := range change {
		c(&s)
	}
	return s
}

// connect connects to a service and hangs up.
func connect(ctx context.Context, s *Starter, svc openapi.SandboxAppService) error {
	conn, err := s.Dial(ctx, to, svc)
	if err == nil {
		conn.Close()
	}
	return err
}

func TestManualServicesAreNotStarted(t *testing.T) {
	t.Parallel()
	in, s := newInside(t)
	svc := command(func(s *openapi.SandboxAppService) { s.Runtime.Type = openapi.ServiceRuntimeTypeManual })
	if err := connect(t.Context(), s, svc); errdefs.From(err).Message != ErrNotListening.Message || errdefs.From(err).Code != "unavailable" || in.made != 0 {
		t.Errorf("%v, %d started", err, in.made)
	}
	in.listens = func(l tunnel.Listener) bool { return l == tunnel.Listener{Port: "8080"} }
	conn, err := s.Dial(t.Context(), to, svc)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestACommandIsStartedOnceForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, s := newInside(t)
		ready := false
		in.listens = func(tunnel.Listener) bool { return ready }
		in.created = func(*procapi.Context) {
			time.AfterFunc(3*time.Second, func() { in.mu.Lock(); ready = true; in.mu.Unlock() })
		}
		in.health = 404
		time.AfterFunc(10*time.Second, func() { in.mu.Lock(); in.health = 302; in.mu.Unlock() })
		svc := command(func(s *openapi.SandboxAppService) {
			s.HealthCheck = &openapi.ServiceHealthCheck{Path: new("/ok?deep=1")}
		})
		began := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				time.Sleep(time.Second) // some find it starting, some listening and not yet healthy
				conn, err := s.Dial(t.Context(), to, svc)
				if err != nil {
					t.Error(err)
					return
				}
				conn.Close()
				if waited := time.Since(began); waited < 10*time.Second || waited > 10*time.Second+2*lastPoll {
					t.Errorf("connected after %s", waited)
				}
			})
		}
		wg.Wait()
		if in.made != 1 {
			t.Errorf("%d processes", in.made)
		}
		c := in.contexts["ctx-00000001"]
		env := fmt.Sprintf("%s %s %s %s", c.EnvVars[envService], c.EnvVars[envPort], c.EnvVars[envRuntime], c.EnvVars["A"])
		if env != "web 8080 cmd 1" || c.Cwd != "/srv" || c.Command[0] != "serve" || svc.Runtime.EnvVars[envService] != "" {
			t.Errorf("%+v", c)
		}
	})
}

func TestACommandThatDiesIsNotStartedForEveryRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, s := newInside(t)
		in.created = func(c *procapi.Context) { c.Running = false }
		for range 10 {
			err := connect(t.Context(), s, command())
			if errdefs.From(err).Message != errNotStarted.Message {
				t.Fatal(err)
			}
		}
		if in.made != startAttempts || len(in.contexts) > 1 {
			t.Errorf("%d starts, %d contexts left", in.made, len(in.contexts))
		}
		time.Sleep(failedPause + time.Second)
		in.created = func(*procapi.Context) {}
		in.listens = func(tunnel.Listener) bool { return len(in.contexts) > 0 && in.made > startAttempts }
		if err := connect(t.Context(), s, command()); err != nil {
			t.Error(err)
		}
	})
}

func TestACommandThatNeverListensIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, s := newInside(t)
		began := time.Now()
		if err := connect(t.Context(), s, command()); errdefs.From(err).Message != errNotStarted.Message || errdefs.From(err).Code != "unavailable" {
			t.Error(err)
		}
		if waited := time.Since(began); waited < startTimeout || waited > startTimeout+time.Second {
			t.Errorf("after %s", waited)
		}
		// A caller may give up earlier; the start goes on.
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := connect(ctx, s, command()); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		in.mu.Lock()
		in.listens = func(tunnel.Listener) bool { return true }
		in.mu.Unlock()
		if err := connect(t.Context(), s, command()); err != nil {
			t.Error(err)
		}
	})
}

func TestProcessesOfOthersAreTakenOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, s := newInside(t)
		p := newPlan(command())
		old := newPlan(command(func(s *openapi.SandboxAppService) { s.Runtime.Command = []string{"old"} }))
		other := newPlan(command(func(s *openapi.SandboxAppService) { s.ID = "other" }))
		in.create(old.create)        // 1: another revision
		in.create(other.create)      // 2: another service
		first := in.create(p.create) // 3
		time.Sleep(time.Second)
		in.create(p.create)                                                                                                                           // 4: a duplicate, of another replica
		in.contexts["ctx-00000005"] = &procapi.Context{ID: "ctx-00000005", Type: "cmd", Running: true, EnvVars: map[string]string{envService: "web"}} // a tenant's own
		calls := 0
		in.listens = func(tunnel.Listener) bool { calls++; return calls > 1 }
		if err := connect(t.Context(), s, command()); err != nil {
			t.Fatal(err)
		}
		if in.made != 4 || len(in.contexts) != 3 || in.contexts[first.ID] == nil || in.contexts["ctx-00000002"] == nil || in.contexts["ctx-00000005"] == nil {
			t.Errorf("made %d, left %v", in.made, in.contexts)
		}
		if err := s.Prune(t.Context(), to, []openapi.SandboxAppService{command()}); err != nil {
			t.Fatal(err)
		}
		if len(in.contexts) != 2 || in.contexts[first.ID] == nil {
			t.Errorf("after pruning: %v", in.contexts)
		}
		if err := s.Prune(t.Context(), to, nil); err != nil || len(in.contexts) != 1 || in.contexts["ctx-00000005"] == nil {
			t.Errorf("after the last service: %v, %v", in.contexts, err)
		}
	})
}

func TestAFunctionIsGivenItsProgram(t *testing.T) {
	t.Parallel()
	in, s := newInside(t)
	svc := openapi.SandboxAppService{ID: "fn", Port: new(int32(services.FunctionPort)), Runtime: &openapi.ServiceRuntime{
		Type:     openapi.ServiceRuntimeTypeFunction,
		Function: &openapi.ServiceFunction{Handler: new("h"), Source: &openapi.ServiceFunctionSource{Code: new("def h(r): pass")}},
	}}
	in.listens = func(l tunnel.Listener) bool { return len(in.inputs) > 0 && l == tunnel.Listener{Function: "fn"} }
	if err := connect(t.Context(), s, svc); err != nil {
		t.Fatal(err)
	}
	c := in.contexts["ctx-00000001"]
	if c.Command[0] != "python3" || c.EnvVars[envRuntime] != "function" || c.EnvVars[envPort] != "49983" || len(in.inputs) != 1 {
		t.Errorf("%+v", c)
	}
	if changed := newPlan(openapi.SandboxAppService{ID: "fn", Port: svc.Port, Runtime: &openapi.ServiceRuntime{
		Type:     openapi.ServiceRuntimeTypeFunction,
		Function: &openapi.ServiceFunction{Handler: new("h"), Source: &openapi.ServiceFunctionSource{Code: new("def h(r): return 1")}},
	}}); changed.revision == c.EnvVars[envRevision] {
		t.Error("other code has the same revision")
	}
}

func TestB13_ALyingSandbox(t *testing.T) {
	t.Parallel()
	in, s := newInside(t)
	in.created = func(c *procapi.Context) { c.ID = "../files" }
	if err := connect(t.Context(), s, command()); errdefs.From(err).Message != errNotStarted.Message {
		t.Error(err)
	}
	in.mu.Lock()
	in.contexts = map[string]*procapi.Context{"x": {ID: "x/../y", Type: "cmd", Running: true, EnvVars: newPlan(command()).create.EnvVars}}
	in.mu.Unlock()
	if all, err := s.processes(t.Context(), to); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	in.mu.Lock()
	in.fail = errdefs.New(errdefs.Unavailable, "the sandbox is not running: it is paused")
	in.mu.Unlock()
	if err := connect(t.Context(), s, command(func(s *openapi.SandboxAppService) { s.ID = "b" })); errdefs.From(err).Message != "the sandbox is not running: it is paused" {
		t.Error(err)
	}
}
