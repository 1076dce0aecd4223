package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
)

// endTimeout bounds the wait for a killed sandbox's end.
const endTimeout = 20 * time.Second

// Remove ends the sandbox's processes and removes every trace of its container:
// task, container and snapshot. What does not exist is no error; after an error
// the container is still listed.
func (r *Runtime) Remove(ctx context.Context, id sandbox.ID) error {
	r.seen.end(id) // to who asks for it, its exit is no news
	for _, step := range []struct {
		name string
		do   func(context.Context, string) error
	}{
		{"task", r.removeTask},
		{"container", r.removeContainer},
		{"snapshot", r.removeSnapshot},
	} {
		if err := step.do(ctx, string(id)); err != nil && !cerrdefs.IsNotFound(err) {
			return fmt.Errorf("removing %s of %s: %w", step.name, id, err)
		}
		if err := failpoint.Hit("remove.after-" + step.name); err != nil {
			return err
		}
	}
	r.seen.gone(id, time.Now())
	return nil
}

func (r *Runtime) removeTask(ctx context.Context, id string) error {
	if err := r.endTask(ctx, id); err != nil {
		return err
	}
	_, err := r.client.TaskService().Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})
	return errgrpc.ToNative(err)
}

// endTask kills the task and waits for its end, which may come before the kill and be
// told later. A shim that dies on the way is an end, too: containerd then removes the
// task by itself.
func (r *Runtime) endTask(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	tasks := r.client.TaskService()
	_, err := tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true})
	if err = errgrpc.ToNative(err); err != nil && !cerrdefs.IsNotFound(err) {
		if cerrdefs.IsFailedPrecondition(err) {
			return nil // nothing to end
		}
		return err
	}
	_, err = tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: id})
	if ctx.Err() != nil {
		return fmt.Errorf("waiting for the end: %w", errgrpc.ToNative(err))
	}
	return nil
}

func (r *Runtime) removeContainer(ctx context.Context, id string) error {
	return r.client.ContainerService().Delete(ctx, id)
}

func (r *Runtime) removeSnapshot(ctx context.Context, id string) error {
	return r.client.SnapshotService(r.cfg.Snapshotter).Remove(ctx, id)
}

// List finds everything that containerd has under a sandbox's id: whole
// containers, and what is left of broken ones.
func (r *Runtime) List(ctx context.Context) ([]Status, error) {
	found := map[sandbox.ID]*Status{}
	at := func(name string) *Status {
		id, err := sandbox.ParseID(name)
		if err != nil {
			return &Status{} // not ours: the image's layers among others
		}
		if found[id] == nil {
			found[id] = &Status{ID: id}
		}
		return found[id]
	}
	containers, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	for _, c := range containers {
		at(c.ID).Labels = c.Labels
	}
	tasks, err := r.tasks(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		s := at(t.ID)
		s.PID, s.Task, s.Ended = int(t.Pid), true, ended(t)
	}
	err = r.client.SnapshotService(r.cfg.Snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if s := at(info.Name); s.Labels == nil {
			s.Labels = info.Labels
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing snapshots: %w", err)
	}
	all := make([]Status, 0, len(found))
	for _, s := range found {
		all = append(all, *s)
	}
	return all, nil
}

// tasks lists the tasks, by their containers' ids.
func (r *Runtime) tasks(ctx context.Context) ([]*tasktypes.Process, error) {
	res, err := r.client.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing tasks: %w", errgrpc.ToNative(err))
	}
	return res.Tasks, nil
}

// ended reports whether the task's shim says that its first process has ended.
// Nothing else proves that: of a shim that is slow to answer containerd leaves the
// task out of the list, and of one that answers with an error it lists the task
// without a status.
func ended(t *tasktypes.Process) bool { return t.Status == tasktypes.Status_STOPPED }

var errStream = errors.New("the event stream has ended")
