// Package task is containerd's shim v2 task service (ttrpc, version 3) for a
// group of gVisor sandboxes.
//
// A container is one sandbox: a sentry and a gofer, which are children of this
// process from the end of `runsc create` on. The sentry's exit status is that of
// the container's first process. State is answered from memory; a runsc process
// is started only for what changes a sandbox. The [Service] owns the table of
// containers and the decision when the process may end; it never touches
// containerd's state but through events.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"

	"s0.run/shim/internal/group"
	"s0.run/shim/internal/reap"
)

// Config is what a Service needs; all fields are required.
type Config struct {
	Reaper *reap.Reaper
	// Publish sends an event to containerd. It may block while that is away.
	Publish func(ctx context.Context, topic string, event any) error
	// Exit begins the end of the process and returns.
	Exit func()
	Log  *slog.Logger
}

// Service serves the task API. Run must be running.
type Service struct {
	cfg    Config
	events chan any

	idle *time.Timer // fires when it is time to look whether there is something to do

	mu         sync.Mutex
	containers map[string]*container
	creating   map[string]*creation
	expected   map[string]time.Time // containers that will come, and until when we wait for them
	closing    bool                 // the process ends; nothing new is accepted
}

var _ taskapi.TTRPCTaskService = (*Service)(nil)

// New makes a Service without containers.
func New(cfg Config) *Service {
	return &Service{
		cfg:        cfg,
		events:     make(chan any, eventQueue),
		idle:       time.NewTimer(idleGrace),
		containers: map[string]*container{},
		creating:   map[string]*creation{},
		expected:   map[string]time.Time{},
	}
}

// RegisterTTRPC makes the service known to a server.
func (s *Service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// container finds a container by the id that containerd gave it.
func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.containers[id]; ok {
		return c, nil
	}
	return nil, errgrpc.ToGRPCf(errdefs.ErrNotFound, "container %s", id)
}

// Create makes the sandbox, with its first process not yet running. From an image
// of processes it takes them up at Start; files are there before.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	if r.Terminal {
		return nil, errgrpc.ToGRPCf(errdefs.ErrNotImplemented, "a terminal for the first process of %s", r.ID)
	}
	ctx, err := s.admit(ctx, r.ID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	c, err := s.create(ctx, r)
	s.settle(r.ID, c)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("creating %s: %w", r.ID, err))
	}
	return &taskapi.CreateTaskResponse{Pid: uint32(c.pid)}, nil
}

// Start runs the first process of a container, or one that Exec added.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	pid := c.pid
	if r.ExecID == "" {
		err = c.start(ctx)
	} else {
		pid, err = c.startExec(ctx, r.ExecID)
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

// Delete removes an ended container, or an ended process of one. It ends a Create
// that is under way: containerd calls it when the caller of that has gone away.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	if err := s.interrupt(ctx, r.ID); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	if r.ExecID != "" {
		e, err := c.deleteExec(r.ExecID)
		return deleteResponse(e), errgrpc.ToGRPC(err)
	}
	e, err := c.delete(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("deleting %s: %w", r.ID, err))
	}
	s.publish(&events.TaskDelete{ContainerID: c.id, Pid: uint32(e.Pid), ExitStatus: uint32(e.Status), ExitedAt: timestamp(e.At)})
	s.forget(r.ID)
	return deleteResponse(e), nil
}

// Kill signals a process. SIGKILL of a container's first process ends the
// sandbox, whatever state that is in.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*empty, error) {
	return s.on(r.ID, func(c *container) error {
		if r.ExecID != "" {
			return c.killExec(ctx, r.ExecID, signal(r.Signal))
		}
		return c.kill(ctx, signal(r.Signal), r.All)
	})
}

// Pause freezes the container's processes in place.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*empty, error) {
	return s.on(r.ID, func(c *container) error { return c.pause(ctx) })
}

// Resume lets them run again.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*empty, error) {
	return s.on(r.ID, func(c *container) error { return c.resume(ctx) })
}

// Exec adds a process, which Start runs.
func (s *Service) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*empty, error) {
	return s.on(r.ID, func(c *container) error { return c.addExec(r) })
}

// ResizePty changes the size of a process's terminal.
func (s *Service) ResizePty(_ context.Context, r *taskapi.ResizePtyRequest) (*empty, error) {
	return s.on(r.ID, func(c *container) error {
		e, err := c.exec(r.ExecID)
		if err != nil {
			return err
		}
		return e.resize(uint16(r.Height), uint16(r.Width))
	})
}

// CloseIO ends a process's input.
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*empty, error) {
	return s.on(r.ID, func(c *container) error { return c.closeStdin(r.ExecID) })
}

// Update changes the container's limits in place.
func (s *Service) Update(_ context.Context, r *taskapi.UpdateTaskRequest) (*empty, error) {
	return s.on(r.ID, func(c *container) error { return c.update(r.Resources) })
}

// on does something with a container.
func (s *Service) on(id string, do func(*container) error) (*empty, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	if err := do(c); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &empty{}, nil
}

// State tells what is known of a process, without asking the sandbox.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		return c.status(), nil
	}
	e, err := c.exec(r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return e.status(), nil
}

// Wait waits for a process's end.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	end := c.end
	if r.ExecID != "" {
		e, err := c.exec(r.ExecID)
		if err != nil {
			return nil, errgrpc.ToGRPC(err)
		}
		end = e.end
	}
	e, err := end.wait(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &taskapi.WaitResponse{ExitStatus: uint32(e.Status), ExitedAt: timestamp(e.At)}, nil
}

// Pids lists the host processes that stand for the container's. A container
// keeps its pid when it has ended: containerd takes one without for a leftover
// and deletes it, and with it the exit status that somebody may come for.
func (s *Service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return c.pids()
}

// Stats answers the usage of the container's cgroup.
func (s *Service) Stats(_ context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return c.stats()
}

// Connect tells the pids. A shim that starts a container calls it first, to make
// this process wait for one that it does not know yet. Nobody else does: containerd asks
// for the pid of a container that another call of its own has deleted meanwhile.
func (s *Service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	res := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if id, ok := group.Announced(r); ok {
		return res, errgrpc.ToGRPC(s.expect(id))
	}
	pid, ok := s.pid(r.ID)
	if !ok {
		return nil, errgrpc.ToGRPCf(errdefs.ErrNotFound, "container %s", r.ID)
	}
	res.TaskPid = uint32(pid)
	return res, nil
}

// Shutdown ends the process if nobody needs it. containerd calls it after each
// container's delete.
func (s *Service) Shutdown(_ context.Context, r *taskapi.ShutdownRequest) (*empty, error) {
	s.mu.Lock()
	delete(s.expected, r.ID)
	s.mu.Unlock()
	s.closeIfIdle()
	return &empty{}, nil
}

// errClosing is returned to who comes while the process ends.
var errClosing = fmt.Errorf("shim is ending: %w", errdefs.ErrUnavailable)

var errNotRunning = errors.New("not running")
