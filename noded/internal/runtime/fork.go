package runtime

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
	"s0.run/noded/internal/snapshots"
)

// Freeze stops all of a sandbox's processes where they are, until [Runtime.Thaw].
func (r *Runtime) Freeze(ctx context.Context, id sandbox.ID) error {
	if err := r.freeze(ctx, id); err != nil {
		return fmt.Errorf("freezing %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// SaveFrozen writes a frozen sandbox into dir, which exists and has no images yet, and
// leaves it frozen. Files and memory are of one instant: nothing happens between them. What
// is written is an image when [Runtime.Seal] has made it one.
func (r *Runtime) SaveFrozen(ctx context.Context, id sandbox.ID, dir string) error {
	files, memory := filepath.Join(dir, snapshots.FilesPart), filepath.Join(dir, snapshots.MemoryPart)
	err := makeImages(dir, []string{files, memory})
	if err == nil {
		err = r.save(ctx, id, files, &options.CheckpointOptions{EmptyNamespaces: []string{shimapi.NoProcesses, shimapi.Unsealed}})
	}
	if err == nil {
		err = r.save(ctx, id, memory, &options.CheckpointOptions{EmptyNamespaces: []string{shimapi.Unsealed}})
	}
	if err != nil {
		return fmt.Errorf("saving %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// Seal makes what SaveFrozen has written durable, and then an image.
func (r *Runtime) Seal(dir string) error {
	for _, part := range []string{snapshots.FilesPart, snapshots.MemoryPart} {
		if err := snapshots.Seal(filepath.Join(dir, part), shimapi.ImageComplete); err != nil {
			return fmt.Errorf("completing an image: %w", err)
		}
	}
	return nil
}
