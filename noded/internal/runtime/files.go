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

	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
	"s0.run/noded/internal/snapshots"
)

// noProcesses has the shim save the root filesystem's writable layer alone.
var noProcesses = []string{shimapi.NoProcesses}

// SaveFiles saves what was written to the root filesystem into dir, which exists and has
// no files yet, and lets the sandbox go on. Its kernel stops it while it writes and at no
// other time, whoever dies.
func (r *Runtime) SaveFiles(ctx context.Context, id sandbox.ID, dir string) error {
	files := filepath.Join(dir, snapshots.FilesPart)
	err := makeImages(dir, []string{files})
	if err == nil {
		err = r.save(ctx, id, files, &options.CheckpointOptions{EmptyNamespaces: noProcesses})
	}
	if err != nil {
		return fmt.Errorf("saving the files of %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// CheckpointFiles is [Runtime.Checkpoint] without processes and memory.
func (r *Runtime) CheckpointFiles(ctx context.Context, id sandbox.ID, dir string) error {
	r.seen.end(id)
	files := filepath.Join(dir, snapshots.FilesPart)
	err := makeImages(dir, []string{files})
	if err == nil {
		_, err = r.client.TaskService().Pause(ctx, &tasksapi.PauseTaskRequest{ContainerID: string(id)})
	}
	if err == nil {
		err = r.save(ctx, id, files, &options.CheckpointOptions{EmptyNamespaces: noProcesses, Exit: true})
	}
	if err != nil {
		return fmt.Errorf("checkpoint of the files of %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// startPart is the part of an image that decides whether it is complete, and that a
// sandbox starts from: the files where there is no memory.
func startPart(dir string) (string, error) {
	memory := filepath.Join(dir, snapshots.MemoryPart)
	_, err := os.Stat(memory)
	if errors.Is(err, fs.ErrNotExist) {
		return filepath.Join(dir, snapshots.FilesPart), nil
	}
	return memory, err
}
