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
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
	"s0.run/noded/internal/snapshots"
)

// Checkpoint saves the sandbox into dir, which exists and is empty, and ends it. After
// an error the sandbox may be frozen, and may still be being saved: see [Runtime.Thaw].
func (r *Runtime) Checkpoint(ctx context.Context, id sandbox.ID, dir string) error {
	r.seen.end(id)
	if err := r.checkpoint(ctx, id, dir); err != nil {
		return fmt.Errorf("checkpoint of %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

func (r *Runtime) checkpoint(ctx context.Context, id sandbox.ID, dir string) error {
	images := []string{filepath.Join(dir, snapshots.FilesPart), filepath.Join(dir, snapshots.MemoryPart)}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"dirs", func() error { return makeImages(dir, images) }},
		{"freeze", func() error { return r.freeze(ctx, id) }}, // so that both are of one instant
		{"files", func() error {
			return r.save(ctx, id, images[0], &options.CheckpointOptions{EmptyNamespaces: noProcesses})
		}},
		{"memory", func() error { return r.save(ctx, id, images[1], &options.CheckpointOptions{Exit: true}) }},
	} {
		if err := step.do(); err != nil {
			return err
		}
		if err := failpoint.Hit("checkpoint.after-" + step.name); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runtime) freeze(ctx context.Context, id sandbox.ID) error {
	_, err := r.client.TaskService().Pause(ctx, &tasksapi.PauseTaskRequest{ContainerID: string(id)})
	return err
}

// makeImages makes the directories of the images, whose shim makes durable only what is
// in them.
func makeImages(dir string, images []string) error {
	for _, image := range images {
		if err := os.Mkdir(image, 0o700); err != nil {
			return err
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (r *Runtime) save(ctx context.Context, id sandbox.ID, dir string, opts *options.CheckpointOptions) error {
	opts.ImagePath = dir
	o, err := typeurl.MarshalAnyToProto(opts)
	if err != nil {
		return err
	}
	_, err = r.client.TaskService().Checkpoint(ctx, &tasksapi.CheckpointTaskRequest{ContainerID: string(id), Options: o})
	return err
}

// Thaw lets a sandbox go on that a checkpoint has left frozen, whoever asked for it.
// It waits for a checkpoint that is under way, which its shim completes when all others
// have died; an error says that nobody knows yet. The exit of one that has ended was no
// news during the checkpoint; it is now.
func (r *Runtime) Thaw(ctx context.Context, id sandbox.ID) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	r.seen.lives(id)
	tasks := r.client.TaskService()
	_, err := tasks.Resume(ctx, &tasksapi.ResumeTaskRequest{ContainerID: string(id)})
	if err == nil {
		return nil
	}
	task, asked := tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: string(id)})
	switch {
	case asked != nil:
	case ended(task.Process):
		r.report(ctx, Exit{ID: id, Status: task.Process.ExitStatus, At: task.Process.ExitedAt.AsTime(), Reason: exited, pid: task.Process.Pid})
		return nil
	case task.Process.Status == tasktypes.Status_RUNNING:
		return nil
	}
	return fmt.Errorf("thawing %s: %w", id, errgrpc.ToNative(errors.Join(err, asked)))
}

// Saved reports whether dir holds a complete image: the shim has said so, whoever
// died since it was asked.
func (r *Runtime) Saved(dir string) (bool, error) {
	part, err := startPart(dir) // the one that is written last
	if err == nil {
		_, err = os.Stat(filepath.Join(part, shimapi.ImageComplete))
	}
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
	part, err := startPart(dir)
	if err != nil {
		return nil, err
	}
	return typeurl.MarshalAnyToProto(&options.Options{CriuImagePath: part})
}
