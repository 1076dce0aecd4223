package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
)

// Checkpoint saves the sandbox's processes, memory and files into dir, which exists
// and is empty, and ends the sandbox. After an error the image is worth nothing and
// the sandbox may live: its end, if it comes, is an exit like any other.
func (r *Runtime) Checkpoint(ctx context.Context, id sandbox.ID, dir string) error {
	opts, err := typeurl.MarshalAnyToProto(&options.CheckpointOptions{ImagePath: dir, Exit: true})
	if err != nil {
		return err
	}
	r.seen.end(id)
	_, err = r.client.TaskService().Checkpoint(ctx, &tasksapi.CheckpointTaskRequest{ContainerID: string(id), Options: opts})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("checkpoint of %s: %w", id, errgrpc.ToNative(err))
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	r.seen.lives(id)
	// An exit that came meanwhile was no news then; it is now.
	if task, gerr := r.client.TaskService().Get(undo, &tasksapi.GetRequest{ContainerID: string(id)}); gerr == nil && ended(task.Process) {
		r.report(undo, Exit{ID: id, Status: task.Process.ExitStatus, At: task.Process.ExitedAt.AsTime(), Reason: exited, pid: task.Process.Pid})
	}
	return err
}

// Saved reports whether dir holds a complete image: the shim has said so, whoever
// died since it was asked.
func (r *Runtime) Saved(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, shimapi.ImageComplete))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// fromCheckpoint is how containerd is told of the image that a task starts from.
func fromCheckpoint(dir string) (*anypb.Any, error) {
	if dir == "" {
		return nil, nil
	}
	return typeurl.MarshalAnyToProto(&options.Options{CriuImagePath: dir})
}
